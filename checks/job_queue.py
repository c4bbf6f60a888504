"""Are jobs taken up, or do they wait?"""

from typing import Annotated

from psycopg.sql import SQL, Composed
from pydantic import Field

from checks.job_tables import JOBS, MAIL_JOBS, TABLE_NAME, Wanted, grant, identifier, readable
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

DEPTH = Metric("monitor_jobs_queued", "Jobs that wait in the queue.", ("table",))
OLDEST = Metric("monitor_jobs_queued_oldest_seconds", "How long the oldest of them has been waiting; 0 when none waits.", ("table",))

_WAIT = "The oldest queued job has been waiting for longer than wait_after, in seconds"
_DEEP = "More than max_depth jobs wait"
JOBS_WAIT = FindingKind("JobsWaitTooLong", Severity.P3, "INC-003", f"{_WAIT}, in a table of tables.")
MAIL_JOBS_WAIT = FindingKind("MailJobsWaitTooLong", Severity.P3, "INC-004", f"{_WAIT}, in a table of mail_tables.")
QUEUE_DEEP = FindingKind("JobQueueDeep", Severity.P4, "INC-003", f"{_DEEP} in a table of tables.")
MAIL_QUEUE_DEEP = FindingKind("MailQueueDeep", Severity.P4, "INC-004", f"{_DEEP} in a table of mail_tables.")

WANTED = Wanted(("job_id", "status", "created_at", "started_at"), nice=("completed_at",))
Table = Annotated[str, Field(pattern=TABLE_NAME)]


class Config(PluginConfig):
    """Keys of a ``job_queue`` check."""

    tables: tuple[Table, ...] = Field((JOBS,), max_length=10, description="Tables of ingestion jobs with the runbook's columns.")
    mail_tables: tuple[Table, ...] = Field((MAIL_JOBS,), max_length=10, description="Tables of email jobs: what is found is INC-004.")
    wait_after: Duration = Field(1800.0, gt=0, description="A job that waits for longer is found.")
    max_depth: int = Field(100, ge=0, description="More jobs in the queue are found.")


@check(
    "job_queue",
    config=Config,
    metrics=(DEPTH, OLDEST),
    finds=(JOBS_WAIT, MAIL_JOBS_WAIT, QUEUE_DEEP, MAIL_QUEUE_DEEP),
    needs=("dsn",),
    blind="A table is missing, not readable or locked, or the database does not answer.",
    why="A job that nobody takes up fails nowhere and is logged nowhere: no worker is left, or one job holds them all (INC-003, INC-004).",
    privileges=grant((*WANTED.needed, *WANTED.nice), f"{JOBS} and {MAIL_JOBS}"),
)
async def job_queue(ctx: CheckContext, cfg: Config) -> Observed:
    """Measures depth and age of each queue of jobs and says whether its workers do anything."""
    assert ctx.pg is not None  # needs=("dsn",)
    tables = tuple(dict.fromkeys((*cfg.tables, *cfg.mail_tables)))
    columns = await readable(ctx.pg, dict.fromkeys(tables, WANTED))
    answers = await ctx.pg.fetch_many([(_queue_sql(table, columns[table]), {}) for table in tables])
    return judge({table: rows[0] for table, rows in zip(tables, answers, strict=True)}, cfg, service=ctx.service.name)


def judge(queues: dict[str, Row], cfg: Config, *, service: str) -> Observed:
    """What the queues mean. Pure."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    for table, row in queues.items():
        name, depth, oldest_s = table.removeprefix("public."), int(row["queued"]), max(0.0, float(row["oldest_s"] or 0))
        samples += [DEPTH(depth, table=name), OLDEST(oldest_s, table=name)]
        facts = {"waiting": many(depth, "job"), "oldest": f"job {one_line(row['job_id'] or '', limit=64)}, for {lasted(oldest_s)}"}
        facts |= _workers(row)
        waits, deep = (MAIL_JOBS_WAIT, MAIL_QUEUE_DEEP) if table in cfg.mail_tables else (JOBS_WAIT, QUEUE_DEEP)
        labels = {"table": name}
        if oldest_s > cfg.wait_after:
            idle = "" if row["processing"] else ", and none is in processing"
            summary = (
                f"{many(depth, 'job')} in {name} {'waits' if depth == 1 else 'wait'}, the oldest for {lasted(oldest_s)}{idle} ({service})"
            )
            findings.append(waits(summary, labels=labels, facts=facts, value=oldest_s))
        if depth > cfg.max_depth:
            summary = f"{many(depth, 'job')} wait in {name}, more than {cfg.max_depth} ({service})"
            findings.append(deep(summary, labels=labels, facts=facts, value=depth))
    return Observed(tuple(samples), tuple(findings))


def _workers(row: Row) -> dict[str, str]:
    """What tells dead workers from busy ones."""
    processing = int(row["processing"])
    facts = {"in processing": f"{processing}" if processing else "none: is the service that works them off running?"}
    if row["started_s"] is not None:
        facts["last taken up"] = f"{lasted(max(0.0, row['started_s']))} ago"
    return facts


# Waiting and running jobs only: the partial index holds just those.
QUEUE = SQL("""
SELECT count(*) FILTER (WHERE status = 'queued') AS queued, count(*) FILTER (WHERE status = 'processing') AS processing,
       extract(epoch FROM now() - (min(created_at) FILTER (WHERE status = 'queued'))::timestamptz)::float8 AS oldest_s,
       (array_agg(job_id::text ORDER BY created_at, job_id) FILTER (WHERE status = 'queued'))[1] AS job_id,
       extract(epoch FROM now() - max(started_at)::timestamptz)::float8 AS started_s
FROM {table} WHERE status IN ('queued', 'processing')
""")


def _queue_sql(table: str, columns: frozenset[str]) -> Composed:
    return QUEUE.format(table=identifier(table))
