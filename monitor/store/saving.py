"""A decision as rows: alerts, incidents, timeline and outbox, each kind in one statement, in the caller's transaction."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Dialect, Text, bindparam, or_, select, update

from monitor.domain import Decision, Intent, Severity, TimelineEntry, Transition
from monitor.store.bulk import Query, among, insert_into, list_given, untyped, upsert_into
from monitor.store.plain_rows import TIMELINE, alert_values, incident_values, timeline_values
from monitor.store.schema import alerts, incidents, micros, outbox, timeline

OPENERS = tuple(kind.value for kind in (Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED, Transition.REMINDED))
"""What asks somebody to look."""
_OUTBOX = ("incident_id", "transition", "channel", "dedup_key", "reason", "severity", "state", "created_at", "attempts",
           "next_attempt_at", "finished_at")  # fmt: skip
_ROWS = untyped(outbox)


class _Waiting(NamedTuple):
    """A row of the outbox that nobody is sending yet."""

    id: int
    transition: str
    severity: int


class Saving:
    """The statements, compiled once for one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._alerts = upsert_into(alerts, dialect)
        self._incidents = upsert_into(incidents, dialect)
        self._timeline = insert_into(timeline, TIMELINE, dialect)
        self._outbox = insert_into(outbox, _OUTBOX, dialect)
        self._waiting = _waiting(dialect)
        self._dialect = dialect

    def save(self, connection: Connection, decision: Decision, now: datetime) -> None:
        """Write all of it. Of several versions of one alert or incident the last counts."""
        last_alerts = {alert.fingerprint: alert for alert in decision.alerts}
        self._alerts.run(connection, [alert_values(alert) for alert in last_alerts.values()])
        last_incidents = {incident.id: incident for incident in decision.incidents}
        self._incidents.run(connection, [incident_values(incident) for incident in last_incidents.values()])
        self.add_timeline(connection, decision.timeline)
        severities = {incident.id: incident.severity for incident in last_incidents.values()}
        needless = self._superseded(connection, decision.intents, severities, now)
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

    def _superseded(
        self, connection: Connection, intents: Sequence[Intent], severities: Mapping[str, Severity], now: datetime
    ) -> list[bool]:
        """Collapse what waits for the same incident and channel, and is not being sent now; True where the new row need not be sent either.

        A notification shows the incident as it is when it is sent: while one that asks still waits, another one that asks says nothing
        more; an acknowledgement that waits is overtaken by the end, and by what asks again: nobody has it any more.
        """
        waiting = self._waiting_for(connection, intents, now)
        if not waiting:
            return [False] * len(intents)
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

    def _waiting_for(self, connection: Connection, intents: Sequence[Intent], now: datetime) -> Mapping[tuple[str, str], list[_Waiting]]:
        """Pending rows that nobody is sending, by incident and channel, in their order."""
        found: dict[tuple[str, str], list[_Waiting]] = defaultdict(list)
        ids = sorted({intent.incident_id for intent in intents})
        if ids:
            for row in self._waiting.rows(connection, list_given(ids, self._dialect), "pending", micros(now)):
                found[row[0], row[1]].append(_Waiting(*row[2:]))
        return found


def _outbox_values(intent: Intent, severity: Severity, now: datetime, *, needless: bool) -> tuple[Any, ...]:
    at = micros(now)
    state, finished_at = ("superseded", at) if needless else ("pending", None)
    return (
        *(intent.incident_id, intent.transition.value, intent.channel, intent.incident_id, intent.reason, int(severity)),
        *(state, at, 0, at, finished_at),
    )


def _waiting(dialect: Dialect) -> Query:
    """Incident, channel, id, transition and severity of rows that wait and are not being sent, by a list of incidents and by now."""
    row = _ROWS.c
    idle = or_(row.lease_until.is_(None), row.lease_until <= bindparam("now", type_=BigInteger))
    query = select(row.incident_id, row.channel, row.id, row.transition, row.severity)
    query = query.where(among(row.incident_id, "ids", dialect), row.state == bindparam("state", type_=Text), idle).order_by(row.id)
    return Query(query, ("ids", "state", "now"), dialect)
