"""The clocks that people set: on both nights of both zones, on a leap day, and when the wall clock is corrected while the program runs.

Escalation goes by the time that passes; windows, rotations and reports go by the wall. Each happens on time, once.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from aiosmtpd.controller import Controller

from alerts.matchers import parse_matcher
from alerts.muting import Window
from alerts.oncall import People, Rotation
from monitor.clocksteps import STEP_S
from monitor.config.settings import Settings
from monitor.delivery import LEASE_S
from monitor.domain import EscalationStep, Notification, ResponsePolicy, Severity
from monitor.errors import DeliveryError, StoreError
from monitor.intake import Intake
from monitor.reports import Reports
from monitor.store import Store, StoreThread
from tests.integration.test_delivery import Running, Switch, running
from tests.integration.test_reports import Mails, reporting, watched
from tests.support.monitoring import free_port
from tests.support.world import Inbox, ManualClock, settings, until

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
MINUTE_S = 60.0
T0 = datetime(2026, 6, 1, 12, tzinfo=UTC)
SITUATIONS = [
    pytest.param(BERLIN, date(2026, 3, 29), 0, id="berlin-forward"),
    pytest.param(BERLIN, date(2026, 10, 25), 0, id="berlin-back"),
    pytest.param(NEW_YORK, date(2026, 3, 8), 0, id="new-york-forward"),
    pytest.param(NEW_YORK, date(2026, 11, 1), 0, id="new-york-back"),
    pytest.param(BERLIN, date(2028, 2, 29), 0, id="leap-day"),
    pytest.param(BERLIN, date(2026, 6, 1), 600, id="set-forward"),
    pytest.param(BERLIN, date(2026, 6, 1), -600, id="set-back"),
]
table = pytest.mark.parametrize(("zone", "day", "step_s"), SITUATIONS)


def local(day: date, at: time, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, at, zone).astimezone(UTC)


@asynccontextmanager
async def at(chosen: Settings, now: datetime, busy_timeout_s: float = 5.0) -> AsyncIterator[Running]:
    """Delivery by itself; the engine's rounds when the test says."""
    world = Running(chosen, busy_timeout_s, ManualClock(now))
    await world.engine.start()
    serving = asyncio.create_task(world.delivery.serve())
    try:
        yield world
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        world.thread.close()
        world.store.close()


async def rounds(
    world: Running, count: int, step_s: float, see: Callable[[], None] = lambda: None, *, set_at: int = 2, every_s: float = 5 * MINUTE_S
) -> None:
    """Let time pass, with so many rounds of the engine; after ``set_at`` of them the wall clock is set."""
    for number in range(count):
        if number == set_at:
            world.clock.set_by(step_s)
        world.clock.advance(every_s)
        await world.engine.round()
        world.delivery.wake()
        await until(lambda: world.store.outbox.undelivered() == ())
        see()


@table
async def test_the_ladder_is_climbed_in_the_time_that_passes(memory: Path, zone: ZoneInfo, day: date, step_s: float) -> None:
    boxes = {name: Inbox() for name in ("page", "lead", "boss")}
    switch = Switch()
    passed: dict[str, list[int]] = {name: [] for name in boxes}
    async with at(settings(memory, switch.subject, **boxes), local(day, time(1, 40), zone)) as world:
        start = world.clock.monotonic()

        def see() -> None:
            for name, box in boxes.items():
                new = len(box.arrived) - len(passed[name])
                passed[name] += [round((world.clock.monotonic() - start) / MINUTE_S)] * new

        switch.down = True
        await world.engine.run(switch.subject)
        await world.engine.run(switch.subject)
        await rounds(world, 9, step_s, see)
    assert passed == {"page": [5], "lead": [15], "boss": [30]}


