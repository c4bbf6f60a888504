"""What to do where a channel's far side and ours tell different stories of one incident. Pure; the monitor's upkeep applies it.

The far side is right about what people did there, ours about whether it is over: only the check itself sees health.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from alerts import escalation
from alerts.escalation import join
from monitor.domain import Decision, IncidentState, Intent, Sighting, There, TimelineEntry, Transition

ENDS_AGAIN = 2
"""How often an end is sent again: it pages nobody. A beginning is sent again once, and so is an acknowledgement."""


@dataclass(frozen=True, slots=True)
class Repair:
    """``kind`` names what is done: acknowledged (here); trigger, acknowledge or resolve (sent again); left (it differs and stays so)."""

    kind: str
    decision: Decision


KINDS = ("acknowledged", "trigger", "acknowledge", "resolve", "left")


def stays_open(who: str) -> str:
    """What the timeline says when somebody ended on the far side what is not over here; a webhook and a comparison say the same."""
    return f"{who} resolved it there; it stays open until the check sees health"


def repair(seen: Sighting, said: Sequence[str], now: datetime) -> Repair | None:
    """What brings both sides together; None when they agree.

    ``said`` is the incident's timeline: what was sent again before is not repeated for ever, so no two programs can argue with each
    other, and nobody is paged by a comparison more than once for one asking.
    """
    found: Repair | None = None
    match seen.standing.incident.state, seen.there:
        case IncidentState.OPEN, There.ACKED if seen.by:
            found = _take(seen, f"{seen.by} acknowledged it there, which was not heard here at the time", now)
        case IncidentState.OPEN, There.RESOLVED if seen.by:
            found = _take(seen, stays_open(seen.by), now)
        case IncidentState.OPEN, There.RESOLVED | There.MISSING:
            found = _page_again(seen, said, now)
        case IncidentState.ACKED, There.OPEN if seen.standing.last is Transition.ACKED and not _later(seen):
            found = _send_again(seen, Transition.ACKED, "acknowledge", said, now, most=1)
        case IncidentState.RESOLVED, There.OPEN if seen.by and _later(seen):
            found = _once(seen, f"{seen.by} reopened it there; here it is over", said, now)
        case IncidentState.RESOLVED, There.OPEN | There.ACKED:
            found = _send_again(seen, Transition.RESOLVED, "resolve", said, now, most=ENDS_AGAIN)
    return found


def _later(seen: Sighting) -> bool:
    """Whether the far side came to its state after it had heard from us last."""
    return seen.at is not None and seen.at > seen.standing.last_at


def _take(seen: Sighting, text: str, now: datetime) -> Repair:
    incident, who = seen.standing.incident, seen.by or "somebody"
    entry = TimelineEntry(incident.id, now, "note", text, who)
    return Repair("acknowledged", join(Decision(timeline=(entry,)), escalation.acknowledge(incident, who, now)))


def _page_again(seen: Sighting, said: Sequence[str], now: datetime) -> Repair:
    """Nobody took it and nobody sees it there: the one case in which a comparison pages, once for each asking."""
    incident = seen.standing.incident
    if incident.muted:
        return Repair("left", Decision())
    how = "has no open alert of it" if seen.there is There.RESOLVED else "knows nothing of it"
    text = f"{seen.standing.channel} {how} although it was told (asking {incident.asked})"
    return _tell(seen, Transition.REMINDED, "trigger", text, now) if f"{text}: told again" not in said else Repair("left", Decision())


def _send_again(seen: Sighting, means: Transition, kind: str, said: Sequence[str], now: datetime, *, most: int) -> Repair:
    text = f"on {seen.standing.channel} it is still {seen.there.value} (asking {seen.standing.incident.asked})"
    return _tell(seen, means, kind, text, now) if said.count(f"{text}: told again") < most else Repair("left", Decision())


def _tell(seen: Sighting, means: Transition, kind: str, text: str, now: datetime) -> Repair:
    incident, channel = seen.standing.incident, seen.standing.channel
    entry = TimelineEntry(incident.id, now, "note", f"{text}: told again")
    return Repair(kind, Decision(incidents=(incident,), intents=(Intent(incident.id, means, channel, text),), timeline=(entry,)))


def _once(seen: Sighting, text: str, said: Sequence[str], now: datetime) -> Repair:
    incident = seen.standing.incident
    entry = TimelineEntry(incident.id, now, "note", text, seen.by or "somebody")
    return Repair("left", Decision() if text in said else Decision(timeline=(entry,)))
