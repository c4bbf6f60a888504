"""What a check's result changes: pure functions of (known state, input, policy, now).

Nothing here reads a clock, a store or a configuration file; the engine commits what is decided in one transaction.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from alerts import escalation
from alerts.escalation import join
from alerts.fingerprint import fingerprint
from alerts.muting import Muting, muted_by
from alerts.oncall import People
from alerts.opening import Opening, evidence_from, history_lines
from monitor.domain import (
    Alert,
    AlertPolicy,
    AlertState,
    CheckResult,
    Decision,
    EscalationStep,
    Finding,
    FindingKind,
    Guide,
    Incident,
    Outcome,
    ResponsePolicy,
    Severity,
    TimelineEntry,
    pairs,
)

CHECK_BLIND = FindingKind("CheckBlind", Severity.P2, None, "A check could not look, several times in a row: what it watches is unwatched.")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says about one check instance, and about everybody who may have to hear of it."""

    alert: AlertPolicy
    chains: Mapping[Severity, tuple[EscalationStep, ...]]
    guides: Mapping[str, Guide] = field(default_factory=dict)
    depends_on: frozenset[str] = frozenset()
    """Check instances whose alerts, of whatever kind, are the cause of this instance's."""
    people: People = field(default_factory=People)
    responses: Mapping[Severity, ResponsePolicy] = field(default_factory=dict)
    muting: Muting = field(default_factory=Muting)
    flapping: frozenset[str] = frozenset()
    """Fingerprints of what comes and goes: one bad run raises such an alert, and none resolves it until it is calm."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered before a decision.

    ``alerts`` are those of the instance and of every group it touches, in PENDING or FIRING; ``incidents`` the unresolved ones of
    those groups and of the causes' groups, by group. ``causes`` are live alerts of what the instance depends on: they fell the
    instance's own service or one it depends on, or belong to a check it depends on. Among them are those that ended so short a time
    ago that the check still sees their echo.
    """

    alerts: tuple[Alert, ...] = ()
    incidents: Mapping[str, Incident] = field(default_factory=dict)
    causes: tuple[Alert, ...] = ()


def decide(known: Known, result: CheckResult, policy: Policy, now: datetime) -> Decision:
    """What one result changes.

    BLIND neither raises nor clears what the check watches; it only feeds the check's own ``CheckBlind`` alert, which any run that could
    look clears. An incident opens when the first alert of its group fires and resolves when the last one does.
    """
    was = {alert.fingerprint: alert for alert in known.alerts}
    judged = _judge_alerts(known, result, policy.alert, now, flapping=policy.flapping)
    changed = [_attribute(was.get(alert.fingerprint), alert, known, policy) for alert in judged]
    return fold(known, tuple(alert for alert in changed if alert != was.get(alert.fingerprint)), policy, now)


def retire(known: Known, instance: str, policy: Policy, now: datetime) -> Decision:
    """What changes when a check instance is no longer configured: its alerts end, and incidents that only they held open."""
    gone = tuple(alert._replace(state=AlertState.RESOLVED, resolved_at=now) for alert in known.alerts if alert.instance == instance)
    return fold(known, gone, policy, now, because="no longer watched: removed from the configuration")


def finding_labels(result: CheckResult, finding: Finding) -> tuple[tuple[str, str], ...]:
    """The identity of a finding: alertname, check, service and the finding's own labels."""
    return pairs({**dict(finding.labels), "alertname": finding.kind.name, "check": result.check, "service": result.service})


def groups_of(result: CheckResult) -> set[str]:
    """Every group the result could touch by what it found now."""
    return {_home(result.service, finding) for finding in _findings(result, Severity.P2)}


def fingerprints_of(result: CheckResult) -> set[str]:
    """The identities of everything it found now."""
    return {fingerprint(finding_labels(result, finding)) for finding in _findings(result, Severity.P2)}


def _home(service: str, finding: Finding) -> str:
    return f"{service}/{finding.kind.incident or finding.kind.group or finding.kind.name}"


def _findings(result: CheckResult, blind_severity: Severity) -> tuple[Finding, ...]:
    if result.outcome is Outcome.BLIND:
        reason = result.error or "no reason given"
        summary = f"check {result.check} cannot look at {result.service}: {reason}"
        return (CHECK_BLIND(summary, facts={"reason": reason}, severity=blind_severity),)
    return result.observed.findings


# --- alerts ----------------------------------------------------------------------------------------------------------


