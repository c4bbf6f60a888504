"""Which jobs failed in the last 24 hours, of what, and is any of the causes new?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.sql import SQL, Composed
from pydantic import Field

from checks.job_tables import JOBS, TABLE_NAME, Wanted, column, grant, identifier, readable
from checks.log_shapes import shape, shape_id
from checks.words import lasted, many
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

FAILED = Metric("monitor_jobs_failed", "Jobs that failed within the window.")
CAUSES = Metric("monitor_jobs_failed_causes", "Different causes among them.")
NEW_CAUSES = Metric("monitor_jobs_failed_causes_new", "Causes among them that were first seen within new_for.")

JOBS_FAILED = FindingKind("JobsFailed", Severity.P4, "INC-003", "More than max_failed jobs failed within the window; grouped by cause.")
NEW_CAUSE = FindingKind("NewFailureCause", Severity.P3, "INC-003", "A job failed of a cause that was not seen before.")

WANTED = Wanted(("job_id", "status", "error_message", "completed_at"), nice=("tenant_id",))
MAX_MESSAGES = 500
"""Different messages that are read; each is one group of equal messages."""
MAX_KNOWN = 1000
FORGET_S = 90 * 86_400.0
LISTED = 8
NO_MESSAGE = "(no message)"
UNREAD = "(more)"


class Config(PluginConfig):
    """Keys of a ``failed_jobs`` check."""

    table: str = Field(JOBS, pattern=TABLE_NAME, description="Schema and table with the runbook's columns.")
    window: Duration = Field(86_400.0, ge=60, description="Jobs that failed within this time count.")
    max_failed: int = Field(0, ge=0, description="More failed jobs are found.")
    new_for: Duration = Field(86_400.0, gt=0, description="How long a cause counts as new after it was first seen.")


@dataclass(slots=True)
class Cause:
    """Failed jobs whose messages have one shape."""

    text: str
    jobs: int = 0
    age_s: float = float("inf")
    """Time since the last of them failed."""
    example: str = ""
    job: str = ""
    """The last of them."""
    tenants: int = 0
    """Tenants of the message that most of them had; there may be more."""


@check(
    "failed_jobs",
    config=Config,
    metrics=(FAILED, CAUSES, NEW_CAUSES),
    finds=(JOBS_FAILED, NEW_CAUSE),
    needs=("dsn",),
    blind="The table is missing, not readable or locked, or the database does not answer.",
    why="A job that failed does not come back by itself, and its data is missing. A hundred failures of one known cause are one problem; "
    "a single failure of a cause that nobody saw before is another (INC-003, and the weekly review of failed jobs).",
    privileges=grant((*WANTED.needed, *WANTED.nice), JOBS),
)
async def failed_jobs(ctx: CheckContext, cfg: Config) -> Observed:
    """Groups the jobs that failed within the window by what their messages have in common, new causes first.

    Numbers, ids, paths and quoted texts do not make a cause another one. At the first run every cause is known.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    columns = (await readable(ctx.pg, {cfg.table: WANTED}))[cfg.table]
    rows = await ctx.pg.fetch(_failed_sql(cfg.table, columns), {"window_s": cfg.window, "limit": MAX_MESSAGES})
    before = ctx.kept.value if ctx.kept else None
    return judge(rows, before, cfg, now=ctx.clock.now(), service=ctx.service.name)


