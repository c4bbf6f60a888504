"""The vocabulary of the house: frozen values that every other module speaks in.

Owns no behaviour beyond building values; imports the standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Literal

Labels = tuple[tuple[str, str], ...]
"""Label pairs sorted by name. Use :func:`pairs` to build one."""


def pairs(mapping: Mapping[str, object]) -> Labels:
    """Turn a mapping into sorted ``(name, str(value))`` pairs, the hashable form of labels and facts."""
    return tuple(sorted((name, str(value)) for name, value in mapping.items()))


class Severity(IntEnum):
    """How bad, as the runbook says it. Smaller is worse, so ``min`` picks the worst."""

    P1 = 1
    P2 = 2
    P3 = 3
    P4 = 4


class Outcome(StrEnum):
    """What one run of a check means. The three are never folded into two."""

    OK = "ok"
    """It looked and found nothing wrong."""
    FOUND = "found"
    """It looked and found something wrong."""
    BLIND = "blind"
    """It could not look, so it proves nothing."""


class AlertState(StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


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


# --- what a check declares and returns -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric family that a check declares. ``name`` carries the base unit (``_seconds``, ``_bytes``, ``_ratio``,
    ``_total`` for counters) and the product's prefix ``monitor_``. The label ``service`` is added by the exposition.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def __call__(self, value: float, /, **labels: object) -> "Sample":
        """Make a sample. Raises ``ValueError`` when the labels are not exactly the declared ones."""
        if not labels and not self.labels:  # the hot path: most metrics have none
            return Sample(self, (), float(value))
        try:
            values = tuple([str(labels[name]) for name in self.labels])
        except KeyError:
            values = ()
        if not values or len(labels) != len(values):
            raise ValueError(f"metric {self.name} takes labels {list(self.labels)}, got {sorted(labels)}")
        return Sample(self, values, float(value))


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; ``labels`` are the values in the metric's declared order."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A thing a check can find. ``name`` is the alert's name (CamelCase), ``incident`` the runbook's code."""

    name: str
    severity: Severity
    incident: str | None
    help: str
    fells: bool = False
    """Whether what depends on the service cannot work while this is found: it is then the cause of their findings."""

    def __call__(
        self,
        summary: str,
        /,
        *,
        labels: Mapping[str, object] | None = None,
        facts: Mapping[str, object] | None = None,
        severity: Severity | None = None,
        value: float | None = None,
    ) -> "Finding":
        """Make a finding: ``summary`` is one line for a person, ``labels`` its identity, ``facts`` its evidence.

        ``value`` is the number that was compared with the threshold, in the threshold's unit.
        """
        return Finding(self, pairs(labels or {}), summary, tuple((k, str(v)) for k, v in (facts or {}).items()), severity, value)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong. Identity is ``kind`` and ``labels`` only; ``summary`` and ``facts`` may change at every run.

    ``facts`` keep the order in which the check gives them, the most telling first.
    """

    kind: FindingKind
    labels: Labels
    summary: str
    facts: tuple[tuple[str, str], ...] = ()
    severity: Severity | None = None
    """Overrides the kind's severity for this finding."""
    value: float | None = None
    """The number that was compared with the threshold, in the threshold's unit: what severity rules look at."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a check returns: everything it measured and everything it found wrong."""

    samples: tuple[Sample, ...] = ()
    findings: tuple[Finding, ...] = ()
    keep: object = None
    """What the next run of the same instance gets back as ``ctx.kept``: JSON values only, at most 256 KiB. None keeps what is kept."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the runner makes of one run of a check instance.

    ``instance`` is ``"<check name in the configuration>/<service>"``; ``error`` says why the run was BLIND.
    """

    instance: str
    check: str
    service: str
    outcome: Outcome
    started_at: datetime
    duration_s: float
    observed: Observed = Observed()
    error: str | None = None


# --- alerts and incidents --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """When findings of one check instance become alerts: counts of consecutive runs."""

    fail_after: int = 2
    recover_after: int = 2
    blind_after: int = 3
    blind_severity: Severity = Severity.P2


@dataclass(frozen=True, slots=True)
class Alert:
    """One symptom. ``fingerprint`` is a hash of ``labels`` only (alertname, check, service and the finding's own)."""

    fingerprint: str
    instance: str
    group: str
    """Alerts of one group fold into one incident. It is ``home``, or the cause's group while there is a cause."""
    labels: Labels
    code: str | None
    severity: Severity
    summary: str
    facts: tuple[tuple[str, str], ...]
    state: AlertState
    bad_runs: int
    good_runs: int
    pending_since: datetime
    service: str = ""
    home: str = ""
    """``"<service>/<runbook code or alert name>"``: the group of the alert when nothing else is its cause."""
    fells: bool = False
    """Whether it can be the cause of what is found on the same service, and on services that depend on it."""
    firing_since: datetime | None = None
    resolved_at: datetime | None = None
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


@dataclass(frozen=True, slots=True)
class Guide:
    """What the runbook says first about one incident code."""

    code: str
    title: str
    first_step: str
    """One command or sentence."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What a person is told of. ``id`` is derived from group and opening time, and is the deduplication key."""

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
    """When the promised response time passed without an acknowledgement."""
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


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One line of an incident's history, shown to people."""

    incident_id: str
    at: datetime
    kind: str
    """opened, alert, raised, escalated, reminded, acked, unacked, breached, muted, unmuted, resolved, delivered, delivery-failed, note."""
    text: str
    actor: str = "monitor"


@dataclass(frozen=True, slots=True)
class Intent:
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


# --- delivery --------------------------------------------------------------------------------------------------------


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


# --- runbook ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing looked at during a diagnosis: a small table or text, with the statement that made it."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""
    source: str = ""
    """The SQL, command or file it came from."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``cause`` is the sentence a person needs; ``proposals`` name plans (``cancel-stuck-jobs``) that may help.

    ``blind`` lists what could not be looked at: a diagnosis with blind spots is never read as healthy.
    """

    code: str
    cause: str
    evidence: tuple[Evidence, ...]
    proposals: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, as data. ``sql`` runs in a transaction; its row count must equal ``expect_rows``."""

    title: str
    sql: str
    params: tuple[tuple[str, object], ...] = ()
    expect_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A fix, as data. ``digest`` covers everything that will happen, so that what is applied is what was shown."""

    name: str
    service: str
    summary: str
    steps: tuple[Step, ...]
    params: Labels = ()
    lock: str = ""
    """Plans with the same lock never run at once."""
    digest: str = field(default="")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One append-only line: the intent before a plan runs, and the outcome after."""

    at: datetime
    plan: str
    digest: str
    phase: Literal["intent", "applied", "failed", "refused", "verified", "not-verified"]
    who: str
    why: str
    detail: str = ""