def _judge_alerts(known: Known, result: CheckResult, policy: AlertPolicy, now: datetime, *, flapping: frozenset[str]) -> tuple[Alert, ...]:
    mine = {alert.fingerprint: alert for alert in known.alerts if alert.instance == result.instance}
    seen: dict[str, Finding] = {}
    for finding in _findings(result, policy.blind_severity):
        print_ = fingerprint(finding_labels(result, finding))
        known_one = seen.get(print_)
        if known_one is None or _severity(finding) < _severity(known_one):  # two findings of one identity: the worse counts
            seen[print_] = finding
    at_once = replace(policy, fail_after=1, fail_for_s=0.0) if flapping else policy
    judged = [
        _worsen(mine.get(print_), print_, finding, result, at_once if print_ in flapping else policy, now)
        for print_, finding in seen.items()
    ]
    if result.outcome is not Outcome.BLIND:
        judged += [_improve(alert, policy, now, flapping=print_ in flapping) for print_, alert in mine.items() if print_ not in seen]
    return tuple(alert for alert in judged if alert != mine.get(alert.fingerprint))


def _severity(finding: Finding) -> Severity:
    return finding.severity or finding.kind.severity


def _worsen(old: Alert | None, print_: str, finding: Finding, result: CheckResult, policy: AlertPolicy, now: datetime) -> Alert:
    severity = _severity(finding)
    if old is None:
        old = Alert(
            fingerprint=print_,
            instance=result.instance,
            group=_home(result.service, finding),
            service=result.service,
            home=_home(result.service, finding),
            fells=finding.kind.fells,
            doubts=finding.kind.doubts,
            labels=finding_labels(result, finding),
            code=finding.kind.incident,
            severity=severity,
            summary=finding.summary,
            facts=finding.facts,
            state=AlertState.PENDING,
            bad_runs=0,
            good_runs=0,
            pending_since=now,
        )
    if old.state is AlertState.FIRING:
        if severity < old.severity:
            return old._replace(severity=severity, summary=finding.summary, facts=finding.facts, good_runs=0, good_since=None)
        return old._replace(good_runs=0, good_since=None)
    after, until = _confirms(old, policy)
    bad = min(old.bad_runs + 1, after)
    seen_now = old._replace(severity=severity, summary=finding.summary, facts=finding.facts, bad_runs=bad, good_runs=0)
    if bad >= after and now >= until:
        return seen_now._replace(state=AlertState.FIRING, firing_since=now)
    return seen_now


def _confirms(alert: Alert, policy: AlertPolicy) -> tuple[int, datetime]:
    """After how many bad runs, and not before when, a pending alert fires."""
    if dict(alert.labels)["alertname"] == CHECK_BLIND.name:
        return policy.blind_after, alert.pending_since
    return policy.fail_after, alert.pending_since + timedelta(seconds=policy.fail_for_s)


def _improve(old: Alert, policy: AlertPolicy, now: datetime, *, flapping: bool) -> Alert:
    if old.state is AlertState.PENDING:
        return old._replace(state=AlertState.RESOLVED, good_runs=1, bad_runs=0, resolved_at=now)
    seen_now = old._replace(good_runs=min(old.good_runs + 1, policy.recover_after), good_since=old.good_since or now)
    if flapping or seen_now.good_runs < policy.recover_after or now < _recovers(seen_now, policy, now):
        return seen_now
    return seen_now._replace(state=AlertState.RESOLVED, bad_runs=0, resolved_at=now)


def _recovers(alert: Alert, policy: AlertPolicy, now: datetime) -> datetime:
    """When a firing alert has been seen well for long enough."""
    return (alert.good_since or now) + timedelta(seconds=policy.recover_for_s)


def next_look_s(known: Known, decided: Decision, instance: str, policy: AlertPolicy, now: datetime) -> float | None:
    """How soon one more look at the instance settles something: 0 means at once, a number the time that alone is missing.

    None when no look out of turn would: nothing changed, or nothing is missing.
    """
    changed = {alert.fingerprint: alert for alert in decided.alerts}
    stand = {**{alert.fingerprint: alert for alert in known.alerts}, **changed}
    waits = []
    for alert in stand.values():
        if alert.instance != instance or alert.state is AlertState.RESOLVED or (alert.state is AlertState.FIRING and not alert.good_runs):
            continue
        if alert.state is AlertState.PENDING:
            after, at = _confirms(alert, policy)
            counted = alert.bad_runs >= after
        else:
            counted, at = alert.good_runs >= policy.recover_after, _recovers(alert, policy, now)
        missing_s = (at - now).total_seconds() if counted else 0.0
        if missing_s > 0 or alert.fingerprint in changed:
            waits.append(max(0.0, missing_s))
    return min(waits, default=None)


# --- causes ----------------------------------------------------------------------------------------------------------


def _attribute(old: Alert | None, alert: Alert, known: Known, policy: Policy) -> Alert:
    """An alert that would begin to fire joins its cause's incident; while a cause is only suspected, or just over, it waits.

    An alert whose own incident is open stays with it: who was told of it hears its end.
    """
    begins = alert.state is AlertState.FIRING and (old is None or old.state is not AlertState.FIRING)
    if not begins or alert.home in known.incidents:
        return alert
    causes = [cause for cause in known.causes if _can_cause(cause, alert, policy)]
    firing = [cause for cause in causes if cause.state is AlertState.FIRING and cause.group in known.incidents]
    if firing:
        root = min(firing, key=lambda cause: (cause.severity, cause.pending_since, cause.fingerprint))
        return alert._replace(group=root.group)
    if causes:
        return alert._replace(state=AlertState.PENDING, firing_since=None)
    return alert