@table
async def test_a_window_opens_and_ends_once_by_the_wall(memory: Path, zone: ZoneInfo, day: date, step_s: float) -> None:
    page, switch = Inbox(), Switch()
    window = Window("backup", (parse_matcher("service=auth"),), schedule="0 1 * * *", lasts=timedelta(minutes=90), timezone=zone)
    begin = local(day, time(1), zone)
    seen: list[tuple[datetime, bool]] = []
    async with at(replace(settings(memory, switch.subject, page=page), windows=(window,)), begin - timedelta(minutes=10)) as world:
        switch.down = True
        await world.engine.run(switch.subject)
        await world.engine.run(switch.subject)

        def see() -> None:
            (incident,) = world.store.incidents.list(unresolved=True)
            if not seen or seen[-1][1] != bool(incident.muted):
                seen.append((world.clock.now(), bool(incident.muted)))

        await rounds(world, 26, step_s, see, set_at=12)
    # that the wall clock was set by ten minutes is ten minutes less, or more, of a window that the wall clock ends
    assert seen[1:] == [(begin, True), (begin + timedelta(minutes=90), False)]


@table
async def test_whoever_has_the_duty_by_the_wall_is_asked(memory: Path, zone: ZoneInfo, day: date, step_s: float) -> None:
    """Handed over at 02:30, which the spring skips and the autumn lives twice; a fault before, and one long after."""
    anna, ben, switch = Inbox(), Inbox(), Switch()
    chosen = settings(memory, switch.subject, anna=anna, ben=ben)
    nightly = Rotation(("anna", "ben"), starts=day - timedelta(days=2), timezone=zone, handover=time(2, 30), days=1)
    people = People({"anna": ("anna",), "ben": ("ben",)}, {"platform": nightly})
    chain = (EscalationStep(0, "on-call", contacts=("platform",)),)
    async with at(replace(chosen, people=people, escalation=dict.fromkeys(Severity, chain)), local(day, time(1, 30), zone)) as world:
        turns: list[str | None] = []
        for _ in range(2):
            for down in (True, False):
                switch.down = down
                await world.engine.run(switch.subject)
                await world.engine.run(switch.subject)
                await rounds(world, 1, 0, every_s=1)
            await rounds(world, 10, step_s, lambda: turns.append(nightly.on_call(world.clock.now())), every_s=900)
    assert len([one for one, other in pairwise(turns) if one != other]) == 1
    assert (ben.said(), anna.said()) == (["triggered", "resolved"], ["triggered", "resolved"])
    assert ben.arrived[0].created_at < anna.arrived[0].created_at


@table
async def test_the_report_of_the_day_is_sent_at_its_hour_once(memory: Path, zone: ZoneInfo, day: date, step_s: float) -> None:
    mails, port = Mails(), free_port()
    chosen = reporting(memory, port, at=time(8, 0), zone=zone)
    store, thread = Store(chosen.state_url), StoreThread()
    due = local(day, time(8), zone)
    clock = ManualClock(due - timedelta(minutes=5))
    watched(store, due - timedelta(hours=5))
    reports = Reports(chosen, store=store, thread=thread, clock=clock, latest=dict)
    server = Controller(mails, hostname="127.0.0.1", port=port)
    server.start()
    try:
        sent_at: list[datetime] = []
        for number in range(30):
            if number == 8:
                clock.set_by(step_s)  # set back, it is before eight again
            await reports.look()
            sent_at += [clock.now()] * (len(mails.subjects) - len(sent_at))
            clock.advance(MINUTE_S)
    finally:
        server.stop()
        thread.close()
        store.close()
    assert sent_at == [due]


