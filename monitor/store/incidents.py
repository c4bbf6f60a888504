"""Alerts, incidents and their timeline: what is known, and decisions committed whole or not at all."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Text, and_, cast, delete, false, func, or_, select, true, update

from alerts.decide import Known
from alerts.escalation import join
from monitor.domain import Alert, Decision, Incident, IncidentState, Labels, Severity, Standing, TimelineEntry
from monitor.errors import UsageError
from monitor.store.bulk import Lookup
from monitor.store.database import Database
from monitor.store.knowing import (
    ALERTS,
    FIRING,
    INCIDENTS,
    LIVE_ALERT,
    LIVE_INCIDENT,
    NO_CAUSES,
    Causes,
    Speaks,
    firing_in,
    known_about,
    known_to,
    read_alerts,
    read_incidents,
)
from monitor.store.plain_rows import alert_from, incident_from
from monitor.store.repeats import Repeat, Repeating
from monitor.store.rows import timeline_of
from monitor.store.saving import Saving
from monitor.store.schema import alerts, incidents, micros, outbox, timeline
from monitor.store.standings import candidates, standings

AT_ONCE = 200
"""Alerts read ahead where all of them are read."""
_BY_ID = Lookup(INCIDENTS, "id")


class IncidentStore:
    """All writes happen in one transaction each: alerts, incidents, timeline and outbox rows together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._saving = Saving(database.dialect)
        self._repeating = Repeating(database.dialect)

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
            known = known_about(connection, instance, groups, causes)
            decided = decision(known)
            if decided:
                self._saving.save(connection, decided, now)
            return decided

    def receive(
        self,
        repeats: Sequence[Repeat],
        sent: Callable[[bool], Sequence[Alert]],
        decision: Callable[[Known, Sequence[Alert]], Decision],
        now: datetime,
        speaks: Speaks,
    ) -> Decision:
        """Write repetitions, then decide about alerts that were sent, or end; one transaction, or none.

        ``sent`` gives these alerts, told whether every repetition met its row: if not, those sent again must be among them. ``speaks``
        says of an alert that nothing mutes it.
        """
        with self._database.write() as connection:
            alerts_sent = sent(self._repeating.run(connection, repeats))
            if not alerts_sent:
                return Decision()
            decided = decision(known_to(connection, alerts_sent, speaks), alerts_sent)
            if decided:
                self._saving.save(connection, decided, now)
            return decided

    def change(self, incident_id: str, decision: Callable[[Incident], Decision], now: datetime) -> tuple[Incident, Decision]:
        """Apply a decision to one incident, found by its id. Returns the incident as it is afterwards. Raises ``UsageError``."""
        with self._database.write() as connection:
            before = _find(connection, incident_id)
            decided = decision(before)
            if decided:
                self._saving.save(connection, decided, now)
            return (decided.incidents[-1] if decided.incidents else before), decided

    def change_each(self, incident_ids: Sequence[str], decision: Callable[[Incident], Decision], now: datetime) -> Decision:
        """Apply a decision to each of many incidents, all in one transaction. Those that are not there are passed over."""
        with self._database.write() as connection:
            decided = join(*(decision(incident_from(row)) for row in _BY_ID.rows(connection, incident_ids)))
            if decided:
                self._saving.save(connection, decided, now)
            return decided

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
                self._saving.save(connection, decided, now)
            return decided

    def standings(self, channel: str, since: datetime, limit: int) -> tuple[Standing, ...]:
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
                self._saving.save(connection, decided, now)
            return decided

    def due(self, now: datetime) -> tuple[str, ...]:
        """Ids of unresolved incidents that time alone changes by now: a step, a reminder, an acknowledgement that ends."""
        query = select(INCIDENTS.c.id).where(LIVE_INCIDENT, INCIDENTS.c.wake_at <= micros(now))
        with self._database.read() as connection:
            return tuple(connection.execute(query.order_by(INCIDENTS.c.severity)).scalars())

    def overdue_s(self, now: datetime) -> float:
        """How long ago the oldest moment passed at which time should have changed an incident; 0 when nothing is overdue."""
        query = select(func.min(incidents.c.wake_at, type_=incidents.c.wake_at.type)).where(
            incidents.c.state != IncidentState.RESOLVED.value
        )
        with self._database.read() as connection:
            oldest: datetime | None = connection.execute(query).scalar()
        return 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())

    def firing(self) -> tuple[Alert, ...]:
        """Every alert that fires now."""
        with self._database.read() as connection:
            return tuple(sorted(read_alerts(connection, FIRING), key=lambda alert: alert.fingerprint))

    @contextmanager
    def each_firing(self) -> Iterator[Iterator[Alert]]:
        """Every alert that fires now, one after the other in the order of their fingerprints, none of them kept."""
        query = select(ALERTS).where(FIRING).order_by(ALERTS.c.fingerprint)
        with self._database.read() as connection:
            yield map(alert_from, connection.execute(query, execution_options={"yield_per": AT_ONCE}))

    def firing_among(self, words: Iterable[Sequence[str]]) -> tuple[Alert, ...]:
        """Every alert that fires and has, as values of labels, all words of one of these lists; perhaps some that do not."""
        labels = cast(ALERTS.c.labels, Text)
        lists = [and_(true(), *(labels.contains(f'"{word}"') for word in some)) for some in words]
        with self._database.read() as connection:
            return tuple(sorted(read_alerts(connection, FIRING, or_(false(), *lists)), key=lambda alert: alert.fingerprint))

    def live_alerts(self) -> tuple[Alert, ...]:
        """Every alert that is pending or firing."""
        with self._database.read() as connection:
            return tuple(read_alerts(connection, LIVE_ALERT))

    def alerts_of(self, incident: Incident) -> tuple[Alert, ...]:
        """The alerts that fold into an incident; of one that is over, those of its group that ended while it was open."""
        over = incident.resolved_at
        ended = LIVE_ALERT if over is None else ALERTS.c.resolved_at.between(micros(incident.opened_at), micros(over))
        with self._database.read() as connection:
            return tuple(read_alerts(connection, ALERTS.c.group_key == incident.group, ended))

    def firing_by_group(self, groups: Iterable[str]) -> Mapping[str, Sequence[Alert]]:
        """The alerts that fire now in each of these groups."""
        with self._database.read() as connection:
            return firing_in(connection, groups)

    def firing_in(self, group: str) -> tuple[Alert, ...]:
        """The alerts of one group that fire now."""
        with self._database.read() as connection:
            return tuple(read_alerts(connection, FIRING, ALERTS.c.group_key == group))

    def common_labels(self, group: str) -> Labels:
        """What the labels of the alerts of one group that fire now, its own before those of its guests, have in common."""
        firing = self.firing_in(group)
        own = [alert for alert in firing if alert.home == group] or list(firing)
        return tuple(pair for pair in own[0].labels if all(pair in alert.labels for alert in own)) if own else ()

    def lapsed(self, now: datetime, limit: int, since: datetime | None = None) -> tuple[Alert, ...]:
        """Foreign alerts that fire though their end has come, so many at most; ``since``: only those sent at or after that moment."""
        sent = true() if since is None else ALERTS.c.updated_at >= micros(since)
        with self._database.read() as connection:
            return tuple(read_alerts(connection, FIRING, ALERTS.c.ends_at <= micros(now), sent, limit=limit))

    def live_instances(self) -> frozenset[str]:
        """Check instances with an alert that is pending or firing."""
        with self._database.read() as connection:
            return frozenset(connection.execute(select(ALERTS.c.instance).where(LIVE_ALERT).distinct()).scalars())

    def find(self, incident_id: str) -> Incident:
        """One incident by id or unique beginning of it. Raises ``UsageError`` naming what matches."""
        with self._database.read() as connection:
            return _find(connection, incident_id)

    def muted(self) -> tuple[Incident, ...]:
        """Unresolved incidents that tell nobody now."""
        with self._database.read() as connection:
            return tuple(read_incidents(connection, select(INCIDENTS).where(LIVE_INCIDENT, INCIDENTS.c.muted_at.is_not(None))))

    def list(self, *, unresolved: bool, since: datetime | None = None, limit: int = 200) -> tuple[Incident, ...]:
        """Incidents, the worst unresolved first, then the newest. ``since`` adds those that were open at or after that moment."""
        query = select(INCIDENTS)
        if unresolved:
            query = query.where(LIVE_INCIDENT)
        elif since is not None:
            query = query.where(or_(LIVE_INCIDENT, INCIDENTS.c.resolved_at >= micros(since)))
        query = query.order_by(LIVE_INCIDENT.desc(), INCIDENTS.c.severity, INCIDENTS.c.opened_at.desc()).limit(limit)
        with self._database.read() as connection:
            return tuple(read_incidents(connection, query))

    def open_counts(self) -> dict[tuple[str, str], int]:
        """How many incidents are not resolved, by (severity name, state)."""
        kinds = (incidents.c.severity, incidents.c.state)
        query = select(*kinds, func.count()).where(incidents.c.state != IncidentState.RESOLVED.value).group_by(*kinds)
        with self._database.read() as connection:
            return {(Severity(severity).name, state): count for severity, state, count in connection.execute(query)}

    def timeline(self, incident_id: str) -> tuple[TimelineEntry, ...]:
        query = select(timeline).where(timeline.c.incident_id == incident_id).order_by(timeline.c.id)
        with self._database.read() as connection:
            return tuple(timeline_of(row) for row in connection.execute(query).mappings())

    def add_timeline(self, entries: Iterable[TimelineEntry]) -> None:
        with self._database.write() as connection:
            self._saving.add_timeline(connection, entries)

    def prune(self, before: datetime) -> None:
        """Forget alerts, incidents, timeline and finished outbox rows that ended before that moment."""
        gone = select(incidents.c.id).where(incidents.c.resolved_at < before)
        with self._database.write() as connection:
            connection.execute(delete(timeline).where(timeline.c.incident_id.in_(gone)))
            connection.execute(delete(outbox).where(outbox.c.incident_id.in_(gone), outbox.c.state != "pending"))
            connection.execute(delete(alerts).where(alerts.c.resolved_at < before))
            pending = select(outbox.c.incident_id).where(outbox.c.state == "pending")
            connection.execute(delete(incidents).where(incidents.c.resolved_at < before, incidents.c.id.not_in(pending)))


def _find(connection: Connection, incident_id: str) -> Incident:
    if not incident_id or not incident_id.isalnum():
        raise UsageError(f"no incident {incident_id!r}: an id is twelve hex digits, or their beginning")
    query = select(INCIDENTS).where(INCIDENTS.c.id.startswith(incident_id, autoescape=True)).order_by(INCIDENTS.c.opened_at.desc())
    found = list(read_incidents(connection, query.limit(5)))
    exact = [incident for incident in found if incident.id == incident_id]
    if len(exact) == 1 or len(found) == 1:
        return (exact or found)[0]
    if found:
        raise UsageError(f"{incident_id!r} is the beginning of several incidents: {', '.join(one.id for one in found)}")
    raise UsageError(f"no incident {incident_id!r}: `monitor incidents --all` lists them")
