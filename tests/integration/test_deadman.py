"""The dead man's switch of the running monitor: it beats while the monitor works, and is silent while it does not."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from monitor.domain import Decision, Incident, IncidentState, Intent, Severity, Transition
from monitor.store import Store
from tests.support.monitoring import child, free_port, ready, write_config
from tests.support.world import ManualClock, until

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
