"""Why people were told of an incident, or were not, and what happens next: the decisions of this package in words. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from alerts.muting import Muting, muted_by
from alerts.oncall import People
from monitor.domain import Alert, AlertPolicy, AlertState, Incident, IncidentState


@dataclass(frozen=True, slots=True)
class Coming:
    """Something that time alone will do, unless something happens before."""

    at: datetime
    what: str


@dataclass(frozen=True, slots=True)
class Explanation:
    because: tuple[str, ...]
    """Why the incident is there: its alerts, its own first."""
    told: tuple[str, ...]
    """Which steps have been taken, and why it is quiet if it is."""
    coming: tuple[Coming, ...]
    """In the order of time; empty when nothing more will happen by itself."""
    ends: str
    """What ends it."""


def explain(incident: Incident, alerts: Iterable[Alert], muting: Muting, people: People, now: datetime) -> Explanation:
    """Everything about one incident as it stands now; ``alerts`` are those of its group, of any state."""
    alerts = tuple(alerts)
    firing = [alert for alert in alerts if alert.state is AlertState.FIRING]
    own_first = sorted(alerts, key=lambda one: (one.home != incident.group, one.severity))
    return Explanation(
        because=tuple(describe(alert, incident.group) for alert in own_first),
        told=_told(incident, muted_by(firing, incident.group, muting, now)),
        coming=() if incident.state is IncidentState.RESOLVED else tuple(_coming(incident, muting, people, now)),
        ends=_ends(incident, firing),
    )


def describe(alert: Alert, group: str = "", policy: AlertPolicy | None = None) -> str:
    """One alert in one line: what it is, how it stands, and how it got here."""
    name = dict(alert.labels).get("alertname", "alert")
    role = f", a symptom that joined from {alert.home}" if group and alert.home != group else ""
    match alert.state:
        case AlertState.FIRING:
            since = f" since {alert.firing_since:%Y-%m-%d %H:%M:%S} UTC" if alert.firing_since else ""
            stands = f"fires{since}{_getting_well(alert, policy)}"
        case AlertState.PENDING:
            needed = f" of {policy.fail_after}" if policy else ""
            runs = "bad run" if alert.bad_runs == 1 and not policy else "bad runs"
            long = f", and not before {_moment(alert.pending_since, policy.fail_for_s)}" if policy and policy.fail_for_s else ""
            stands = f"pending, {alert.bad_runs}{needed} {runs} in a row{long}: nobody is told yet"
        case _:
            stands = f"over since {alert.resolved_at:%Y-%m-%d %H:%M:%S} UTC" if alert.resolved_at else "over"
    return f"{alert.severity.name} {name} on {alert.service} by {alert.instance}, {stands}{role}: {alert.summary}"


def rule(policy: AlertPolicy) -> str:
    """When an alert of a check fires, and when it is over."""
    fires = _streak(policy.fail_after, policy.fail_for_s, "bad run", "bad runs")
    return f"an alert fires {fires} and is over {_streak(policy.recover_after, policy.recover_for_s, 'good one', 'good ones')}"


def _streak(count: int, seconds: float, one: str, several: str) -> str:
    lasting = f"go on for {f'{seconds / 60:g} min' if seconds >= 60 else f'{seconds:g} s'}"
    if count == 1:
        return f"when {several} {lasting}" if seconds else f"at the first {one}"
    return f"after {count} {several} in a row{f' that {lasting}' if seconds else ''}"


def _getting_well(alert: Alert, policy: AlertPolicy | None) -> str:
    if not alert.good_runs:
        return ""
    needed = f" of {policy.recover_after}" if policy else ""
    said = f", {alert.good_runs}{needed} good runs so far"
    if policy is None or alert.good_since is None or not policy.recover_for_s:
        return said
    return f"{said}, and not over before {_moment(alert.good_since, policy.recover_for_s)}"


def _moment(since: datetime, seconds: float) -> str:
    return f"{since + timedelta(seconds=seconds):%H:%M:%S} UTC"


def _told(incident: Incident, muted: tuple[str, ...]) -> tuple[str, ...]:
    said = []
    for number, step in enumerate(incident.chain[: incident.step]):
        said.append(f"step {number + 1}, {step.who}: taken")
    if muted:
        said.append(f"nobody is told now: {'; '.join(muted)}")
    elif incident.muted:
        said.append(f"nobody was told: {'; '.join(incident.muted)}; that has ended, and people are asked within a second")
    if incident.told:
        said.append(f"these channels hear every change and the end: {', '.join(incident.told)}")
    elif not incident.muted:
        said.append("no channel has been told")
    if incident.state is IncidentState.ACKED:
        said.append(f"escalation stands still: {incident.acked_by} has it")
    if incident.breached_at is not None:
        said.append(f"the response time passed at {incident.breached_at:%H:%M:%S} UTC without an acknowledgement")
    return tuple(said)


def _coming(incident: Incident, muting: Muting, people: People, now: datetime) -> list[Coming]:
    found = []
    if incident.state is IncidentState.OPEN and not incident.muted:
        for number in range(incident.step, len(incident.chain)):
            step = incident.chain[number]
            at = people.earliest(step, incident.chain_since + timedelta(seconds=step.after_s))
            reached = people.reach(step, max(at, now))
            who = f"{step.who} ({', '.join(reached.people)})" if reached.people else step.who
            means = f"by {', '.join(reached.channels)}" if reached.channels else "but nobody is on call: the step after it is taken at once"
            found.append(Coming(at, f"step {number + 1}: {who} is told {means}, unless somebody acknowledges"))
        if incident.breaches_at is not None:
            found.append(Coming(incident.breaches_at, "the response time passes, which is recorded"))
        if incident.remind_at is not None:
            found.append(Coming(incident.remind_at, "everybody told hears that it is still open"))
    if incident.ack_expires_at is not None:
        found.append(Coming(incident.ack_expires_at, f"the acknowledgement of {incident.acked_by} ends, and the first step is taken again"))
    if incident.muted:
        ends = [silence.ends_at for silence in muting.silences if silence.starts_at <= now < silence.ends_at]
        ends += [until for window in muting.windows if (until := window.active_until(now)) is not None]
        if ends:
            found.append(Coming(min(ends), "the first of what mutes ends; the ladder goes on once nothing mutes it"))
    return sorted(found, key=lambda one: one.at)


def _ends(incident: Incident, firing: list[Alert]) -> str:
    if incident.state is IncidentState.RESOLVED:
        return f"it is over since {incident.resolved_at:%Y-%m-%d %H:%M:%S} UTC" if incident.resolved_at else "it is over"
    names = sorted({alert.instance for alert in firing})
    return f"it ends when {', '.join(names)} {'sees' if len(names) == 1 else 'see'} health again" if names else "nothing fires any more"
