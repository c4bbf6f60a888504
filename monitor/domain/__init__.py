"""The vocabulary of the house: frozen values that every other module speaks in.

Owns no behaviour beyond building values; imports the standard library only.
"""

from monitor.domain.alerts import Alert, AlertPolicy, AlertState, Matcher, Silence
from monitor.domain.core import Labels, Severity, pairs
from monitor.domain.delivery import Link, Notification, Receipt, Sighting, Standing, There, Upkeep
from monitor.domain.digests import DIGEST_KEY, Digest, DigestItem, Tally, is_digest_key
from monitor.domain.incidents import (
    Decision,
    EscalationStep,
    Guide,
    Incident,
    IncidentState,
    Intent,
    ResponsePolicy,
    TimelineEntry,
    Transition,
)
from monitor.domain.moments import bounded
from monitor.domain.observed import CheckResult, Finding, FindingKind, Metric, Observed, Outcome, Sample
from monitor.domain.runbook import AuditEntry, Diagnosis, Evidence, Plan, Step

__all__ = [
    "DIGEST_KEY",
    "Alert",
    "AlertPolicy",
    "AlertState",
    "AuditEntry",
    "CheckResult",
    "Decision",
    "Diagnosis",
    "Digest",
    "DigestItem",
    "EscalationStep",
    "Evidence",
    "Finding",
    "FindingKind",
    "Guide",
    "Incident",
    "IncidentState",
    "Intent",
    "Labels",
    "Link",
    "Matcher",
    "Metric",
    "Notification",
    "Observed",
    "Outcome",
    "Plan",
    "Receipt",
    "ResponsePolicy",
    "Sample",
    "Severity",
    "Sighting",
    "Silence",
    "Standing",
    "Step",
    "Tally",
    "There",
    "TimelineEntry",
    "Transition",
    "Upkeep",
    "bounded",
    "is_digest_key",
    "pairs",
]
