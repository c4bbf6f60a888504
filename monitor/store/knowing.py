"""What a decision must know, read in its transaction: the alerts and incidents of the groups it can touch, and no more than that."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, literal_column, or_, select

from alerts.decide import Known
from monitor.domain import Alert, AlertState, Incident, IncidentState
from monitor.store.bulk import Lookup, untyped
from monitor.store.plain_rows import alert_from, incident_from
from monitor.store.schema import alerts, incidents, micros

ALERTS = untyped(alerts)
INCIDENTS = untyped(incidents)
# literals: a partial index serves a condition only where its text is in the statement
LIVE_ALERT = ALERTS.c.state != literal_column(f"'{AlertState.RESOLVED.value}'")
LIVE_INCIDENT = INCIDENTS.c.state != literal_column(f"'{IncidentState.RESOLVED.value}'")
FIRING = and_(LIVE_ALERT, ALERTS.c.state == literal_column(f"'{AlertState.FIRING.value}'"))
_BY_PRINT = Lookup(ALERTS, "fingerprint", LIVE_ALERT)
_BY_GROUP = Lookup(ALERTS, "group_key", LIVE_ALERT)
_OPEN_BY_GROUP = Lookup(INCIDENTS, "group_key", LIVE_INCIDENT)
WITNESSES = 20
"""So many alerts of a large group are looked at before all of them are."""

Speaks = Callable[[Alert], bool]
"""Whether nothing mutes an alert."""


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


def known_about(connection: Connection, instance: str, groups: Collection[str], causes: Causes) -> Known:
    """Everything about an instance, the groups it touches and its possible causes."""
    felled = and_(ALERTS.c.fells, ALERTS.c.service.in_(sorted(causes.services)))
    suspects = or_(felled, ALERTS.c.instance.in_(sorted(causes.instances)))
    echoes = LIVE_ALERT if causes.since is None else or_(LIVE_ALERT, _ended_since(causes.since))
    found = tuple(read_alerts(connection, echoes, suspects)) if causes else ()
    mine = select(ALERTS.c.group_key).where(LIVE_ALERT, ALERTS.c.instance == instance).distinct()
    touched = sorted({*groups, *connection.execute(mine).scalars(), *(cause.group for cause in found)})
    if not touched:
        return Known()
    return Known(alerts=_live_in(connection, touched), incidents=_open_in(connection, touched), causes=found)


def known_to(connection: Connection, sent: Sequence[Alert], speaks: Speaks) -> Known:
    """What decides about alerts that were sent, or end: what is known of them, and of each group as much as it takes.

    A group without an incident is read whole. Where an incident is open, it stays open, and nobody is muted, as long as one alert of
    its own fires that nothing mutes: one such alert, sent or known, stands for all the others, so that a group of thousands costs no more
    than a small one. Where none is found, or one is worse than the incident, the whole group is read.
    """
    latest = {alert.fingerprint: alert for alert in sent}
    known = {alert.fingerprint: alert for alert in map(alert_from, _BY_PRINT.rows(connection, latest))}
    in_group: dict[str, list[Alert]] = defaultdict(list)
    for print_, alert in latest.items():
        in_group[known[print_].group if print_ in known else alert.group].append(alert)
    opened = _open_in(connection, in_group)
    whole = []
    for group, mine in in_group.items():
        incident = opened.get(group)
        if incident is None or not _is_settled(incident, mine, speaks):
            witnesses = _witnesses(connection, group, mine) if incident is not None and not _worsens(incident, mine) else []
            if any(alert.home == group and speaks(alert) for alert in witnesses):
                known |= {alert.fingerprint: alert for alert in witnesses}
            else:
                whole.append(group)
    if whole:
        known |= {alert.fingerprint: alert for alert in _live_in(connection, whole)}
    return Known(alerts=tuple(known.values()), incidents=opened)


def read_alerts(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> Iterable[Alert]:
    """The alerts of which all of this is true."""
    query = select(ALERTS).where(*where).limit(limit)
    return (alert_from(row) for row in connection.execute(query))


def read_incidents(connection: Connection, query: Any) -> Iterable[Incident]:
    """The incidents of a query over ``INCIDENTS``."""
    return (incident_from(row) for row in connection.execute(query))


def _ended_since(moment: datetime) -> ColumnElement[bool]:
    return and_(ALERTS.c.firing_since.is_not(None), ALERTS.c.resolved_at >= micros(moment))


def _live_in(connection: Connection, groups: Iterable[str]) -> tuple[Alert, ...]:
    return tuple(map(alert_from, _BY_GROUP.rows(connection, groups)))


def _open_in(connection: Connection, groups: Iterable[str]) -> Mapping[str, Incident]:
    return {incident.group: incident for incident in map(incident_from, _OPEN_BY_GROUP.rows(connection, groups))}


def _is_settled(incident: Incident, mine: Iterable[Alert], speaks: Speaks) -> bool:
    """Whether what was sent is enough to know that the incident goes on as it is."""
    firing = [alert for alert in mine if alert.state is AlertState.FIRING and alert.home == incident.group]
    return not _worsens(incident, firing) and any(speaks(alert) for alert in firing)


def _worsens(incident: Incident, mine: Iterable[Alert]) -> bool:
    return any(alert.state is AlertState.FIRING and alert.severity < incident.severity for alert in mine)


def _witnesses(connection: Connection, group: str, mine: Iterable[Alert]) -> list[Alert]:
    """Some of the others that fire in the group."""
    others = ALERTS.c.fingerprint.not_in(sorted(alert.fingerprint for alert in mine))
    return list(read_alerts(connection, FIRING, ALERTS.c.group_key == group, others, limit=WITNESSES))


def firing_in(connection: Connection, groups: Iterable[str]) -> dict[str, list[Alert]]:
    """What fires in each of these groups."""
    found: dict[str, list[Alert]] = defaultdict(list)
    for alert in _live_in(connection, groups):
        if alert.state is AlertState.FIRING:
            found[alert.group].append(alert)
    return found
