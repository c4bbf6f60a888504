"""Do email jobs end well, and do the mails that are due go out?"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.sql import SQL
from pydantic import Field

from checks.failed_jobs import MAX_MESSAGES, cause_facts, grouped
from checks.job_tables import MAIL_JOBS, TABLE_NAME, Wanted, grant, identifier, readable
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

FAILING = Metric("monitor_email_jobs_failing", "Email jobs that failed within the window, after the last good one of their tenant.")
FAILED_JOBS = Metric("monitor_email_jobs_failed", "Email jobs that failed within the window.")
SENT = Metric("monitor_emails_sent", "Mails sent within the window.")
FAILED = Metric("monitor_emails_failed", "Mails that the mail servers refused, or that never reached one, within the window.")
RATIO = Metric("monitor_email_failure_ratio", "Failed mails as a share of those tried within the window; absent when none was tried.")
DUE = Metric("monitor_emails_due", "Mails of jobs that wait, run or failed within the window, and that did not go out within due_after.")

EMAIL_JOBS_FAILING = FindingKind(
    "EmailJobsFailing", Severity.P3, "INC-004", "Email jobs of a tenant failed within the window, and none has ended well since."
)
EMAIL_FAILURE_RATIO = FindingKind(
    "EmailFailureRatio", Severity.P3, "INC-004", "A bigger share than max_failure_ratio of the mails within the window failed."
)
NO_EMAIL_SENT = FindingKind(
    "NoEmailSent", Severity.P3, "INC-004", "Not one mail went out within the window although mails were due; the number is how many."
)

HISTORY = "public.email_send_history"
JOB_COLUMNS = Wanted(
    ("job_id", "tenant_id", "status", "total_emails", "emails_sent", "created_at", "completed_at", "error_message"),
)
HISTORY_COLUMNS = Wanted(("tenant_id", "status", "sent_at"))
LISTED = 6


class Config(PluginConfig):
    """Keys of an ``email_jobs`` check."""

    table: str = Field(MAIL_JOBS, pattern=TABLE_NAME, description="Table of email jobs with the runbook's columns.")
    history: str = Field(HISTORY, pattern=TABLE_NAME, description="Table with one row a mail: tenant_id, status and sent_at.")
    window: Duration = Field(86_400.0, ge=60, description="What happened within this time counts.")
    max_failing: int = Field(0, ge=0, description="More failed jobs that no good one of the same tenant followed are found.")
    max_failure_ratio: float = Field(0.1, ge=0, lt=1, description="A bigger share of failed mails is found.")
    min_mails: int = Field(20, ge=1, description="Of fewer mails the share says nothing.")
    due_after: Duration = Field(900.0, ge=0, description="A mail is due when its job was ordered longer ago.")


@dataclass(frozen=True, slots=True)
class Mails:
    """Mails of the window, and of the tenants with the most failed ones."""

    sent: int
    failed: int
    tenants: tuple[tuple[str, int, int], ...] = ()
    """Tenant, sent, failed."""

    @property
    def ratio(self) -> float:
        return self.failed / max(1, self.sent + self.failed)


@check(
    "email_jobs",
    config=Config,
    metrics=(FAILING, FAILED_JOBS, SENT, FAILED, RATIO, DUE),
    finds=(EMAIL_JOBS_FAILING, EMAIL_FAILURE_RATIO, NO_EMAIL_SENT),
    needs=("dsn",),
    blind="A table is missing, not readable or locked, or the database does not answer.",
    why="A report that does not arrive is missed days later, by the customer. Failed jobs, refused mails and silence are three different "
    "things to see: with a dead mail server all mails fail, with no worker none is even tried (INC-004).",
    privileges=f"{grant(JOB_COLUMNS.needed, MAIL_JOBS)} {grant(HISTORY_COLUMNS.needed, HISTORY)} Recipients, subjects and texts stay "
    "unseen; an error_message may name a recipient.",
)
async def email_jobs(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks for email jobs that fail, for a high share of failed mails, and for mails that are due while none goes out."""
    assert ctx.pg is not None  # needs=("dsn",)
    await readable(ctx.pg, {cfg.table: JOB_COLUMNS, cfg.history: HISTORY_COLUMNS})
    jobs, history = identifier(cfg.table), identifier(cfg.history)
    window = {"window_s": cfg.window}
    failing, history_rows, (due,) = await ctx.pg.fetch_many(
        [
            (FAILING_JOBS.format(table=jobs), window | {"limit": MAX_MESSAGES}),
            (MAILS.format(table=history), window | {"limit": LISTED}),
            (DUE_MAILS.format(table=jobs), window | {"due_s": cfg.due_after}),
        ]
    )
    return judge(failing, _mails(history_rows), due, cfg, service=ctx.service.name)


