"""What was sent beside what would have been sent: the same notification of the same incident, or one that only one of them has."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from monitor.domain import Incident, Severity, Transition
from monitor.simulation.past import Past
from monitor.simulation.replay import Replayed
from monitor.simulation.world import Told
from monitor.store import Sent

OPENERS = frozenset({Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED, Transition.REMINDED})
NEARBY = timedelta(minutes=1)
"""Incidents of one group are the same when they were open at the same time, give or take this."""


class Status(StrEnum):
    BOTH = "both"
    NEW = "only new"
    OLD = "only old"


@dataclass(frozen=True, slots=True)
class Line:
    """One notification, of then, of the simulation, or of both."""

    at: datetime
    """In the simulation, or then when the simulation does not have it."""
    status: Status
    later_s: float
    """How much later the simulation sends it; 0 when only one has it."""
    severity: Severity
    service: str
    title: str
    group: str
    incident_id: str
    transition: Transition
    channel: str
    reason: str
    """The rule that sends it."""

    @property
    def asks(self) -> bool:
        """Whether it asks somebody to do something, rather than telling what came of it."""
        return self.transition in OPENERS


def compare(past: Past, replayed: Replayed, since: datetime) -> tuple[Line, ...]:
    """Every notification since that moment, in the order of time."""
    waiting: dict[tuple[str, str, Transition], list[Sent]] = defaultdict(list)
    for sent in past.sent:
        waiting[past.incidents[sent.incident_id].group, sent.channel, sent.transition].append(sent)
    lines = []
    for told in replayed.told:
        incident = replayed.incidents[told.incident_id]
        before = _take(waiting[incident.group, told.channel, told.transition], incident, past)
        if before is None and told.at >= since:
            lines.append(_line(told, incident, Status.NEW))
        elif before is not None and max(told.at, before.at) >= since:
            lines.append(_line(told, incident, Status.BOTH, (told.at - before.at).total_seconds()))
    left = (sent for group in waiting.values() for sent in group if sent.at >= since)
    lines += [_line(sent, past.incidents[sent.incident_id], Status.OLD) for sent in left]
    return tuple(sorted(lines, key=lambda line: (line.at, line.severity, line.group, line.channel)))


def weeks(lines: Iterable[Line]) -> dict[tuple[str, Severity, str], tuple[int, int]]:
    """How often people were asked, and would have been, by week (``2026-W48``), severity and channel."""
    found: dict[tuple[str, Severity, str], tuple[int, int]] = {}
    for line in lines:
        if line.asks:
            year, week, _ = line.at.isocalendar()
            key = f"{year}-W{week:02}", line.severity, line.channel
            was, would = found.get(key, (0, 0))
            found[key] = was + (line.status is not Status.NEW), would + (line.status is not Status.OLD)
    return dict(sorted(found.items()))


def _take(waiting: list[Sent], incident: Incident, past: Past) -> Sent | None:
    """The first that belongs to an incident that was open at the same time."""
    for place, sent in enumerate(waiting):
        if _overlap(past.incidents[sent.incident_id], incident):
            return waiting.pop(place)
    return None


def _overlap(one: Incident, other: Incident) -> bool:
    return _ends_before(one, other) is False and _ends_before(other, one) is False


def _ends_before(one: Incident, other: Incident) -> bool:
    return one.resolved_at is not None and one.resolved_at + NEARBY < other.opened_at


def _line(what: Told | Sent, incident: Incident, status: Status, later_s: float = 0) -> Line:
    return Line(
        at=what.at,
        status=status,
        later_s=later_s,
        severity=what.severity,
        service=incident.service,
        title=incident.title,
        group=incident.group,
        incident_id=incident.id,
        transition=what.transition,
        channel=what.channel,
        reason=what.reason,
    )
