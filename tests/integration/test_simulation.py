"""Replays of histories that the real engine wrote: with the same configuration nothing differs, with another one what it changes."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from alerts.matchers import parse_matcher
from alerts.muting import Inhibition, Window
from alerts.posted import PostedAlert
from alerts.severity import SeverityRule
from monitor.domain import AlertPolicy, EscalationStep, Outcome, ResponsePolicy, Severity, Transition
from monitor.errors import StoreError
from monitor.simulation import Line, Status
from monitor.store import Recorded
from tests.support.histories import BEAT, DOWN, FULL, SLOW, History, Subject, check
from tests.support.world import Inbox, settings

FOUND, OK, BLIND = Outcome.FOUND, Outcome.OK, Outcome.BLIND


def history(folder: Path, **changes: Any) -> History:
    """Three checks: the shop's health, which the database's fall explains, and the disk of the database."""
    subjects = {"health/shop": Subject(), "health/db": Subject(), "disk/db": Subject(), BEAT: Subject()}
    policy = AlertPolicy(fail_after=2, recover_after=2, blind_after=3)
    shop = check("health", "shop", subjects["health/shop"], policy=policy)
    shop = replace(shop, upstream=frozenset({"shop", "db"}), linger_s=30.0)
    database = check("health", "db", subjects["health/db"], policy=replace(policy, fail_for_s=20, recover_for_s=30))
    rules = (SeverityRule(Severity.P1, finding="DiskFull", at_least=95), SeverityRule(Severity.P3, finding="DiskFull", below=90))
    disk = check("disk", "db", subjects["disk/db"], policy=AlertPolicy(1, 1), severities=rules, depends_on=frozenset({"health/db"}))
    chosen = settings(folder, shop, database, disk, check("beat", "own", subjects[BEAT]), page=Inbox(), lead=Inbox())
    responses = {severity: ResponsePolicy(within_s=600, ack_expires_s=1200, remind_s=1800) for severity in Severity}
    return History(replace(chosen, responses=responses, **changes), subjects)


def found(lines: tuple[Line, ...]) -> list[tuple[str, str, str]]:
    return [(line.status.value, line.transition.value, line.channel) for line in lines]


def differences(lines: tuple[Line, ...]) -> list[Line]:
    return [line for line in lines if line.status is not Status.BOTH or line.later_s]


async def short(past: History) -> None:
    """A page that climbs and is taken, a blink that tells nobody, a disk that fills, and a cause with its symptom."""
    await past.look("health/shop", OK)
    await past.look("disk/db", OK)
    await past.wait(60)
    for wait_s in (2, 15, 900, 60):  # down until the lead is told
        await past.look("health/shop", FOUND, DOWN("shop is down"))
        await past.wait(wait_s)
    await past.take()
    for _ in range(3):
        await past.wait(15)
        await past.look("health/shop", OK)
    await past.look("health/shop", FOUND, SLOW("a blink"))
    await past.wait(15)
    await past.look("health/shop", OK)
    for value in (91.0, 96.0, 91.0):
        await past.wait(300)
        await past.look("disk/db", FOUND, FULL("full", value=value))
    await past.wait(60)
    await past.look("disk/db", OK)
    for _ in range(3):
        await past.wait(15)
        await past.look("health/db", FOUND, DOWN("the database is down"))
        await past.look("health/shop", FOUND, DOWN("shop is down"))
    for _ in range(6):
        await past.wait(15)
        await past.look("health/db", OK)
        await past.look("health/shop", OK)
    await past.wait(30)


async def test_the_same_configuration_sends_what_was_sent(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        await short(past)
    lines, replayed = past.simulate()
    assert differences(lines) == []
    assert Counter(line.transition for line in lines)[Transition.RESOLVED] >= 3
    assert (replayed.taken, replayed.not_taken, replayed.gaps) == (1, 0, ())
    said = {(line.title, line.transition.value, line.channel) for line in lines}
    assert ("ServiceDown", "escalated", "lead") in said


async def test_another_chain_tells_others(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        await short(past)
    chain = (EscalationStep(0, "first", ("page",)), EscalationStep(300, "second", ("lead",)))
    lines, _ = past.simulate(replace(past.settings, escalation=dict.fromkeys(Severity, chain)))
    moved = [line for line in lines if line.status is Status.BOTH and line.later_s]
    assert [(line.transition.value, line.channel, line.later_s) for line in moved] == [("escalated", "lead", pytest.approx(-600.0, abs=1))]
    assert ("only new", "escalated", "lead") in found(lines)  # of the disk, which was over before a quarter of an hour


async def test_more_runs_before_an_alert_tell_of_less(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        await short(past)
    patient = tuple(replace(one, policy=replace(one.policy, fail_after=4)) for one in past.settings.instances)
    lines, _ = past.simulate(replace(past.settings, instances=patient))
    gone = {line.title for line in lines if line.status is Status.OLD and line.asks}
    assert "DiskFull" in gone
    first = next(line for line in lines if line.asks and line.status is Status.BOTH)
    assert (first.transition, first.later_s) == (Transition.TRIGGERED, pytest.approx(915, abs=1))  # the fourth bad run, not the second


async def test_a_maintenance_window_tells_nobody_of_what_began_in_it_and_everybody_after_it(tmp_path: Path) -> None:
    past = history(tmp_path)
    start = past.clock.now()
    async with past.running():
        await short(past)
    window = Window("move", (parse_matcher("service=shop"),), start, start + timedelta(minutes=5))
    lines, _ = past.simulate(replace(past.settings, windows=(window,)))
    first = next(line for line in lines if line.asks)
    assert (first.status, first.at) == (Status.BOTH, start + timedelta(minutes=5))


async def test_a_removed_check_tells_nothing_and_is_named(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        await short(past)
    fewer = tuple(one for one in past.settings.instances if one.key != "disk/db")
    lines, replayed = past.simulate(replace(past.settings, instances=fewer))
    assert {line.title for line in lines if line.status is Status.OLD} == {"DiskFull"}
    assert {line.status for line in lines if line.title != "DiskFull"} == {Status.BOTH}
    assert replayed.not_watched == ("disk/db",)


async def test_severity_rules_are_judged_anew_by_the_number_found(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        await short(past)
    rules = (SeverityRule(Severity.P4, finding="DiskFull"),)
    mild = tuple(replace(one, severities=rules) if one.name == "disk" else one for one in past.settings.instances)
    lines, _ = past.simulate(replace(past.settings, instances=mild))
    disk = [line for line in lines if line.title == "DiskFull" and line.asks]
    assert {line.severity for line in disk if line.status is not Status.OLD} == {Severity.P4}
    assert [line.transition for line in disk if line.status is Status.OLD] == [Transition.RAISED]


async def test_without_acknowledgements_it_asks_on(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        for _ in range(2):
            await past.look("health/shop", FOUND, DOWN("down"))
            await past.wait(15)
        await past.take()
        await past.wait(1800)
        for _ in range(2):
            await past.look("health/shop", OK)
            await past.wait(15)
    taken, _ = past.simulate()
    asked, _ = past.simulate(unacknowledged=True)
    assert differences(taken) == []
    assert ("only new", "escalated", "lead") in found(asked)
    assert ("only old", "acked", "page") in found(asked)


async def test_what_is_new_has_no_history_and_what_is_configured_otherwise_is_said(tmp_path: Path) -> None:
    async with history(tmp_path).running() as past:
        await past.look("health/shop", OK)
    other = check("extra", "shop", Subject())
    odd = tuple(
        replace(one, check=replace(one.check, name="another")) if one.key == "health/shop" else one for one in past.settings.instances
    )
    _, replayed = past.simulate(replace(past.settings, instances=(*odd, other)))
    assert replayed.never_looked == ("health/db", "disk/db", "extra/shop")
    assert replayed.configured_otherwise == ("health/shop",)


async def test_while_the_monitor_was_down_nobody_looked_and_nothing_was_due(tmp_path: Path) -> None:
    past = history(tmp_path)
    async with past.running():
        for _ in range(2):
            await past.look("health/shop", FOUND, DOWN("down"))
            await past.wait(15)
    past.clock.advance(3600)
    async with past.running():
        for _ in range(3):
            await past.look("health/shop", OK)
            await past.wait(15)
    lines, replayed = past.simulate()
    assert [round((end - begin).total_seconds()) for begin, end in replayed.gaps] == [3600]
    assert [line for line in lines if line.status is not Status.BOTH or abs(line.later_s) > 0.1] == []
    assert ("both", "escalated", "lead") in found(lines)  # when it ran again


async def test_foreign_alerts_are_replayed_from_their_incidents(tmp_path: Path) -> None:
    later = timedelta(days=1)
    async with history(tmp_path).running() as past:
        await past.look("health/shop", OK)
        for number in range(2):
            now = past.clock.now()
            labels = {"alertname": "Backlog", "service": "queue", "severity": "critical"}
            alert = PostedAlert(labels, {"summary": f"{number} too many"}, now, now + later)
            await past.post(alert)
            await past.wait(1000 + number)
            await past.post(alert._replace(ends_at=past.clock.now()))
            await past.wait(60)
    lines, _ = past.simulate()
    assert differences(lines) == []
    assert [line.transition.value for line in lines] == ["triggered", "escalated", "resolved", "resolved"] * 2


async def test_a_state_of_another_version_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "old.db").touch()
    with pytest.raises(StoreError, match="another version"):
        Recorded(f"sqlite:///{tmp_path / 'old.db'}")
    with pytest.raises(StoreError, match="does not exist"):
        Recorded(f"sqlite:///{tmp_path / 'none.db'}")
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]


# --- any history ------------------------------------------------------------------------------------------------------

KEYS = ("health/shop", "health/db", "disk/db")
seen = st.sampled_from(
    [
        (OK, ()),
        (OK, ()),
        (BLIND, ()),
        (FOUND, (DOWN("down"),)),
        (FOUND, (DOWN("down"), SLOW("slow"))),
        (FOUND, (FULL("full", value=85.0),)),
        (FOUND, (FULL("full", value=97.0), SLOW("slow"))),
    ]
)
looks = st.tuples(st.just("look"), st.sampled_from(KEYS), seen, st.integers(1, 4), st.sampled_from([2, 15, 16]))
others = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 61, 901])),
    st.tuples(st.just("take")),
    st.tuples(st.just("silence"), st.sampled_from(["service=shop", "severity=P1", "service=~.+"]), st.sampled_from([1, 20])),
    st.tuples(st.just("restart"), st.sampled_from([0.5, 400.0])),
)
scripts = st.lists(st.one_of(looks, looks, looks, others), min_size=3, max_size=20)
inhibitions = st.sampled_from([(), (Inhibition((parse_matcher("service=db"),), (parse_matcher("service=shop"),)),)])
EVERY_HOUR = Window("hourly", (parse_matcher("alertname=DiskFull"),), schedule="10 * * * *", lasts=timedelta(minutes=15))
windows = st.sampled_from([(), (EVERY_HOUR,)])


async def play(past: History, script: list[tuple[Any, ...]]) -> None:
    rest = list(script)
    while rest:
        async with past.running():
            while rest:
                step = rest.pop(0)
                match step:
                    case ("look", key, (outcome, findings), times, apart_s):
                        for _ in range(times):
                            await past.look(key, outcome, *findings)
                            await past.wait(apart_s)
                    case ("wait", seconds):
                        await past.wait(seconds)
                    case ("take",):
                        await past.take()
                    case ("silence", matcher, minutes):
                        await past.silence(matcher, minutes)
                    case _:
                        break
        past.clock.advance(step[1] if step[0] == "restart" else 0)


def judge(script: list[tuple[Any, ...]], make: Any) -> None:
    with TemporaryDirectory() as folder:
        past: History = make(Path(folder))
        asyncio.run(play(past, script))
        lines, _ = past.simulate()
        assert [line for line in lines if line.status is not Status.BOTH or abs(line.later_s) > 1.5] == []


@examples(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts, inhibitions, windows)
def test_any_history_replayed_with_its_own_configuration_is_what_was_sent(
    script: list[tuple[Any, ...]], rules: tuple[Inhibition, ...], planned: tuple[Window, ...]
) -> None:
    judge(script, lambda folder: history(folder, inhibitions=rules, windows=planned))
