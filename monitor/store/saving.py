"""A decision as rows: alerts, incidents, timeline and outbox, each kind in one statement, in the caller's transaction."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Dialect, or_, select, update

from monitor.domain import Decision, Intent, Severity, TimelineEntry, Transition
from monitor.store.bulk import insert_into, upsert_into
from monitor.store.plain_rows import TIMELINE, alert_values, incident_values, timeline_values
from monitor.store.schema import alerts, incidents, micros, outbox, timeline

OPENERS = tuple(kind.value for kind in (Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED, Transition.REMINDED))
"""What asks somebody to look."""
_OUTBOX = ("incident_id", "transition", "channel", "dedup_key", "reason", "severity", "state", "created_at", "attempts",
           "next_attempt_at", "finished_at")  # fmt: skip
_IDS_AT_ONCE = 10_000


class Saving:
    """The statements, compiled once for one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._alerts = upsert_into(alerts, dialect)
        self._incidents = upsert_into(incidents, dialect)
        self._timeline = insert_into(timeline, TIMELINE, dialect)
        self._outbox = insert_into(outbox, _OUTBOX, dialect)

    def save(self, connection: Connection, decision: Decision, now: datetime) -> None:
        """Write all of it. Of several versions of one alert or incident the last counts."""
        last_alerts = {alert.fingerprint: alert for alert in decision.alerts}
        self._alerts.run(connection, [alert_values(alert) for alert in last_alerts.values()])
        last_incidents = {incident.id: incident for incident in decision.incidents}
        self._incidents.run(connection, [incident_values(incident) for incident in last_incidents.values()])
        self.add_timeline(connection, decision.timeline)
        severities = {incident.id: incident.severity for incident in last_incidents.values()}
        needless = _superseded(connection, decision.intents, severities, now)
        self._outbox.run(
            connection,
            [
                _outbox_values(intent, severities[intent.incident_id], now, needless=superseded)
                for intent, superseded in zip(decision.intents, needless, strict=True)
            ],
        )

    def add_timeline(self, connection: Connection, entries: Iterable[TimelineEntry]) -> None:
        """Write lines of incidents' histories."""
        self._timeline.run(connection, [timeline_values(entry) for entry in entries])


def _outbox_values(intent: Intent, severity: Severity, now: datetime, *, needless: bool) -> tuple[Any, ...]:
    at = micros(now)
    state, finished_at = ("superseded", at) if needless else ("pending", None)
    return (
        *(intent.incident_id, intent.transition.value, intent.channel, intent.incident_id, intent.reason, int(severity)),
        *(state, at, 0, at, finished_at),
    )


def _superseded(connection: Connection, intents: Sequence[Intent], severities: Mapping[str, Severity], now: datetime) -> list[bool]:
    """Collapse what waits for the same incident and channel, and is not being sent now; True where the new row need not be sent either.

    A notification shows the incident as it is when it is sent: while one that asks still waits, another one that asks says nothing
    more; an acknowledgement that waits is overtaken by the end, and by what asks again: nobody has it any more.
    """
    waiting = _waiting(connection, {intent.incident_id for intent in intents}, now) if intents else {}
    needless = []
    for intent in intents:
        waits = waiting.get((intent.incident_id, intent.channel), [])
        overtaken = False
        if intent.transition is not Transition.ACKED:
            taken = [row.id for row in waits if row.transition == Transition.ACKED.value]
            waits = [row for row in waits if row.transition != Transition.ACKED.value]
            if taken:
                connection.execute(update(outbox).where(outbox.c.id.in_(taken)).values(state="superseded", finished_at=now))
        if intent.transition.value in OPENERS and waits and waits[-1].transition in OPENERS:
            overtaken = True
            severity = int(severities[intent.incident_id])
            worse = update(outbox).where(outbox.c.id == waits[-1].id, outbox.c.severity > severity)
            if waits[-1].severity > severity:
                connection.execute(worse.values(severity=severity))
        needless.append(overtaken)
    return needless


def _waiting(connection: Connection, ids: Iterable[str], now: datetime) -> dict[tuple[str, str], list[Any]]:
    """Pending rows that nobody is sending, by incident and channel, in their order."""
    idle = or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= now)
    columns = (outbox.c.id, outbox.c.incident_id, outbox.c.channel, outbox.c.transition, outbox.c.severity)
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for some in _portions(sorted(ids)):
        query = select(*columns).where(outbox.c.incident_id.in_(some), outbox.c.state == "pending", idle).order_by(outbox.c.id)
        for row in connection.execute(query):
            found[row.incident_id, row.channel].append(row)
    return found


def _portions(ids: list[str]) -> Iterable[list[str]]:
    """As many as a statement may name."""
    return (ids[first : first + _IDS_AT_ONCE] for first in range(0, len(ids), _IDS_AT_ONCE))
