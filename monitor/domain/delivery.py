"""What a notifier is given, and what it gives back."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from monitor.domain.core import Labels
from monitor.domain.incidents import Incident, Transition


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the provider answered: ``reference`` is its own id of the message, kept for later updates."""

    reference: str = ""
    detail: Labels = ()
    """Whatever a later notification of the same incident on the same channel needs (Slack's channel and ts)."""
    note: str = ""
    """What a person should know although it was delivered, such as who of several did not get it."""


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
    labels: Labels = ()
    """What the labels of the incident's alerts have in common; only in the first one for a notifier that wants them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An incident on one channel that has been told of it and owes it nothing more: what the far side ought to know."""

    incident: Incident
    channel: str
    first_receipt: Receipt
    """Of the first notification that was delivered."""
    last: Transition
    """The last one that was delivered."""
    last_at: datetime
    """When that was."""
    home: str | None = None
    """The digest in which it was first told, if it was not told alone."""


class There(StrEnum):
    """How an incident stands on a channel's far side."""

    OPEN = "open"
    ACKED = "acknowledged"
    RESOLVED = "resolved"
    MISSING = "missing"
    """The far side knows nothing of it."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a channel's far side says about one incident."""

    standing: Standing
    there: There
    by: str | None = None
    """The person who brought it to that state, with the far side's name behind; None when no person did."""
    at: datetime | None = None
    """When it came to that state, by the far side's clock."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What a channel needs between notifications: its far side compared with ours, or told again what it would forget."""

    every_s: Callable[[Any], float | None]
    """How often, by the channel's configuration; None when it needs none."""
    run: Callable[[Any, Any, tuple[Standing, ...]], Awaitable[tuple[Sighting, ...]]]
    """``async def run(ctx, cfg, standings)``: the sightings that the monitor is to act on. Raises ``DeliveryError``."""
