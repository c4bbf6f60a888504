"""INC-006: users cannot log in. Owns what the runbook says first about it."""

from monitor.domain import Guide
from monitor.plugins import RunbookEntry

INC_006 = RunbookEntry(
    Guide(
        code="INC-006",
        title="Authentication Failures",
        first_step="What do its log and the identity provider say? "
        "`tail -100 logs/auth-service-error.log`, then `curl -v` the provider's /health",
    )
)