def judge(failing: Sequence[Row], mails: Mails, due: Row, cfg: Config, *, service: str) -> Observed:
    """What jobs and mails mean. Pure."""
    total, due_mails = sum(int(row["total"]) for row in failing[:1]), int(due["mails"])
    samples: list[Sample] = [FAILING(total), FAILED_JOBS(due["failed"]), SENT(mails.sent), FAILED(mails.failed), DUE(due_mails)]
    if mails.sent + mails.failed:
        samples.append(RATIO(mails.ratio))
    findings: list[Finding] = []
    if due_mails and not mails.sent:
        findings.append(_nothing_sent(due, due_mails, mails, failing, cfg, service))
    if total > cfg.max_failing:
        findings.append(_jobs_failing(failing, total, service))
    if mails.sent + mails.failed >= cfg.min_mails and mails.ratio > cfg.max_failure_ratio:
        tried = mails.sent + mails.failed
        facts = {"sent": str(mails.sent), "failed": str(mails.failed), **_by_tenant(mails)}
        summary = f"{mails.ratio:.0%} of {many(tried, 'mail')} failed in the last {lasted(cfg.window)} ({service})"
        findings.append(EMAIL_FAILURE_RATIO(summary, facts=facts, value=mails.ratio))
    return Observed(tuple(samples), tuple(findings))


def _nothing_sent(due: Row, due_mails: int, mails: Mails, failing: Sequence[Row], cfg: Config, service: str) -> Finding:
    facts = {
        "due": f"{many(due_mails, 'mail')} of {many(int(due['jobs']), 'job')}, the oldest ordered {lasted(due['oldest_s'])} ago",
        "tried": f"{many(mails.failed, 'mail')}, all in vain" if mails.failed else "none: is the service that sends them running?",
        "jobs": f"{due['queued']} queued, {due['processing']} in processing, {due['failed']} failed",
    }
    causes = sorted(grouped(failing).values(), key=lambda cause: -cause.jobs)
    facts |= cause_facts(causes[:3])
    summary = f"not one mail went out in the last {lasted(cfg.window)}, and {many(due_mails, 'is', 'are')} due ({service})"
    return NO_EMAIL_SENT(summary, facts=facts, value=due_mails)


def _jobs_failing(failing: Sequence[Row], total: int, service: str) -> Finding:
    causes = sorted(grouped(failing).values(), key=lambda cause: (-cause.jobs, cause.age_s))
    tenants = int(failing[0]["all_tenants"])
    names = ", ".join(one_line(name, limit=40) for name in failing[0]["names"])
    facts = {"tenants": f"{names} and {tenants - len(failing[0]['names'])} more" if tenants > len(failing[0]["names"]) else names}
    facts |= cause_facts(causes, unread=total - sum(cause.jobs for cause in causes))
    facts["to try one again"] = "UPDATE email_sending_jobs SET status = 'queued', error_message = NULL WHERE job_id = '…';"
    most = causes[0].text if causes else ""
    summary = f"{many(total, 'email job')} of {many(tenants, 'tenant')} failed, and none ended well since, most often: {most} ({service})"
    return EMAIL_JOBS_FAILING(summary, facts=facts, value=total)


