"""Who hears of an incident next: the ladder of escalation, acknowledgement, muting, reminders and the resolve. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain as all_of

from alerts.oncall import People, Reached
from monitor.domain import (
    Decision,
    EscalationStep,
    Incident,
    IncidentState,
    Intent,
    ResponsePolicy,
    TimelineEntry,
    Transition,
)

NOBODY = People()
NOBODY_REACHED_S = 300.0
"""How soon to try again when no step of a chain reached anybody."""


def join(*decisions: Decision) -> Decision:
    """All decisions, in order."""
    return Decision(
        alerts=tuple(all_of.from_iterable([decision.alerts for decision in decisions])),
        incidents=tuple(all_of.from_iterable([decision.incidents for decision in decisions])),
        intents=tuple(all_of.from_iterable([decision.intents for decision in decisions])),
        timeline=tuple(all_of.from_iterable([decision.timeline for decision in decisions])),
    )


@dataclass(frozen=True, slots=True)
class Ascent:
    """What firing the due steps of a chain does, the same for every incident that stands at the same place of it."""

    step: int
    told: tuple[str, ...]
    next_at: datetime | None
    remind_at: datetime | None
    calls: tuple[tuple[Transition, str, str], ...]
    """Transition, channel and reason of each notification."""
    lines: tuple[tuple[str, str], ...]
    """Kind and text of each line of the history."""

    def intents(self, incident_id: str) -> tuple[Intent, ...]:
        return tuple([Intent(incident_id, means, channel, reason) for means, channel, reason in self.calls])

    def timeline(self, incident_id: str, now: datetime) -> tuple[TimelineEntry, ...]:
        return tuple([TimelineEntry(incident_id, now, kind, text) for kind, text in self.lines])


def climb(incident: Incident, now: datetime, transition: Transition, people: People = NOBODY) -> Decision:
    """Fire every step of the chain that is due, and set when the next one is. A muted incident fires none.

    ``transition`` is what the chain's first step tells; later steps always tell ESCALATED. A step that reaches nobody is said, and the
    one after it fires at once, or as soon as its business hours begin.
    """
    if incident.muted:
        return Decision(incidents=(incident._replace(next_escalation_at=None, remind_at=None),))
    is_due = incident.next_escalation_at is not None and incident.next_escalation_at <= now
    done = ascend(
        incident.chain, incident.chain_since, incident.step, incident.told, incident.response, now, transition, people, is_due=is_due
    )
    climbed = incident._replace(step=done.step, told=done.told, next_escalation_at=done.next_at, remind_at=done.remind_at)
    return Decision(incidents=(climbed,), intents=done.intents(incident.id), timeline=done.timeline(incident.id, now))


def ascend(
    chain: Sequence[EscalationStep],
    since: datetime,
    step: int,
    told: Iterable[str],
    response: ResponsePolicy,
    now: datetime,
    transition: Transition,
    people: People,
    *,
    is_due: bool = False,
) -> Ascent:
    """Fire what is due of a chain from ``step`` on, which ``is_due`` by itself; the delays of the others count from ``since``."""
    calls: list[tuple[Transition, str, str]] = []
    lines: list[tuple[str, str]] = []
    told = list(told)
    hurry = is_due

    def next_at() -> datetime | None:
        if step == len(chain):
            return None
        return people.earliest(chain[step], now) if hurry else _due_at(chain[step], since, people)

    while (due := next_at()) is not None and due <= now:
        rung = chain[step]
        means = transition if step == 0 else Transition.ESCALATED
        reached = people.reach(rung, now)
        hurry = not reached.channels
        if reached.absent:
            names = ", ".join(reached.absent)
            then = ": the next step is taken at once" if hurry else ""
            lines.append(("note", f"nobody is on call for {names} ({rung.who}){then}"))
        if not hurry:
            reason = _reason(rung, means, reached)
            calls += [(means, channel, reason) for channel in reached.channels]
            told += [channel for channel in reached.channels if channel not in told]
            lines.append((means.value, f"{reason}; by {', '.join(reached.channels)}"))
        step += 1
    remind_s = response.remind_s if told else NOBODY_REACHED_S
    remind_at = now + timedelta(seconds=remind_s) if due is None and remind_s is not None else None
    if due is None and not told and chain:
        lines.append(("note", f"nobody could be told: asked again in {_span(NOBODY_REACHED_S)}"))
    return Ascent(step, tuple(told), due, remind_at, tuple(calls), tuple(lines))


def escalate(incident: Incident, now: datetime, people: People = NOBODY) -> Decision:
    """What the passing of time changes: the next step, a breach of the response time, a reminder, the end of an acknowledgement."""
    if incident.state is IncidentState.ACKED:
        return _expire_ack(incident, now, people)
    if incident.state is not IncidentState.OPEN or incident.muted:
        return Decision()
    decided = Decision()
    if incident.breaches_at is not None and incident.breaches_at <= now:
        promised = _span(incident.response.within_s or 0)
        incident = incident._replace(breached_at=now)
        entry = TimelineEntry(incident.id, now, "breached", f"nobody acknowledged within the response time of {promised}")
        decided = Decision(incidents=(incident,), timeline=(entry,))
    if incident.next_escalation_at is not None and incident.next_escalation_at <= now:
        decided = join(decided, climb(incident, now, Transition.ESCALATED, people))
    elif incident.remind_at is not None and incident.remind_at <= now:
        decided = join(
            decided, _remind(incident, now) if incident.told else climb(_asked_anew(incident, now), now, Transition.TRIGGERED, people)
        )
    return decided


def raise_(
    incident: Incident,
    chain: tuple[EscalationStep, ...],
    now: datetime,
    people: People = NOBODY,
    response: ResponsePolicy | None = None,
) -> Decision:
    """Start the chain of a worse severity from its first step, and tell everybody told before. An acknowledgement ends."""
    before = incident.told
    fresh = _asked_anew(incident, now)._replace(
        chain=chain,
        response=incident.response if response is None else response,
    )
    climbed = climb(fresh, now, Transition.RAISED, people)
    reached = {intent.channel for intent in climbed.intents}
    reason = f"the severity rose to {incident.severity.name}"
    also = () if incident.muted else tuple(channel for channel in before if channel not in reached)
    entry = TimelineEntry(incident.id, now, "raised", f"{reason}: {incident.summary}")
    intents = tuple(Intent(incident.id, Transition.RAISED, channel, reason) for channel in also)
    return join(Decision(timeline=(entry,)), climbed, Decision(intents=intents))


def acknowledge(incident: Incident, who: str, now: datetime) -> Decision:
    """Somebody took it: escalation stops and everybody told hears who. Nothing changes unless the incident is OPEN."""
    if incident.state is not IncidentState.OPEN:
        return Decision()
    expires_s = incident.response.ack_expires_s
    acked = incident._replace(
        state=IncidentState.ACKED,
        acked_at=now,
        acked_by=who,
        next_escalation_at=None,
        remind_at=None,
        ack_expires_at=None if expires_s is None else now + timedelta(seconds=expires_s),
    )
    held = "" if expires_s is None else f"; asked again in {_span(expires_s)} unless it is over"
    return Decision(
        incidents=(acked,),
        intents=tuple(Intent(incident.id, Transition.ACKED, channel, f"acknowledged by {who}") for channel in incident.told),
        timeline=(TimelineEntry(incident.id, now, "acked", f"acknowledged by {who}{held}", who),),
    )


def mute(incident: Incident, reasons: tuple[str, ...], now: datetime) -> Decision:
    """Tell nobody more while these reasons hold: the ladder's clock stands still. Who was told still gets the resolve."""
    if incident.state is IncidentState.RESOLVED or set(reasons) == set(incident.muted) or not reasons:
        return Decision()
    since = incident.muted_at if incident.muted else now
    muted = incident._replace(muted=reasons, muted_at=since, next_escalation_at=None, remind_at=None)
    return Decision(incidents=(muted,), timeline=(TimelineEntry(incident.id, now, "muted", f"nobody is told: {'; '.join(reasons)}"),))


