"""Many incidents told as one: what a notifier is given when a channel has more to say than it can one by one."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from monitor.domain.core import Severity
from monitor.domain.delivery import Receipt
from monitor.domain.incidents import IncidentState, Transition


class DigestItem(NamedTuple):
    """One incident in a digest: what changed about it, and how it stood when the digest was claimed.

    The names are those of :class:`Incident`, so that what shows one shows the other.
    """

    row: int
    """The outbox row that this item tells of."""
    transition: Transition
    reason: str
    id: str
    """The incident's id."""
    code: str | None
    service: str
    severity: Severity
    state: IncidentState
    title: str
    summary: str
    evidence: tuple[str, ...]
    first_step: str
    opened_at: datetime
    resolved_at: datetime | None = None
    acked_by: str | None = None
    asked: int = 1


@dataclass(frozen=True, slots=True)
class Tally:
    """How all incidents that were first told in one digest stand when it, or a follow-up of it, is claimed."""

    total: int
    open: int
    """Of them nobody has taken."""
    acked: int
    severities: tuple[tuple[Severity, int], ...]
    """Of those that are not over, the worst first; of all of them when every one is over."""
    services: tuple[tuple[str, int], ...]
    """Of the same, by service, the most first."""
    worst: tuple[DigestItem, ...]
    """Of the same, at most a dozen, the worst and oldest first."""
    asked: int = 1
    """The most often that people were asked to take one of them."""

    @property
    def unresolved(self) -> int:
        return self.open + self.acked

    @property
    def over(self) -> int:
        return self.total - self.unresolved

    @property
    def severity(self) -> Severity:
        """The worst of them."""
        return self.severities[0][0]


@dataclass(frozen=True, slots=True)
class Digest:
    """Many outbox rows of one channel, claimed together and told as one. Each incident is in it once."""

    key: str
    """Of this sending: the same over retries and restarts."""
    home: str
    """Of the conversation: the key of the digest in which these incidents were first told."""
    channel: str
    items: tuple[DigestItem, ...]
    """What is new, the worst and oldest first."""
    tally: Tally
    created_at: datetime
    """When the oldest row was decided."""
    attempts: int
    url: str
    """The status page, without a trailing slash: ``{url}/incidents/{id}`` is an incident's page."""
    first_receipt: Receipt | None = None
    """Receipt of the digest in which these incidents were first told; None when this is that digest."""

    @property
    def follows(self) -> bool:
        """Whether this is told after, and where, the incidents were first told in a digest."""
        return self.first_receipt is not None

    def link(self, incident_id: str) -> str:
        return f"{self.url}/incidents/{incident_id}"


DIGEST_KEY = "digest-"
"""How the key of a digest begins; an incident's id never does."""


def is_digest_key(key: str) -> bool:
    """Whether a key names a digest, and not an incident."""
    return key.startswith(DIGEST_KEY)