def _by_tenant(mails: Mails) -> dict[str, str]:
    listed = [(tenant, sent, failed) for tenant, sent, failed in mails.tenants if failed]
    return {f"tenant {one_line(tenant, limit=64)}": f"{failed} of {sent + failed} failed" for tenant, sent, failed in listed}


def _mails(rows: Sequence[Row]) -> Mails:
    if not rows:
        return Mails(0, 0)
    tenants = tuple((row["tenant_id"], int(row["sent"]), int(row["failed"])) for row in rows)
    return Mails(int(rows[0]["all_sent"]), int(rows[0]["all_failed"]), tenants)


FAILING_JOBS = SQL("""
WITH ended AS (
    SELECT job_id::text AS job_id, tenant_id::text AS tenant_id, status, completed_at, left(error_message, 400) AS message
    FROM {table} WHERE status IN ('completed', 'failed') AND completed_at > now() - make_interval(secs => %(window_s)s)
), good AS (
    SELECT tenant_id, max(completed_at) AS at FROM ended WHERE status = 'completed' GROUP BY tenant_id
), bad AS (
    SELECT e.job_id, e.tenant_id, e.message, extract(epoch FROM now() - e.completed_at)::float8 AS age_s
    FROM ended e LEFT JOIN good g ON g.tenant_id = e.tenant_id
    WHERE e.status = 'failed' AND (g.at IS NULL OR e.completed_at > g.at)
)
SELECT message, count(*) AS jobs, count(DISTINCT tenant_id) AS tenants, min(age_s) AS age_s,
       (array_agg(job_id ORDER BY age_s, job_id))[1] AS job_id, (sum(count(*)) OVER ())::bigint AS total,
       (SELECT count(DISTINCT tenant_id) FROM bad) AS all_tenants,
       ARRAY(SELECT tenant_id FROM bad GROUP BY tenant_id ORDER BY count(*) DESC, tenant_id LIMIT 5) AS names
FROM bad GROUP BY message ORDER BY age_s, message LIMIT %(limit)s
""")

MAILS = SQL("""
SELECT tenant_id::text AS tenant_id, sent, failed, (sum(sent) OVER ())::bigint AS all_sent, (sum(failed) OVER ())::bigint AS all_failed
FROM (
    SELECT tenant_id, count(*) FILTER (WHERE status = 'sent') AS sent, count(*) FILTER (WHERE status = 'failed') AS failed
    FROM {table} WHERE sent_at > now() - make_interval(secs => %(window_s)s) GROUP BY tenant_id
) AS mails
ORDER BY failed DESC, tenant_id LIMIT %(limit)s
""")

DUE_MAILS = SQL("""
SELECT count(*) FILTER (WHERE is_due) AS jobs, coalesce(sum(greatest(0, total_emails - emails_sent)) FILTER (WHERE is_due), 0) AS mails,
       count(*) FILTER (WHERE status = 'queued') AS queued, count(*) FILTER (WHERE status = 'processing') AS processing,
       count(*) FILTER (WHERE status = 'failed') AS failed, coalesce(max(ordered_s) FILTER (WHERE is_due), 0) AS oldest_s
FROM (
    SELECT status, total_emails, emails_sent, extract(epoch FROM now() - created_at)::float8 AS ordered_s,
           created_at < now() - make_interval(secs => %(due_s)s) AS is_due
    FROM {table} WHERE status IN ('queued', 'processing')
    UNION ALL
    SELECT status, total_emails, emails_sent, extract(epoch FROM now() - created_at)::float8,
           created_at < now() - make_interval(secs => %(due_s)s)
    FROM {table} WHERE status = 'failed' AND completed_at > now() - make_interval(secs => %(window_s)s)
) AS jobs
""")
