"""The state as it was recorded, opened for reading only: nothing in it is changed, upgraded or created."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from monitor.domain import Alert, Incident, Severity, Silence, TimelineEntry, Transition
from monitor.store.database import Database
from monitor.store.knowing import ALERTS, INCIDENTS, read_alerts, read_incidents
from monitor.store.rows import timeline_of
from monitor.store.saving import OPENERS
from monitor.store.schema import outbox, timeline
from monitor.store.silences import SilenceStore
from monitor.store.stretches import StretchStore
from monitor.stretches import Stretch


@dataclass(frozen=True, slots=True)
class Sent:
    """One notification as the outbox has it."""

    at: datetime
    """When it was decided."""
    incident_id: str
    transition: Transition
    channel: str
    reason: str
    severity: Severity
    state: str
    """pending, sent, dead or superseded."""

    @property
    def opens(self) -> bool:
        """Whether it asks somebody to do something."""
        return self.transition.value in OPENERS


class Recorded:
    """Opening raises ``StoreError`` when the state is not there or was written by another version."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, read_only=True)
        try:
            self._database.require_current()
        except BaseException:
            self._database.close()
            raise

    def stretches(self) -> Iterator[Stretch]:
        return StretchStore(self._database).all()

    def silences(self) -> tuple[Silence, ...]:
        return SilenceStore(self._database).list()

    def alerts(self) -> tuple[Alert, ...]:
        """Every alert in its last state."""
        with self._database.read() as connection:
            return tuple(read_alerts(connection, ALERTS.c.fingerprint != ""))

    def incidents(self) -> tuple[Incident, ...]:
        with self._database.read() as connection:
            return tuple(read_incidents(connection, select(INCIDENTS).order_by(INCIDENTS.c.opened_at)))

    def timeline(self) -> tuple[TimelineEntry, ...]:
        with self._database.read() as connection:
            return tuple(timeline_of(row) for row in connection.execute(select(timeline).order_by(timeline.c.id)).mappings())

    def sent(self) -> tuple[Sent, ...]:
        """Every notification that was decided, in that order."""
        names = ("incident_id", "transition", "channel", "reason", "severity", "state", "created_at")
        query = select(*(outbox.c[name] for name in names)).order_by(outbox.c.id)
        with self._database.read() as connection:
            return tuple(
                Sent(at, incident, Transition(transition), channel, reason, Severity(severity), state)
                for incident, transition, channel, reason, severity, state, at in connection.execute(query)
            )

    def close(self) -> None:
        self._database.close()
