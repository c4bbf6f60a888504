"""Alerts, incidents and their timeline: what is known, and decisions committed whole or not at all."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from alerts.decide import Known
from monitor.domain import Alert, AlertState, Decision, Incident, IncidentState, Severity, Standing, TimelineEntry
from monitor.errors import UsageError
from monitor.store.database import Database
from monitor.store.outbox import supersede
from monitor.store.rows import alert_of, alert_row, incident_of, incident_row, timeline_of
from monitor.store.schema import alerts, incidents, outbox, timeline
from monitor.store.standings import candidates, standings

_LIVE_ALERT = alerts.c.state != AlertState.RESOLVED.value
_LIVE_INCIDENT = incidents.c.state != IncidentState.RESOLVED.value


@dataclass(frozen=True, slots=True)
class Causes:
    """Where to look for the cause of an instance's findings: services whose fall explains them, and single check instances."""

    services: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    since: datetime | None = None
    """What fired and ended at or after this moment is a suspect too: its echo may still be seen."""

    def __bool__(self) -> bool:
        return bool(self.services or self.instances)


NO_CAUSES = Causes()


class IncidentStore:
    """All writes happen in one transaction each: alerts, incidents, timeline and outbox rows together."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def decide(
        self,
        instance: str,
        groups: Collection[str],
        decision: Callable[[Known], Decision],
        now: datetime,
        causes: Causes = NO_CAUSES,
    ) -> Decision:
        """Read what is known about an instance, the groups it touches and its possible causes, decide, commit. Returns what was decided."""
        with self._database.write() as connection:
            known = _known(connection, instance, groups, causes)
            decided = decision(known)
            if decided:
                self._save(connection, decided, now)
            return decided

    def change(self, incident_id: str, decision: Callable[[Incident], Decision], now: datetime) -> tuple[Incident, Decision]:
        """Apply a decision to one incident, found by its id. Returns the incident as it is afterwards. Raises ``UsageError``."""
        with self._database.write() as connection:
            before = _find(connection, incident_id)
            decided = decision(before)
            if decided:
                self._save(connection, decided, now)
            return (decided.incidents[-1] if decided.incidents else before), decided

    def reroute(self, row_id: int, incident_id: str, decision: Callable[[Incident], Decision], now: datetime) -> Decision:
        """Apply a decision because an outbox row reached nobody, once a row: the row remembers. Raises ``UsageError``.

        An empty decision is asked for again later, unless the incident is over.
        """
        with self._database.write() as connection:
            incident = _find(connection, incident_id)
            decided = decision(incident)
            if decided or incident.state is IncidentState.RESOLVED:
                mark = update(outbox).where(outbox.c.id == row_id, outbox.c.fallback_at.is_(None)).values(fallback_at=now)
                if connection.execute(mark).rowcount == 0:
                    return Decision()
            if decided:
                self._save(connection, decided, now)
            return decided

    def standings(self, channel: str, since: datetime, limit: int = 1000) -> tuple[Standing, ...]:
        """What a channel was told of and owes nothing more: of what is not over, and of what ended since then; the worst first."""
        with self._database.read() as connection:
            chosen = candidates(connection, since, limit)
            known = {standing.incident.id: standing for standing in standings(connection, channel, chosen)}
        return tuple(known[incident.id] for incident in chosen if incident.id in known)

    def change_standing(self, standing: Standing, decision: Callable[[Sequence[str]], Decision], now: datetime) -> Decision:
        """Apply a decision, made of the incident's timeline, if the incident still stands on its channel as it did; else nothing."""
        with self._database.write() as connection:
            if standings(connection, standing.channel, [_find(connection, standing.incident.id)]) != (standing,):
                return Decision()
            lines = select(timeline.c.text).where(timeline.c.incident_id == standing.incident.id).order_by(timeline.c.id)
            decided = decision(connection.execute(lines).scalars().all())
            if decided:
                self._save(connection, decided, now)
            return decided

    def due(self, now: datetime) -> tuple[str, ...]:
        """Ids of unresolved incidents that time alone changes by now: a step, a reminder, an acknowledgement that ends."""
        query = select(incidents.c.id).where(_LIVE_INCIDENT, incidents.c.wake_at <= now)
        with self._database.read() as connection:
            return tuple(connection.execute(query.order_by(incidents.c.severity)).scalars())

    def overdue_s(self, now: datetime) -> float:
        """How long ago the oldest moment passed at which time should have changed an incident; 0 when nothing is overdue."""
        query = select(func.min(incidents.c.wake_at, type_=incidents.c.wake_at.type)).where(_LIVE_INCIDENT)
        with self._database.read() as connection:
            oldest: datetime | None = connection.execute(query).scalar()
        return 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())

    def firing(self) -> tuple[Alert, ...]:
        """Every alert that fires now."""
        query = select(alerts).where(alerts.c.state == AlertState.FIRING.value).order_by(alerts.c.fingerprint)
        with self._database.read() as connection:
            return tuple(alert_of(row) for row in connection.execute(query).mappings())

    def live_alerts(self) -> tuple[Alert, ...]:
        """Every alert that is pending or firing."""
        with self._database.read() as connection:
            return tuple(alert_of(row) for row in connection.execute(select(alerts).where(_LIVE_ALERT)).mappings())

    def alerts_of(self, incident: Incident) -> tuple[Alert, ...]:
        """The alerts that fold into an incident; of one that is over, those of its group that ended while it was open."""
        query = select(alerts).where(alerts.c.group_key == incident.group)
        if incident.resolved_at is None:
            query = query.where(_LIVE_ALERT)
        else:
            query = query.where(alerts.c.resolved_at >= incident.opened_at, alerts.c.resolved_at <= incident.resolved_at)
        with self._database.read() as connection:
            return tuple(alert_of(row) for row in connection.execute(query).mappings())

    def firing_in(self, group: str) -> tuple[Alert, ...]:
        """The alerts of one group that fire now."""
        query = select(alerts).where(alerts.c.state == AlertState.FIRING.value, alerts.c.group_key == group)
        with self._database.read() as connection:
            return tuple(alert_of(row) for row in connection.execute(query).mappings())

    def lapsed_groups(self, now: datetime, limit: int = 1000) -> tuple[str, ...]:
        """Groups with foreign alerts whose end has come."""
        query = select(alerts.c.group_key).where(_LIVE_ALERT, alerts.c.ends_at <= now).distinct().limit(limit)
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def live_instances(self) -> frozenset[str]:
        """Check instances with an alert that is pending or firing."""
        with self._database.read() as connection:
            return frozenset(connection.execute(select(alerts.c.instance).where(_LIVE_ALERT).distinct()).scalars())

    def find(self, incident_id: str) -> Incident:
        """One incident by id or unique beginning of it. Raises ``UsageError`` naming what matches."""
        with self._database.read() as connection:
            return _find(connection, incident_id)

    def list(self, *, unresolved: bool, since: datetime | None = None, limit: int = 200) -> tuple[Incident, ...]:
        """Incidents, the worst unresolved first, then the newest. ``since`` adds those that were open at or after that moment."""
        query = select(incidents)
        if unresolved:
            query = query.where(_LIVE_INCIDENT)
        elif since is not None:
            query = query.where(or_(_LIVE_INCIDENT, incidents.c.resolved_at >= since))
        query = query.order_by(_LIVE_INCIDENT.desc(), incidents.c.severity, incidents.c.opened_at.desc()).limit(limit)
        with self._database.read() as connection:
            return tuple(incident_of(row) for row in connection.execute(query).mappings())

    def open_counts(self) -> dict[tuple[str, str], int]:
        """How many incidents are not resolved, by (severity name, state)."""
        kinds = (incidents.c.severity, incidents.c.state)
        query = select(*kinds, func.count()).where(_LIVE_INCIDENT).group_by(*kinds)
        with self._database.read() as connection:
            return {(Severity(severity).name, state): count for severity, state, count in connection.execute(query)}

    def timeline(self, incident_id: str) -> tuple[TimelineEntry, ...]:
        query = select(timeline).where(timeline.c.incident_id == incident_id).order_by(timeline.c.id)
        with self._database.read() as connection:
            return tuple(timeline_of(row) for row in connection.execute(query).mappings())

    def add_timeline(self, entries: Iterable[TimelineEntry]) -> None:
        rows = [_timeline_row(entry) for entry in entries]
        with self._database.write() as connection:
            connection.execute(insert(timeline), rows)

    def prune(self, before: datetime) -> None:
        """Forget alerts, incidents, timeline and finished outbox rows that ended before that moment."""
        gone = select(incidents.c.id).where(incidents.c.resolved_at < before)
        with self._database.write() as connection:
            connection.execute(delete(timeline).where(timeline.c.incident_id.in_(gone)))
            connection.execute(delete(outbox).where(outbox.c.incident_id.in_(gone), outbox.c.state != "pending"))
            connection.execute(delete(alerts).where(alerts.c.resolved_at < before))
            pending = select(outbox.c.incident_id).where(outbox.c.state == "pending")
            connection.execute(delete(incidents).where(incidents.c.resolved_at < before, incidents.c.id.not_in(pending)))

    def _save(self, connection: Connection, decision: Decision, now: datetime) -> None:
        upsert: Any = sqlite.insert if self._database.is_sqlite else postgresql.insert
        if decision.alerts:
            last = {alert.fingerprint: alert for alert in decision.alerts}
            new = upsert(alerts)
            columns = {column.name: new.excluded[column.name] for column in alerts.columns if not column.primary_key}
            statement = new.on_conflict_do_update(index_elements=["fingerprint"], set_=columns)
            connection.execute(statement, [alert_row(alert) for alert in last.values()])
        severities: dict[str, int] = {}
        for incident in decision.incidents:
            row = incident_row(incident)
            severities[incident.id] = int(incident.severity)
            if connection.execute(update(incidents).where(incidents.c.id == incident.id).values(row)).rowcount == 0:
                connection.execute(insert(incidents).values(row))
        if decision.timeline:
            connection.execute(insert(timeline), [_timeline_row(entry) for entry in decision.timeline])
        if decision.intents:
            rows_out = [
                {
                    "incident_id": intent.incident_id,
                    "transition": intent.transition.value,
                    "channel": intent.channel,
                    "dedup_key": intent.incident_id,
                    "reason": intent.reason,
                    "severity": severities[intent.incident_id],
                    "state": "superseded" if superseded else "pending",
                    "created_at": now,
                    "attempts": 0,
                    "next_attempt_at": now,
                    "finished_at": now if superseded else None,
                }
                for intent in decision.intents
                for superseded in (supersede(connection, intent, severities[intent.incident_id], now),)
            ]
            connection.execute(insert(outbox), rows_out)


