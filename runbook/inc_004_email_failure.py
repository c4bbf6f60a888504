"""INC-004: e-mail jobs fail. Owns what the runbook says first about it."""

from monitor.domain import Guide
from monitor.plugins import RunbookEntry

INC_004 = RunbookEntry(
    Guide(
        code="INC-004",
        title="Email Sending Failure",
        first_step="What do the last jobs say? "
        '`psql -c "SELECT job_id, status, total_emails, emails_sent, emails_failed, error_message '
        'FROM email_sending_jobs ORDER BY created_at DESC LIMIT 5"`',
    )
)
