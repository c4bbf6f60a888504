"""What a person is told of, who is asked in which order, and what one decision changes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from monitor.domain.alerts import Alert
from monitor.domain.core import Severity


class IncidentState(StrEnum):
    OPEN = "open"
    ACKED = "acked"
    RESOLVED = "resolved"


class Transition(StrEnum):
    """Why somebody is told of an incident."""

    TRIGGERED = "triggered"
    ESCALATED = "escalated"
    RAISED = "raised"
    """The severity rose while the incident was open."""
    REMINDED = "reminded"
    """It is still open: an acknowledgement ran out, or everybody was told and nobody took it."""
    ACKED = "acked"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class EscalationStep:
    """One rung of the ladder: ``after_s`` seconds unacknowledged, tell ``channels`` and ``contacts``; ``who`` names the role."""

    after_s: float
    who: str
    channels: tuple[str, ...] = ()
    contacts: tuple[str, ...] = ()
    """Contacts, and rotations that are asked who is on call when the step fires."""
    business_hours: bool = False
    """Whether the step waits for business hours."""


@dataclass(frozen=True, slots=True)
class ResponsePolicy:
    """What is expected of people once they are told, and what happens when it does not come. None means: never."""

    within_s: float | None = None
    """The promised response time: an incident that nobody has acknowledged by then is recorded as a breach."""
    ack_expires_s: float | None = None
    """How long an acknowledgement holds; after that the incident asks again from the first step."""
    remind_s: float | None = None
    """How often everybody told hears again, once the last step has fired and nobody has acknowledged."""


@dataclass(frozen=True, slots=True)
class Guide:
    """What the runbook says first about one incident code."""

    code: str
    title: str
    first_step: str
    """One command or sentence."""


class Incident(NamedTuple):
    """What a person is told of. ``id`` is derived from group and opening time, and is the deduplication key.

    A named tuple, as :class:`Alert` is: a storm opens tens of thousands.
    """

    id: str
    group: str
    code: str | None
    service: str
    severity: Severity
    state: IncidentState
    title: str
    summary: str
    evidence: tuple[str, ...]
    """At most a handful of ``name: value`` lines seen when the incident opened or last got worse."""
    first_step: str
    opened_at: datetime
    chain: tuple[EscalationStep, ...]
    """The escalation chain as it was when the incident opened, or last got worse."""
    chain_since: datetime
    """The moment the delays of ``chain`` count from."""
    told: tuple[str, ...] = ()
    """Channels for which a trigger was queued: each of them gets the resolve."""
    step: int = 0
    """Index of the next step of ``chain`` that has not fired."""
    next_escalation_at: datetime | None = None
    acked_at: datetime | None = None
    acked_by: str | None = None
    resolved_at: datetime | None = None
    response: ResponsePolicy = ResponsePolicy()
    """What was promised for its severity when it opened, or last got worse."""
    asked: int = 1
    """How many times people were asked to take it: an acknowledgement that ended makes it one more."""
    muted: tuple[str, ...] = ()
    """Why nobody is told now: the silences, windows and inhibitions that cover all of it. Empty when people are told."""
    muted_at: datetime | None = None
    """Since when; the delays of ``chain`` stand still while it is muted."""
    breached_at: datetime | None = None
    """When the promised response time passed without an acknowledgement, since people were asked last; the timeline has them all."""
    ack_expires_at: datetime | None = None
    remind_at: datetime | None = None

    @property
    def wake_at(self) -> datetime | None:
        """The next moment at which time alone changes something."""
        breach = self.breaches_at
        return min((at for at in (self.next_escalation_at, breach, self.ack_expires_at, self.remind_at) if at is not None), default=None)

    @property
    def breaches_at(self) -> datetime | None:
        """When the response time will have passed, while nobody has acknowledged and people are told."""
        waits = self.state is IncidentState.OPEN and not self.muted and self.breached_at is None
        return self.chain_since + timedelta(seconds=self.response.within_s) if waits and self.response.within_s is not None else None


class TimelineEntry(NamedTuple):
    """One line of an incident's history, shown to people."""

    incident_id: str
    at: datetime
    kind: str
    """opened, alert, raised, escalated, reminded, acked, unacked, breached, muted, unmuted, resolved, delivered, delivery-failed, note."""
    text: str
    actor: str = "monitor"


class Intent(NamedTuple):
    """A notification decided and not yet stored: the outbox row in the making."""

    incident_id: str
    transition: Transition
    channel: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What changes because of one input. Empty means nothing changed and nothing is written."""

    alerts: tuple[Alert, ...] = ()
    incidents: tuple[Incident, ...] = ()
    intents: tuple[Intent, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.alerts or self.incidents or self.intents or self.timeline)
