"""Whoever could name the cause is asked once, and is waited for before a finding is told: not for ever, and not twice."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from monitor import suspects
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import Observed
from monitor.plugins import CheckContext
from monitor.suspects import Suspects
from tests.support.world import DOWN, instance, settings


async def nothing(_: CheckContext) -> Observed:
    return Observed()


class Asked:
    """A scheduler that runs nothing, and says that everybody will answer."""

    def __init__(self) -> None:
        self.times: list[list[str]] = []

    def __call__(self, keys: Iterable[str]) -> set[str]:
        self.times.append(list(keys))
        return set(self.times[-1])


def world(tmp_path: Path) -> tuple[CheckInstance, CheckInstance, Settings]:
    """A symptom, its cause, and settings with both. By the check's ``depends_on``."""
    cause = instance(nothing, name="cause", service="base", timeout_s=30.0)
    symptom = replace(instance(nothing, name="symptom", service="auth"), depends_on=frozenset({cause.key}))
    return symptom, cause, settings(tmp_path, symptom, cause)


async def test_the_first_finding_asks_and_the_second_waits(tmp_path: Path) -> None:
    symptom, cause, both = world(tmp_path)
    asked = Asked()
    held = Suspects(both, asked)
    await held.question(symptom, at_once=False)  # it counts as the first of two bad runs meanwhile
    assert asked.times == [[cause.key]]
    confirming = asyncio.create_task(held.question(symptom, at_once=False))
    await asyncio.sleep(0)
    held.answered("other/base")
    for _ in range(3):
        await asyncio.sleep(0)
    assert not confirming.done()
    held.answered(cause.key)
    await confirming
    assert asked.times == [[cause.key]]
    await held.question(symptom, at_once=False)  # and again: nobody is waited for twice


async def test_what_fires_at_once_waits_at_once(tmp_path: Path) -> None:
    symptom, cause, both = world(tmp_path)
    held = Suspects(both, Asked())
    firing = asyncio.create_task(held.question(symptom, at_once=True))
    await asyncio.sleep(0)
    assert not firing.done()
    held.answered(cause.key)
    await firing


async def test_a_new_finding_after_a_settled_one_asks_anew(tmp_path: Path) -> None:
    symptom, cause, both = world(tmp_path)
    asked = Asked()
    held = Suspects(both, asked)
    await held.question(symptom, at_once=False)
    held.settled(symptom.key)
    await held.question(symptom, at_once=False)
    assert asked.times == [[cause.key], [cause.key]]


async def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "PATIENCE_S", 0.05)
    symptom, _, both = world(tmp_path)
    held = Suspects(both, Asked())
    async with asyncio.timeout(5):
        await held.question(symptom, at_once=True)
        await held.question(symptom, at_once=True)


async def test_a_suspect_that_is_removed_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    symptom, _, both = world(tmp_path)
    held = Suspects(both, Asked())
    firing = asyncio.create_task(held.question(symptom, at_once=True))
    await asyncio.sleep(0)
    held.adopt(settings(tmp_path, symptom))
    async with asyncio.timeout(5):
        await firing


async def test_who_has_no_suspects_waits_for_nobody(tmp_path: Path) -> None:
    alone = instance(nothing)
    held = Suspects(settings(tmp_path, alone), Asked())
    assert held.of(alone) == set()
    async with asyncio.timeout(5):
        await held.question(alone, at_once=True)


def test_what_fells_a_service_upstream_is_a_suspect(tmp_path: Path) -> None:
    cause = instance(nothing, name="cause", service="base")
    cause = replace(cause, check=replace(cause.check, finds=(replace(DOWN, fells=True),)))
    symptom = replace(instance(nothing, name="symptom", service="web"), upstream=frozenset({"base"}))
    held = Suspects(settings(tmp_path, symptom, cause), Asked())
    assert held.of(symptom) == {cause.key}
    assert held.of(cause) == set()


async def test_of_two_that_suspect_each_other_none_waits(tmp_path: Path) -> None:
    one, other = (replace(instance(nothing, name=name), upstream=frozenset({"auth"})) for name in ("one", "other"))
    one, other = (replace(each, check=replace(each.check, finds=(replace(DOWN, fells=True),))) for each in (one, other))
    asked = Asked()
    held = Suspects(settings(tmp_path, one, other), asked)
    async with asyncio.timeout(5):
        await asyncio.gather(held.question(one, at_once=True), held.question(other, at_once=True))
    assert asked.times == [[other.key], [one.key]]