def unmute(incident: Incident, now: datetime, people: People = NOBODY) -> Decision:
    """Nothing mutes it any more: the ladder goes on where it stood."""
    if incident.state is IncidentState.RESOLVED or not incident.muted:
        return Decision()
    stood = now - (incident.muted_at or now)
    free = incident._replace(muted=(), muted_at=None, chain_since=incident.chain_since + stood)
    entry = TimelineEntry(incident.id, now, "unmuted", "nothing mutes it any more")
    if incident.state is IncidentState.ACKED:
        return Decision(incidents=(free,), timeline=(entry,))
    first = Transition.REMINDED if incident.told else Transition.TRIGGERED
    return join(Decision(timeline=(entry,)), climb(free, now, first, people))


def resolve(incident: Incident, now: datetime, because: str) -> Decision:
    """It is over: every channel that was told of the trigger is told of the resolve, whatever mutes it now."""
    if incident.state is IncidentState.RESOLVED:
        return Decision()
    resolved = incident._replace(
        state=IncidentState.RESOLVED,
        resolved_at=now,
        next_escalation_at=None,
        remind_at=None,
        ack_expires_at=None,
        muted=(),
        muted_at=None,
    )
    return Decision(
        incidents=(resolved,),
        intents=tuple(Intent(incident.id, Transition.RESOLVED, channel, because) for channel in incident.told),
        timeline=(TimelineEntry(incident.id, now, "resolved", because),),
    )


