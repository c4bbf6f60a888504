"""What a notifier is given, and what it gives back."""

from dataclasses import dataclass
from datetime import datetime

from monitor.domain.core import Labels
from monitor.domain.incidents import Incident, Transition


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the provider answered: ``reference`` is its own id of the message, kept for later updates."""

    reference: str = ""
    detail: Labels = ()
    """Whatever a later notification of the same incident on the same channel needs (Slack's channel and ts)."""


@dataclass(frozen=True, slots=True)
class Link:
    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Notification:
    """One claimed outbox row, whole: everything a notifier needs to tell one channel of one transition."""

    id: int
    incident: Incident
    transition: Transition
    channel: str
    dedup_key: str
    """The incident's id: stable over retries, restarts and transitions."""
    reason: str
    """One sentence: why this is sent now."""
    created_at: datetime
    attempts: int
    links: tuple[Link, ...] = ()
    first_receipt: Receipt | None = None
    """Receipt of the first notification of this incident on this channel, if one was delivered."""