def _known(connection: Connection, instance: str, groups: Collection[str], causes: Causes) -> Known:
    mine = select(alerts.c.group_key).where(_LIVE_ALERT, alerts.c.instance == instance)
    felled = and_(alerts.c.fells, alerts.c.service.in_(sorted(causes.services)))
    suspects = select(alerts).where(or_(felled, alerts.c.instance.in_(sorted(causes.instances))))
    if causes.since is None:
        suspects = suspects.where(_LIVE_ALERT)
    else:
        suspects = suspects.where(or_(_LIVE_ALERT, and_(alerts.c.firing_since.is_not(None), alerts.c.resolved_at >= causes.since)))
    found = tuple(alert_of(row) for row in connection.execute(suspects).mappings()) if causes else ()
    touched = sorted({*groups, *connection.execute(mine).scalars(), *(cause.group for cause in found)})
    if not touched:
        return Known()
    live = select(alerts).where(_LIVE_ALERT, alerts.c.group_key.in_(touched))
    opened = select(incidents).where(_LIVE_INCIDENT, incidents.c.group_key.in_(touched))
    return Known(
        alerts=tuple(alert_of(row) for row in connection.execute(live).mappings()),
        incidents={row["group_key"]: incident_of(row) for row in connection.execute(opened).mappings()},
        causes=found,
    )


def _find(connection: Connection, incident_id: str) -> Incident:
    if not incident_id or not incident_id.isalnum():
        raise UsageError(f"no incident {incident_id!r}: an id is twelve hex digits, or their beginning")
    query = select(incidents).where(incidents.c.id.startswith(incident_id, autoescape=True)).order_by(incidents.c.opened_at.desc())
    rows = connection.execute(query.limit(5)).mappings().all()
    exact = [row for row in rows if row["id"] == incident_id]
    if len(exact) == 1 or len(rows) == 1:
        return incident_of((exact or rows)[0])
    if rows:
        raise UsageError(f"{incident_id!r} is the beginning of several incidents: {', '.join(row['id'] for row in rows)}")
    raise UsageError(f"no incident {incident_id!r}: `monitor incidents --all` lists them")


def _timeline_row(entry: TimelineEntry) -> dict[str, object]:
    return {"incident_id": entry.incident_id, "at": entry.at, "kind": entry.kind, "text": entry.text, "actor": entry.actor}