def judge(rows: list[Row], before: Mapping[str, Any] | None, cfg: Config, *, now: datetime, service: str) -> Observed:
    """What the failures mean. ``before`` maps a cause to when it was first and last seen (first None: at the first run). Pure."""
    total = int(rows[0]["total"]) if rows else 0
    causes = grouped(rows)
    known = _remembered(causes, before, now.timestamp())
    new = [cause for name, cause in causes.items() if (first := known[name][0]) is not None and now.timestamp() - first < cfg.new_for]
    samples = (FAILED(total), CAUSES(len(causes)), NEW_CAUSES(len(new)))
    listed = sorted(causes.values(), key=lambda cause: (cause not in new, -cause.jobs, cause.age_s))
    findings = []
    if new:
        fresh = [cause for cause in listed if cause in new]
        what = "a cause" if len(new) == 1 else many(len(new), "cause")
        summary = f"jobs fail of {what} not seen before: {fresh[0].text} ({service})"
        findings.append(NEW_CAUSE(summary, facts=cause_facts(fresh), value=len(new)))
    if total > cfg.max_failed:
        unread = total - sum(cause.jobs for cause in listed)
        facts = cause_facts(listed, new=new, unread=unread)
        kinds = f" of {many(len(listed), 'cause')}" if len(listed) > 1 else ""
        most = max(listed, key=lambda cause: cause.jobs)
        summary = f"{many(total, 'job')} failed in the last {lasted(cfg.window)}{kinds}, most often: {most.text} ({service})"
        findings.append(JOBS_FAILED(summary, facts=facts, value=total))
    return Observed(samples, tuple(findings), keep=known)


def grouped(rows: Iterable[Row]) -> dict[str, Cause]:
    """Groups of equal messages as causes, by a short name of their shape."""
    causes: dict[str, Cause] = {}
    for row in rows:
        text = shape(row["message"]) if row["message"] else NO_MESSAGE
        cause = causes.setdefault(shape_id(text), Cause(text))
        cause.jobs += int(row["jobs"])
        cause.tenants = max(cause.tenants, int(row["tenants"]))
        if row["age_s"] is not None and row["age_s"] < cause.age_s:
            cause.age_s, cause.job = max(0.0, row["age_s"]), one_line(row["job_id"], limit=64)
            cause.example = one_line(row["message"] or "", limit=200)
    return causes


def cause_facts(causes: list[Cause], *, new: Iterable[Cause] = (), unread: int = 0) -> dict[str, str]:
    """One fact a cause: how many, how long ago, the last of them."""
    fresh = list(new)
    facts: dict[str, str] = {}
    for cause in causes[:LISTED]:
        mark = "new, " if cause in fresh else ""
        facts[cause.text] = f"{mark}{many(cause.jobs, 'job')}, the last {lasted(cause.age_s)} ago, job {cause.job}: {cause.example}"
    if len(causes) > LISTED or unread:
        others = many(len(causes) - LISTED, "other cause") if len(causes) > LISTED else ""
        rest = f"{unread} jobs not told apart" if unread else ""
        facts[UNREAD] = " and ".join(part for part in (others, rest) if part)
    return facts


def _remembered(causes: Mapping[str, Cause], before: Mapping[str, Any] | None, now: float) -> dict[str, list[float | None]]:
    """When each cause was first and last seen; what nobody saw for long is forgotten, the longest unseen first."""
    known: dict[str, list[float | None]] = {}
    for name, seen in (before or {}).items():
        match seen:
            case [None | float() | int() as first, float() | int() as last] if now - last < FORGET_S:
                known[name] = [first, last]
    for name in causes:
        first = known.pop(name)[0] if name in known else (None if before is None else now)
        known[name] = [first, now]
    for name in list(known)[: max(0, len(known) - MAX_KNOWN)]:
        del known[name]
    return known


FAILED_JOBS = SQL("""
SELECT message, count(*) AS jobs, count(DISTINCT tenant_id) AS tenants, min(age_s) AS age_s,
       (array_agg(job_id ORDER BY age_s, job_id))[1] AS job_id, (sum(count(*)) OVER ())::bigint AS total
FROM (
    SELECT job_id::text AS job_id, {tenant} AS tenant_id, left(error_message, 400) AS message,
           extract(epoch FROM now() - completed_at)::float8 AS age_s
    FROM {table} WHERE status = 'failed' AND completed_at > now() - make_interval(secs => %(window_s)s)
) AS failed
GROUP BY message ORDER BY age_s, message LIMIT %(limit)s
""")


def _failed_sql(table: str, columns: frozenset[str]) -> Composed:
    return FAILED_JOBS.format(table=identifier(table), tenant=column("tenant_id", columns, cast=SQL("text")))