def _can_cause(cause: Alert, alert: Alert, policy: Policy) -> bool:
    """What fells a service is no symptom of something else on the same service, unless the configuration says so."""
    if cause.instance == alert.instance:
        return False
    return cause.instance in policy.depends_on or cause.service != alert.service or not alert.fells


# --- incidents -------------------------------------------------------------------------------------------------------


def fold(known: Known, changed: tuple[Alert, ...], policy: Policy, now: datetime, because: str = "the check sees health again") -> Decision:
    """What changed alerts do to the incidents of their groups; ``known`` holds every live alert of these groups."""
    decisions = [Decision(alerts=changed)]
    was = {alert.fingerprint: alert for alert in known.alerts}
    current = {**was, **{alert.fingerprint: alert for alert in changed}}
    firing_in: dict[str, list[Alert]] = defaultdict(list)
    for alert in current.values():
        if alert.state is AlertState.FIRING:
            firing_in[alert.group].append(alert)
    news_in: dict[str, list[Alert]] = defaultdict(list)
    for alert in changed:
        if _is_news(was.get(alert.fingerprint), alert):
            news_in[alert.group].append(alert)
    opening = Opening(policy.chains, policy.responses, policy.guides, policy.people, policy.muting, now)
    for group, news in sorted(news_in.items()):
        before, firing = known.incidents.get(group), firing_in[group]
        if before is not None and firing and all(alert.home != group for alert in firing):
            decisions.append(_release(before, firing, now, because))
        elif firing and before is None:
            decisions.append(opening.open(group, firing))
        elif firing and before is not None:
            decisions.append(_grow(before, news, firing, policy, now))
        elif before is not None:
            decisions.append(escalation.resolve(before, now, because))
    return join(*decisions)


def _release(incident: Incident, guests: list[Alert], now: datetime, because: str) -> Decision:
    """The cause is over. What it explained is looked at anew: it ends by itself within its next runs, or opens its own incident."""
    fresh = tuple(
        alert._replace(
            group=alert.home,
            state=AlertState.PENDING,
            bad_runs=0,
            good_runs=0,
            good_since=None,
            pending_since=now,
            firing_since=None,
        )
        for alert in guests
    )
    names = sorted({alert.service for alert in guests})
    entry = TimelineEntry(incident.id, now, "note", f"looking again at what it explained: {', '.join(names)}")
    return join(Decision(alerts=fresh, timeline=(entry,)), escalation.resolve(incident, now, because))


def _is_news(old: Alert | None, new: Alert) -> bool:
    """Whether people could care: it started or stopped firing, or got worse while firing."""
    was_firing = old is not None and old.state is AlertState.FIRING
    is_firing = new.state is AlertState.FIRING
    return was_firing != is_firing or (old is not None and is_firing and new.severity < old.severity)


def _grow(incident: Incident, news: Iterable[Alert], firing: Iterable[Alert], policy: Policy, now: datetime) -> Decision:
    """Attach news to an open incident; when the severity rose, the worse severity's chain starts anew and asks again."""
    news, firing = tuple(news), tuple(firing)
    settled = settle(incident, firing, policy, now) if incident.muted or policy.muting else Decision()
    incident = settled.incidents[-1] if settled.incidents else incident
    lines = history_lines(news, lambda alert: "also" if alert.state is AlertState.FIRING else "cleared")
    entries = tuple(TimelineEntry(incident.id, now, "alert", text) for text in lines)
    doubtful = any(alert.doubts and alert.home == incident.group for alert in firing)
    proven = [alert for alert in news if alert.home == incident.group or not doubtful]
    worse = [alert for alert in proven if alert.state is AlertState.FIRING and alert.severity < incident.severity]
    said = Decision(timeline=entries)
    if not worse:
        return join(settled, said) if settled else said
    worst = min(worse, key=lambda alert: (alert.severity, alert.fingerprint))
    raised = incident._replace(severity=worst.severity, summary=worst.summary, evidence=evidence_from(worst))
    response = policy.responses.get(worst.severity, ResponsePolicy())
    return join(settled, said, escalation.raise_(raised, policy.chains[worst.severity], now, policy.people, response))


def settle(incident: Incident, firing: Iterable[Alert], policy: Policy, now: datetime) -> Decision:
    """Mute an incident that silences, windows or inhibitions cover now, and unmute one that they no longer cover."""
    reasons = muted_by(firing, incident.group, policy.muting, now)
    return escalation.mute(incident, reasons, now) if reasons else escalation.unmute(incident, now, policy.people)