def reroute(incident: Incident, intent: Intent, fallback: str, now: datetime) -> Decision:
    """What a channel could not tell, another one tells. Nobody is woken for what is over or muted meanwhile."""
    if incident.state is IncidentState.RESOLVED or incident.muted:
        return Decision()
    told = incident.told if fallback in incident.told else (*incident.told, fallback)
    entry = TimelineEntry(incident.id, now, "note", f"{intent.reason}: {fallback} is told instead")
    stand_in = intent._replace(channel=fallback)
    return Decision(incidents=(incident._replace(told=told),), intents=(stand_in,), timeline=(entry,))


def move(incident: Incident, by: timedelta, people: People = NOBODY) -> Incident:
    """The incident after the clock itself was set by so much: as long as before until each of its moments; business hours stay."""
    moved = incident._replace(
        chain_since=incident.chain_since + by,
        muted_at=_later(incident.muted_at, by),
        ack_expires_at=_later(incident.ack_expires_at, by),
        remind_at=_later(incident.remind_at, by),
    )
    if incident.next_escalation_at is None:
        return moved
    return moved._replace(next_escalation_at=_due_at(moved.chain[moved.step], moved.chain_since, people))


def _later(moment: datetime | None, by: timedelta) -> datetime | None:
    return None if moment is None else moment + by


def _expire_ack(incident: Incident, now: datetime, people: People) -> Decision:
    """Acknowledged and fell asleep: the incident asks again from the first step."""
    if incident.ack_expires_at is None or incident.ack_expires_at > now:
        return Decision()
    reason = f"{incident.acked_by} acknowledged {_span(incident.response.ack_expires_s or 0)} ago, and it is not over"
    entry = TimelineEntry(incident.id, now, "unacked", reason)
    climbed = climb(_asked_anew(incident, now), now, Transition.REMINDED, people)
    return join(Decision(timeline=(entry,)), climbed)


def _asked_anew(incident: Incident, now: datetime) -> Incident:
    """Open, at the foot of its ladder; one more asking when somebody had taken it."""
    was_taken = incident.state is IncidentState.ACKED
    return incident._replace(
        state=IncidentState.OPEN,
        acked_at=None,
        acked_by=None,
        ack_expires_at=None,
        remind_at=None,
        next_escalation_at=None,
        breached_at=None,
        chain_since=now,
        muted_at=now if incident.muted else None,
        step=0,
        asked=incident.asked + was_taken,
    )


def _remind(incident: Incident, now: datetime) -> Decision:
    assert incident.response.remind_s is not None
    reason = "still open, and nobody has acknowledged"
    reminded = incident._replace(remind_at=now + timedelta(seconds=incident.response.remind_s))
    intents = tuple(Intent(incident.id, Transition.REMINDED, channel, reason) for channel in incident.told)
    entry = TimelineEntry(incident.id, now, "reminded", f"{reason}; by {', '.join(incident.told)}")
    return Decision(incidents=(reminded,), intents=intents, timeline=(entry,))


def _due_at(rung: EscalationStep, since: datetime, people: People) -> datetime:
    return people.earliest(rung, since + timedelta(seconds=rung.after_s))


def _reason(rung: EscalationStep, means: Transition, reached: Reached) -> str:
    who = f"{rung.who} ({', '.join(reached.people)})" if reached.people else rung.who
    if means is Transition.ESCALATED:
        return f"nobody acknowledged within {_span(rung.after_s)}: {who} is told"
    if means is Transition.RAISED:
        return f"the severity rose: {who} is told again"
    if means is Transition.REMINDED:
        return f"still open: {who} is told again"
    return f"{who} is told at once" if rung.after_s == 0 else f"{who} is told"


def _span(seconds: float) -> str:
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
