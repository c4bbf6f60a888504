"""What checks keep: JSON, bounded, per configuration, never shared by reference."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.memory import MAX_BYTES, Memory
from monitor.plugins import CheckContext, Duration, PluginConfig
from tests.support.world import instance

AT = datetime(2026, 3, 1, tzinfo=UTC)


class Config(PluginConfig):
    older_than: Duration = 60.0


async def nothing(ctx: CheckContext) -> Observed:
    return Observed()


def one(older_than: float = 60.0) -> Any:
    return replace(instance(nothing), config=Config(older_than=older_than))


def test_what_is_kept_comes_back_as_json_and_as_a_copy() -> None:
    memory = Memory()
    memory.keep(one(), AT, {"seen": (1, 2), "at": 1.5})
    kept = memory.recall(one())
    assert kept is not None
    assert (kept.at, kept.value) == (AT, {"seen": [1, 2], "at": 1.5})
    kept.value["seen"].append(3)
    again = memory.recall(one())
    assert again is not None
    assert again.value["seen"] == [1, 2]


def test_another_configuration_starts_anew() -> None:
    memory = Memory()
    memory.keep(one(), AT, [1])
    assert memory.recall(one(older_than=30.0)) is None


@pytest.mark.parametrize("value", [object(), {"x": {1, 2}.__iter__()}, "x" * MAX_BYTES])
def test_what_cannot_be_kept_is_the_plugins_mistake(value: object) -> None:
    with pytest.raises(CannotLook, match="the check keeps"):
        Memory().keep(one(), AT, value)


def test_only_news_is_written_and_a_failed_write_is_news_again() -> None:
    memory = Memory()
    memory.keep(one(), AT, [1])
    entries = memory.take_unsaved()
    assert [entry.instance for entry in entries] == [one().key]
    assert memory.take_unsaved() == ()
    memory.give_back(entries)
    assert memory.take_unsaved() == entries
    restarted = Memory(entries)
    assert restarted.take_unsaved() == ()
    kept = restarted.recall(one())
    assert kept is not None
    assert kept.value == [1]
    restarted.retain({})
    assert restarted.recall(one()) is None


def test_what_an_undecided_instance_keeps_waits() -> None:
    memory, decided = Memory(), replace(one(), key="decided/auth")
    memory.keep(one(), AT, [1])
    memory.keep(decided, AT, [2])
    assert [entry.instance for entry in memory.take_unsaved({one().key})] == [decided.key]
    assert [entry.instance for entry in memory.take_unsaved()] == [one().key]
