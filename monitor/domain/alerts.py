"""Symptoms, and what keeps them from telling anybody."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from monitor.domain.core import Labels, Severity


class AlertState(StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """When findings of one check instance become alerts, and alerts are over: after so many runs in a row, over so long a time."""

    fail_after: int = 2
    recover_after: int = 2
    fail_for_s: float = 0.0
    """The bad runs must span this time, too, from the first of them on."""
    recover_for_s: float = 0.0
    """The good runs must span this time, too."""
    blind_after: int = 3
    blind_severity: Severity = Severity.P2


class Alert(NamedTuple):
    """One symptom. ``fingerprint`` is a hash of ``labels`` only (alertname, check, service and the finding's own).

    A storm makes tens of thousands: a named tuple takes a fifth of the time that a frozen dataclass of as many fields does.
    """

    fingerprint: str
    instance: str
    group: str
    """Alerts of one group fold into one incident. It is ``home``, or the cause's group while there is a cause."""
    labels: Labels
    code: str | None
    severity: Severity
    summary: str
    facts: tuple[tuple[str, str], ...]
    """What a check saw. A foreign alert has labels and annotations instead."""
    state: AlertState
    bad_runs: int
    good_runs: int
    pending_since: datetime
    service: str = ""
    home: str = ""
    """``"<service>/<runbook code or alert name>"``: the group of the alert when nothing else is its cause."""
    fells: bool = False
    """Whether it can be the cause of what is found on the same service, and on services that depend on it."""
    doubts: bool = False
    """Whether what it explains proves nothing, so that it never makes the incident worse."""
    firing_since: datetime | None = None
    resolved_at: datetime | None = None
    good_since: datetime | None = None
    """The first of the good runs in a row, while it fires."""
    annotations: Labels = ()
    """What a foreign alert says beside its labels; our own say it in ``summary`` and ``facts``."""
    generator_url: str = ""
    """Where a foreign alert comes from."""
    ends_at: datetime | None = None
    """When a foreign alert ends unless its sender says otherwise before."""
    ends_unsaid: bool = False
    """Whether ``ends_at`` is our timeout rather than the sender's word."""
    updated_at: datetime | None = None
    """When a foreign alert was last sent."""

    @property
    def is_foreign(self) -> bool:
        """Whether somebody else found it and sends it."""
        return self.ends_at is not None


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label, in Alertmanager's terms. A label that is not there has the value ""."""

    name: str
    value: str
    is_regex: bool = False
    """A whole-value RE2 expression rather than a literal."""
    is_equal: bool = True
    """False turns the condition around."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Alerts that match every matcher tell nobody between two moments. Their incidents go on, and their resolves are still sent."""

    id: str
    matchers: tuple[Matcher, ...]
    starts_at: datetime
    ends_at: datetime
    created_by: str
    comment: str
    updated_at: datetime