@pytest.mark.parametrize("step_s", [600.0, -600.0])
async def test_nothing_that_waits_is_hurried_or_delayed_when_the_clock_is_set(memory: Path, step_s: float) -> None:
    """A retry, the response time, a reminder and the end of an acknowledgement keep their distance; so does the fallback's patience."""

    async def busy(_: Notification) -> None:
        raise DeliveryError("503: not now", retryable=True, retry_after_s=1800)

    page, switch = Inbox(answer=busy), Switch()
    chosen = replace(settings(memory, switch.subject, page=page), responses=dict.fromkeys(Severity, ResponsePolicy(900, 3600, 1800)))
    async with at(chosen, T0) as world:
        switch.down = True
        await world.engine.run(switch.subject)
        await world.engine.run(switch.subject)
        await until(lambda: world.outcomes)
        before, (waits,) = world.store.incidents.list(unresolved=True)[0], world.store.outbox.undelivered()
        world.clock.set_by(step_s)
        await world.engine.round()
        after = world.store.incidents.list(unresolved=True)[0]
        by = timedelta(seconds=step_s)
        assert after == before._replace(chain_since=before.chain_since + by, remind_at=before.remind_at and before.remind_at + by)
        assert (after.wake_at or T0) - (before.wake_at or T0) == by
        (waits_now,) = world.store.outbox.undelivered()
        assert waits_now == replace(waits, created_at=waits.created_at + by, next_attempt_at=waits.next_attempt_at + by)
        assert world.engine.steps.last_s == pytest.approx(step_s)
        assert "the clock was set" in world.store.incidents.timeline(after.id)[-1].text
        await world.engine.round()
        assert world.store.incidents.list(unresolved=True)[0] == after, "noticed once"


async def test_a_clock_that_is_slewed_moves_nothing(memory: Path) -> None:
    page, switch = Inbox(), Switch()
    async with at(settings(memory, switch.subject, page=page), T0) as world:
        for _ in range(20):
            world.clock.set_by(STEP_S * 0.9)
            await world.engine.round()
        assert world.engine.steps.last_s == 0


async def test_what_is_being_sent_while_the_clock_is_set_is_sent_once(memory: Path) -> None:
    """The lease would be over by the new clock; who sends knows that it is still sending."""
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slow(_: Notification) -> None:
        begun.set()
        await gate.wait()

    page, switch = Inbox(answer=slow), Switch()
    async with running(settings(memory, switch.subject, page=page)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await begun.wait()
        world.clock.set_by(LEASE_S * 10)
        world.delivery.wake()
        await until(lambda: world.store.outbox.owners() and world.store.outbox.untried_s(world.clock.now()) == 0)
        gate.set()
        await until(lambda: world.outcomes)
        assert page.said() == ["triggered"]


@pytest.mark.parametrize("step_s", [600.0, -600.0])
async def test_a_foreign_alert_of_a_sender_that_names_no_end_lasts_as_long_as_before(memory: Path, step_s: float) -> None:
    page, switch = Inbox(), Switch()
    async with at(settings(memory, switch.subject, page=page), T0) as world:
        intake = Intake(world.engine, store=world.store, thread=world.thread, clock=world.clock, guides={})
        serving = asyncio.create_task(intake.serve())
        await intake.post(b'[{"labels": {"alertname": "Foreign", "service": "auth"}}]')
        (before,) = world.store.incidents.firing()
        world.clock.set_by(step_s)
        await world.engine.round()
        (after,) = world.store.incidents.firing()
        serving.cancel()
        assert before.ends_at is not None
        assert after.ends_at == before.ends_at + timedelta(seconds=step_s)


async def test_a_step_that_cannot_be_written_is_made_up_for(memory: Path) -> None:
    page, switch = Inbox(), Switch()
    async with at(settings(memory, switch.subject, page=page), T0, busy_timeout_s=0.05) as world:
        switch.down = True
        await world.engine.run(switch.subject)
        await world.engine.run(switch.subject)
        await until(lambda: world.outcomes)
        before = world.store.incidents.list(unresolved=True)[0]
        world.clock.set_by(600)
        with closing(sqlite3.connect(memory / "monitor.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError):
                await world.engine.round()
            other.execute("ROLLBACK")
        await world.engine.round()
        after = world.store.incidents.list(unresolved=True)[0]
        assert after.chain_since == before.chain_since + timedelta(minutes=10)
