"""Moving everything that waits for a moment when the wall clock itself was moved."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, select, type_coerce, update

from monitor.domain import AlertState, Decision, Incident, IncidentState, TimelineEntry
from monitor.store.database import Database
from monitor.store.rows import incident_of
from monitor.store.saving import Saving
from monitor.store.schema import alerts, incidents, outbox


class StepStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._saving = Saving(database.dialect)

    def move(self, by: timedelta, moved: Callable[[Incident], Incident], now: datetime, said: str) -> int:
        """Move what waits by so much, in one transaction: unresolved incidents, pending notifications, live alerts.

        ``moved`` says how an incident moves, ``said`` goes to its timeline. An end that a foreign alert's sender named stays. Returns how
        many incidents moved.
        """
        with self._database.write() as connection:
            pending = outbox.c.state == "pending"
            connection.execute(update(outbox).where(pending).values({name: _later(outbox.c[name], by) for name in _OUTBOX}))
            live = alerts.c.state != AlertState.RESOLVED.value
            connection.execute(update(alerts).where(live).values({name: _later(alerts.c[name], by) for name in _ALERTS}))
            unsaid = update(alerts).where(live, alerts.c.ends_unsaid).values(ends_at=_later(alerts.c.ends_at, by))
            connection.execute(unsaid)
            waiting = select(incidents).where(incidents.c.state != IncidentState.RESOLVED.value)
            found = [incident_of(row) for row in connection.execute(waiting).mappings()]
            said_of_each = tuple(TimelineEntry(incident.id, now, "note", said) for incident in found)
            self._saving.save(connection, Decision(incidents=tuple(map(moved, found)), timeline=said_of_each), now)
            return len(found)


_OUTBOX = ("created_at", "next_attempt_at", "lease_until")
_ALERTS = ("pending_since", "good_since")


def _later(column: Any, by: timedelta) -> Any:
    """SQL: the moment that much later; no moment stays none."""
    return type_coerce(column, BigInteger) + by // timedelta(microseconds=1)
