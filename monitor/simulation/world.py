"""Alerts and incidents of a simulation, in memory: what is known before a decision, and what it changes.

It answers exactly what the store answers (``monitor.store.knowing``), and decides nothing.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from alerts.decide import Known
from monitor.domain import Alert, AlertState, Decision, Incident, IncidentState, Severity, Transition
from monitor.store import Causes

Alerts = dict[str, Alert]
"""By fingerprint."""


@dataclass(frozen=True, slots=True)
class Told:
    """One notification that was decided."""

    at: datetime
    incident_id: str
    transition: Transition
    channel: str
    reason: str
    severity: Severity


class World:
    def __init__(self) -> None:
        self.incidents: dict[str, Incident] = {}
        self.told: list[Told] = []
        self._open: dict[str, Incident] = {}
        self._of_instance: dict[str, Alerts] = defaultdict(dict)
        """Live and ended ones, as in the table of alerts; so are those that fell a service."""
        self._felling: dict[str, Alerts] = defaultdict(dict)
        self._in_group: dict[str, Alerts] = defaultdict(dict)
        """Live ones only."""

    def known(self, instance: str, groups: Collection[str], causes: Causes) -> Known:
        """What is remembered about an instance, the groups it touches and its possible causes."""
        suspects: Alerts = {}
        for service in causes.services:
            suspects |= self._felling[service]
        for other in causes.instances:
            suspects |= self._of_instance[other]
        found = tuple(alert for alert in suspects.values() if _is_suspect(alert, causes.since))
        touched = {*groups, *(alert.group for alert in self.live(instance)), *(cause.group for cause in found)}
        alerts = {print_: alert for group in sorted(touched) for print_, alert in self._in_group[group].items()}
        return Known(tuple(alerts.values()), {group: self._open[group] for group in touched if group in self._open}, found)

    def live(self, instance: str) -> tuple[Alert, ...]:
        """The alerts of an instance that are pending or firing."""
        return tuple(alert for alert in self._of_instance[instance].values() if alert.state is not AlertState.RESOLVED)

    def firing_in(self, group: str) -> tuple[Alert, ...]:
        return tuple(alert for alert in self._in_group[group].values() if alert.state is AlertState.FIRING)

    def firing(self) -> tuple[Alert, ...]:
        """Every alert that fires, in the order of the store."""
        found = [alert for alerts in self._in_group.values() for alert in alerts.values() if alert.state is AlertState.FIRING]
        return tuple(sorted(found, key=lambda alert: alert.fingerprint))

    def unresolved(self) -> tuple[Incident, ...]:
        return tuple(self._open.values())

    def open_in(self, group: str) -> Incident | None:
        return self._open.get(group)

    def find(self, fingerprint: str, instance: str) -> Alert | None:
        """A live alert of an instance."""
        found = self._of_instance[instance].get(fingerprint)
        return None if found is None or found.state is AlertState.RESOLVED else found

    def keep(self, decided: Decision, at: datetime) -> None:
        """Take over what was decided."""
        for alert in decided.alerts:
            self._keep_alert(alert)
        for incident in decided.incidents:
            self.incidents[incident.id] = incident
            if incident.state is IncidentState.RESOLVED:
                self._open.pop(incident.group, None)
            else:
                self._open[incident.group] = incident
        for intent in decided.intents:
            severity = self.incidents[intent.incident_id].severity
            self.told.append(Told(at, intent.incident_id, intent.transition, intent.channel, intent.reason, severity))

    def _keep_alert(self, alert: Alert) -> None:
        before = self._of_instance[alert.instance].get(alert.fingerprint)
        if before is not None:
            self._in_group[before.group].pop(alert.fingerprint, None)
        self._of_instance[alert.instance][alert.fingerprint] = alert
        if alert.fells:
            self._felling[alert.service][alert.fingerprint] = alert
        if alert.state is not AlertState.RESOLVED:
            self._in_group[alert.group][alert.fingerprint] = alert


def _is_suspect(alert: Alert, since: datetime | None) -> bool:
    if alert.state is not AlertState.RESOLVED:
        return True
    fired, ended = alert.firing_since is not None, alert.resolved_at
    return since is not None and fired and ended is not None and ended >= since
