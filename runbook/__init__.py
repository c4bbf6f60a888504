"""What to do about it: one file per incident of the runbook and per operation. This module is the contract for their authors.

``BUILTINS`` is the explicit list; third parties register through the entry-point group ``platform_monitor.runbook``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from monitor.domain import AuditEntry, Diagnosis, Evidence, Guide, Observed, Plan, Step
from monitor.plugins import Duration, Operation, PluginConfig, RunbookContext, RunbookEntry
from runbook.digest import digest_of, sealed
from runbook.inc_001_service_not_responding import INC_001
from runbook.inc_002_connections_exhausted import INC_002
from runbook.inc_003_ingestion_stuck import INC_003
from runbook.inc_004_email_failure import INC_004
from runbook.inc_005_high_latency import INC_005
from runbook.inc_006_authentication_failures import INC_006

BUILTINS: tuple[RunbookEntry, ...] = (INC_001, INC_002, INC_003, INC_004, INC_005, INC_006)

GUIDES: Mapping[str, Guide] = MappingProxyType({entry.guide.code: entry.guide for entry in BUILTINS})
"""What the runbook says first, by incident code."""

__all__ = [
    "BUILTINS",
    "GUIDES",
    "AuditEntry",
    "Diagnosis",
    "Duration",
    "Evidence",
    "Guide",
    "Observed",
    "Operation",
    "Plan",
    "PluginConfig",
    "RunbookContext",
    "RunbookEntry",
    "Step",
    "digest_of",
    "sealed",
]
