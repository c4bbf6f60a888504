"""Who hears of an incident next: the ladder of escalation, acknowledgement and the resolve. Pure functions."""

from dataclasses import replace
from datetime import datetime, timedelta

from monitor.domain import Decision, EscalationStep, Incident, IncidentState, Intent, TimelineEntry, Transition


def join(first: Decision, second: Decision) -> Decision:
    """Both decisions, in order."""
    return Decision(
        alerts=first.alerts + second.alerts,
        incidents=first.incidents + second.incidents,
        intents=first.intents + second.intents,
        timeline=first.timeline + second.timeline,
    )


def climb(incident: Incident, now: datetime, transition: Transition) -> Decision:
    """Fire every step of the chain that is due, and set when the next one is.

    ``transition`` is what the chain's first step tells; later steps always tell ESCALATED. A step without channels is said and skipped.
    """
    intents: list[Intent] = []
    timeline: list[TimelineEntry] = []
    told = list(incident.told)
    step = incident.step
    while step < len(incident.chain) and _due_at(incident, step) <= now:
        rung = incident.chain[step]
        means = transition if step == 0 else Transition.ESCALATED
        reason = _reason(rung, means)
        intents += [Intent(incident.id, means, channel, reason) for channel in rung.channels]
        told += [channel for channel in rung.channels if channel not in told]
        timeline.append(TimelineEntry(incident.id, now, means.value, f"{reason}; by {', '.join(rung.channels) or 'no channel'}"))
        step += 1
    next_at = _due_at(incident, step) if step < len(incident.chain) else None
    climbed = replace(incident, step=step, told=tuple(told), next_escalation_at=next_at)
    return Decision(incidents=(climbed,), intents=tuple(intents), timeline=tuple(timeline))


def escalate(incident: Incident, now: datetime) -> Decision:
    """What the passing of time changes: the next step of an incident that nobody acknowledged."""
    due = incident.next_escalation_at
    if incident.state is not IncidentState.OPEN or due is None or due > now:
        return Decision()
    return climb(incident, now, Transition.ESCALATED)


def raise_(incident: Incident, chain: tuple[EscalationStep, ...], now: datetime) -> Decision:
    """Start the chain of a worse severity from its first step, and tell everybody told before. An acknowledgement ends."""
    before = incident.told
    fresh = replace(incident, state=IncidentState.OPEN, acked_at=None, acked_by=None, chain=chain, chain_since=now, step=0)
    climbed = climb(fresh, now, Transition.RAISED)
    reached = {intent.channel for intent in climbed.intents}
    reason = f"the severity rose to {incident.severity.name}"
    also = tuple(Intent(incident.id, Transition.RAISED, channel, reason) for channel in before if channel not in reached)
    entry = TimelineEntry(incident.id, now, "raised", f"{reason}: {incident.summary}")
    return join(Decision(timeline=(entry,)), join(climbed, Decision(intents=also)))


def acknowledge(incident: Incident, who: str, now: datetime) -> Decision:
    """Somebody took it: escalation stops and everybody told hears who. Nothing changes unless the incident is OPEN."""
    if incident.state is not IncidentState.OPEN:
        return Decision()
    acked = replace(incident, state=IncidentState.ACKED, acked_at=now, acked_by=who, next_escalation_at=None)
    return Decision(
        incidents=(acked,),
        intents=tuple(Intent(incident.id, Transition.ACKED, channel, f"acknowledged by {who}") for channel in incident.told),
        timeline=(TimelineEntry(incident.id, now, "acked", f"acknowledged by {who}", who),),
    )


def resolve(incident: Incident, now: datetime, because: str) -> Decision:
    """It is over: every channel that was told of the trigger is told of the resolve."""
    if incident.state is IncidentState.RESOLVED:
        return Decision()
    resolved = replace(incident, state=IncidentState.RESOLVED, resolved_at=now, next_escalation_at=None)
    return Decision(
        incidents=(resolved,),
        intents=tuple(Intent(incident.id, Transition.RESOLVED, channel, because) for channel in incident.told),
        timeline=(TimelineEntry(incident.id, now, "resolved", because),),
    )


def _due_at(incident: Incident, step: int) -> datetime:
    return incident.chain_since + timedelta(seconds=incident.chain[step].after_s)


def _reason(rung: EscalationStep, means: Transition) -> str:
    if means is Transition.ESCALATED:
        return f"nobody acknowledged within {_minutes(rung.after_s)}: {rung.who} is told"
    if means is Transition.RAISED:
        return f"the severity rose: {rung.who} is told again"
    return f"{rung.who} is told at once" if rung.after_s == 0 else f"{rung.who} is told"


def _minutes(seconds: float) -> str:
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
