"""What was pinged of each heartbeat, one row per check that waits for pings."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from monitor.probes_contract import Beat, Ping
from monitor.store.database import Database
from monitor.store.schema import heartbeats


class HeartbeatStore:
    """A ping is on the disk when :meth:`ping` returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, name: str, now: datetime) -> Beat:
        """What is known of this heartbeat; one that is asked for the first time is known from ``now`` on."""
        with self._database.read() as connection:
            beat = _read(connection, name)
        if beat is not None:
            return beat
        with self._database.write() as connection:
            return _read(connection, name) or _begin(connection, name, now)

    def ping(self, names: Iterable[str], ping: Ping, at: datetime) -> None:
        """Write the ping down for each of these heartbeats."""
        with self._database.write() as connection:
            for name in names:
                beat = _read(connection, name) or _begin(connection, name, at)
                changed = _changed(beat, ping, at)
                connection.execute(update(heartbeats).where(heartbeats.c.name == name).values(**changed, body=ping.body))

    def all(self) -> dict[str, Beat]:
        with self._database.read() as connection:
            return {row.name: _beat(row) for row in connection.execute(select(heartbeats))}

    def retain(self, names: Iterable[str]) -> None:
        """Forget all others: a heartbeat that comes back later begins anew."""
        with self._database.write() as connection:
            known = set(connection.execute(select(heartbeats.c.name)).scalars())
            for name in known - set(names):
                connection.execute(delete(heartbeats).where(heartbeats.c.name == name))


def _changed(beat: Beat, ping: Ping, at: datetime) -> dict[str, Any]:
    """The columns that one ping changes. A run's duration is known when its start was pinged too."""
    match ping.what:
        case "start":
            return {"started_at": at}
        case "success" | "fail":
            changed: dict[str, Any] = {"success_at" if ping.what == "success" else "failed_at": at, "exit_code": ping.exit_code}
            if beat.running:
                assert beat.started_at is not None
                changed["duration_s"] = max(0.0, (at - beat.started_at).total_seconds())
            return changed
        case _:
            return {}


def _begin(connection: Connection, name: str, now: datetime) -> Beat:
    connection.execute(insert(heartbeats).values(name=name, known_since=now))
    return Beat(known_since=now)


def _read(connection: Connection, name: str) -> Beat | None:
    row = connection.execute(select(heartbeats).where(heartbeats.c.name == name)).one_or_none()
    return None if row is None else _beat(row)


def _beat(row: Any) -> Beat:
    return Beat(row.known_since, row.success_at, row.started_at, row.failed_at, row.exit_code, row.duration_s, row.body)
