"""INC-002: the database has no connection left. Owns what the runbook says first about it."""

from monitor.domain import Guide
from monitor.plugins import RunbookEntry

INC_002 = RunbookEntry(
    Guide(
        code="INC-002",
        title="Database Connection Exhausted",
        first_step="Who holds them? "
        '`psql -c "SELECT application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC"`',
    )
)
