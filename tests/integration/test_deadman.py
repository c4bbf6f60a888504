"""The dead man's switch of the running monitor: it beats while the monitor works, and is silent while it does not."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from alerts.silences import make
from monitor.config.settings import Settings
from monitor.deadman import DeadMan
from monitor.domain import Decision, EscalationStep, Incident, IncidentState, Intent, Notification, Observed, Severity, Transition
from monitor.engine import acknowledge
from monitor.errors import DeliveryError
from monitor.metrics.exposition import Exposition
from monitor.plugins import CheckContext
from monitor.store import Store
from tests.integration.test_delivery import Running, Switch, running
from tests.support.monitoring import child, free_port, ready, write_config
from tests.support.world import Inbox, ManualClock, settings, until, until_async

Answer = Callable[[Notification], Awaitable[None]]
PATH = "/ping/secret-of-the-beats"


class Listener:
    """Counts the beats that arrive."""

    def __init__(self) -> None:
        self.beats: list[str] = []
        self.port = free_port()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.beats.append(head.split(b"\r\n", 1)[0].decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener.answer, "127.0.0.1", listener.port)
    try:
        yield listener
    finally:
        server.close()
        await server.wait_closed()


async def test_it_beats_while_the_state_can_be_written_and_not_otherwise(tmp_path: Path) -> None:
    async with listening() as listener:
        secret = tmp_path / "beats"
        secret.touch(mode=0o600)
        secret.write_text(f"http://127.0.0.1:{listener.port}{PATH}")
        port = free_port()
        config = write_config(
            tmp_path,
            target="http://127.0.0.1:1",
            pager_url="https://127.0.0.1:1",
            ca_file="",
            port=port,
            deadman={"url": {"file": "beats"}, "every": "1s"},
        )
        config.write_text(config.read_text().replace('ca_file = ""\n', ""))
        async with child(tmp_path, "run", "--config", str(config)) as process:
            await ready(port, process, tmp_path)
            await until(lambda: len(listener.beats) >= 2)
            assert listener.beats[0] == f"POST {PATH} HTTP/1.1"
            with sqlite3.connect(tmp_path / "state" / "monitor.db", isolation_level=None) as lock:
                lock.execute("BEGIN EXCLUSIVE")
                log = tmp_path / "monitor.log"
                await until(lambda: "no beat to the outside" in log.read_text(), within_s=60)
                silent = len(listener.beats)
                lock.execute("ROLLBACK")
            await until(lambda: len(listener.beats) > silent, within_s=30)
            assert "secret-of-the-beats" not in log.read_text()


@pytest.fixture
def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'state.db'}")
    yield opened  # type: ignore[misc]
    opened.close()


def test_overdue_steps_and_untried_rows_are_seen(store: Store) -> None:
    now = ManualClock().now()
    assert (store.incidents.overdue_s(now), store.outbox.untried_s(now)) == (0, 0)
    incident = Incident(
        id="abc", group="g", code=None, service="s", severity=Severity.P1, state=IncidentState.OPEN, title="t", summary="s", evidence=(),
        first_step="", opened_at=now, chain=(), chain_since=now, next_escalation_at=now + timedelta(seconds=60),
    )  # fmt: skip
    decision = Decision(incidents=(incident,), intents=(Intent("abc", Transition.TRIGGERED, "page", "why"),))
    store.incidents.decide("x", (), lambda _: decision, now)
    later = now + timedelta(seconds=400)
    assert (store.incidents.overdue_s(later), store.outbox.untried_s(later)) == (340, 400)


class Minor(Switch):
    """Finds something, but nothing worse than a P3."""

    async def look(self, ctx: CheckContext) -> Observed:
        observed = await super().look(ctx)
        return Observed(findings=tuple(replace(finding, severity=Severity.P3) for finding in observed.findings))


async def refused(_: Notification) -> None:
    raise DeliveryError("404: no such key", retryable=False)


async def busy(_: Notification) -> None:
    raise DeliveryError("503: not now", retryable=True)


@asynccontextmanager
async def watched(chosen: Settings) -> AsyncIterator[tuple[Running, DeadMan]]:
    async with running(chosen) as world:
        yield (
            world,
            DeadMan(lambda: chosen, lambda: (), store=world.store, thread=world.thread, clock=world.clock, show=Exposition("test")),
        )


async def silent(deadman: DeadMan) -> bool:
    return any("nobody is reached" in reason for reason in await deadman.reasons())


async def well(deadman: DeadMan) -> bool:
    return await deadman.reasons() == ()


@pytest.mark.parametrize("answer", [refused, busy])
async def test_it_is_silent_while_no_channel_delivers_and_beats_when_one_does(tmp_path: Path, answer: Answer) -> None:
    first, second, switch = Inbox(answer=answer), Inbox(answer=answer), Switch()
    async with watched(settings(tmp_path, switch.subject, first=first, second=second)) as (world, deadman):
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes)
        await world.wait(290)
        assert not await silent(deadman)
        await world.wait(20)
        assert await silent(deadman)
        await world.wait(3600)
        await until(lambda: any(channel == "second" for channel, _ in world.outcomes))
        assert await silent(deadman)
        second.answer = None
        world.store.outbox.revive(None, world.clock.now())
        world.delivery.wake()
        await until_async(lambda: well(deadman))
        assert second.said() == ["escalated"]


async def test_a_call_that_another_channel_delivered_keeps_it_beating(tmp_path: Path) -> None:
    sick, other, switch = Inbox(answer=refused), Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, sick=sick, other=other)
    steps = (EscalationStep(0, "all", ("sick", "other")),)
    async with watched(replace(chosen, escalation=dict.fromkeys(Severity, steps))) as (world, deadman):
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: len(world.outcomes) == 2)
        await world.wait(1000)
        assert not await silent(deadman)


async def test_a_stand_in_has_its_time_first(tmp_path: Path) -> None:
    sick, other, switch = Inbox(answer=busy), Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, sick=sick, other=other)
    chosen = replace(chosen, channels={**chosen.channels, "sick": replace(chosen.channels["sick"], fallback="other")})
    async with watched(chosen) as (world, deadman):
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes)
        await world.wait(590)
        assert not await silent(deadman)
        await world.wait(20)
        assert await silent(deadman)


@pytest.mark.parametrize("how", ["acknowledged", "silenced", "less severe"])
async def test_what_asks_for_nobody_keeps_it_beating(tmp_path: Path, how: str) -> None:
    sick, switch = Inbox(answer=refused), Minor() if how == "less severe" else Switch()
    chosen = settings(tmp_path, switch.subject, sick=sick)
    async with watched(chosen) as (world, deadman):
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes)
        (incident,) = world.store.incidents.list(unresolved=True)
        now = world.clock.now()
        if how == "acknowledged":
            acknowledge(world.store, incident.id, "ada", world.clock)
        if how == "silenced":
            world.store.silences.save(make(["service=auth"], now, now + timedelta(hours=2), "anna", "known", now))
            await until(lambda: world.store.incidents.list(unresolved=True)[0].muted)
        await world.wait(1000)
        assert not await silent(deadman)
