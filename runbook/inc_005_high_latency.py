"""INC-005: answers take too long. Owns what the runbook says first about it."""

from monitor.domain import Guide
from monitor.plugins import RunbookEntry

INC_005 = RunbookEntry(
    Guide(
        code="INC-005",
        title="High API Latency",
        first_step="Which queries are slow? "
        "`psql -c \"SELECT pid, now() - query_start AS duration, query FROM pg_stat_activity WHERE state = 'active' "
        "AND now() - query_start > interval '2 seconds'\"`",
    )
)
