"""Do jobs hang in ``processing``: silent for longer than the runbook allows, or held by nobody because their lease is over?"""

from psycopg.sql import SQL, Composed
from pydantic import Field

from checks.job_tables import JOBS, TABLE_NAME, Wanted, alive_at, column, grant, identifier, readable
from checks.words import lasted, many
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

PROCESSING = Metric("monitor_jobs_processing", "Jobs in processing.")
STUCK = Metric("monitor_jobs_stuck", "Jobs in processing that are stuck: silent for longer than older_than, or past their lease.")
OLDEST = Metric(
    "monitor_jobs_oldest_heartbeat_seconds", "Longest time since the last sign of life of a job in processing; 0 when there is none."
)
LEASE_EXPIRED = Metric("monitor_jobs_lease_expired", "Jobs in processing whose lease has been over for longer than lease_grace.")

STUCK_JOB = FindingKind(
    "StuckJob",
    Severity.P2,
    "INC-003",
    "At least one job is in processing and silent for longer than older_than, or its lease has been over for longer than lease_grace. "
    "The number is the longest silence of a stuck job, in seconds.",
)

WANTED = Wanted(("job_id", "status", "started_at"), ("heartbeat_at", "lease_until"), ("created_at", "tenant_id", "worker"))


class Config(PluginConfig):
    """Keys of a ``stuck_jobs`` check."""

    table: str = Field(JOBS, pattern=TABLE_NAME, description="Schema and table with the runbook's columns.")
    older_than: Duration = Field(1800.0, gt=0, description="A job silent for longer is stuck.")
    lease_grace: Duration = Field(
        60.0, ge=0, description="A job whose lease (lease_until, where the table has it) has been over for longer is stuck at once."
    )
    max_listed: int = Field(10, ge=1, le=50, description="How many stuck jobs the evidence lists.")


@check(
    "stuck_jobs",
    config=Config,
    metrics=(PROCESSING, STUCK, OLDEST, LEASE_EXPIRED),
    finds=(STUCK_JOB,),
    needs=("dsn",),
    blind="The table is missing, not readable, or locked, or the database does not answer.",
    why="A job that hangs brings no data and says nothing: the first who notices is the customer whose report is empty (INC-003). A lease "
    "that is over proves sooner than any silence that no worker holds the job any more, and that none takes it up.",
    privileges=grant((*WANTED.needed, *WANTED.where_there, *WANTED.nice), JOBS),
)
async def stuck_jobs(ctx: CheckContext, cfg: Config) -> Observed:
    """Finds jobs in processing whose last sign of life is too old, or whose lease is over.

    The sign of life is the heartbeat where the table has one, else the start. Times without a time zone are read as UTC.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    columns = (await readable(ctx.pg, {cfg.table: WANTED}))[cfg.table]
    limits = {"older_than_s": cfg.older_than, "grace_s": cfg.lease_grace, "limit": cfg.max_listed}
    rows = await ctx.pg.fetch(_stuck_sql(cfg.table, columns), limits)
    return judge(rows, cfg, sign=alive_at(columns)[0], service=ctx.service.name)


def judge(rows: list[Row], cfg: Config, *, sign: str, service: str) -> Observed:
    """What the rows mean: stuck first, silent longest first, each with the totals. Pure."""
    first = rows[0] if rows else {"processing": 0, "stuck": 0, "expired": 0, "oldest_s": 0}
    processing, stuck, expired = int(first["processing"]), int(first["stuck"]), int(first["expired"])
    samples = (PROCESSING(processing), STUCK(stuck), OLDEST(max(0.0, float(first["oldest_s"] or 0))), LEASE_EXPIRED(expired))
    if not stuck:
        return Observed(samples)
    listed = [row for row in rows if row["is_stuck"]]
    silent_s = max(0.0, *(float(row["silent_s"] or 0) for row in listed))
    facts = {"stuck": f"{stuck} of {processing} in processing", "silent for": lasted(silent_s), "sign of life": sign}
    if expired:
        facts["lease over"] = f"{many(expired, 'job')}: no worker holds {'it' if expired == 1 else 'them'}, and none takes over"
    facts |= {f"job {one_line(row['job_id'], limit=64)}": _job(row) for row in listed}
    if stuck > len(listed):
        facts["more"] = f"{stuck - len(listed)} not listed"
    return Observed(samples, (STUCK_JOB(_summary(listed, cfg, stuck, expired, silent_s, service), facts=facts, value=silent_s),))


def _summary(listed: list[Row], cfg: Config, stuck: int, expired: int, silent_s: float, service: str) -> str:
    who = "1 job has" if stuck == 1 else f"{stuck} jobs have"
    if silent_s > cfg.older_than:
        also = f", {expired} past the lease" if expired else ""
        silent = f"{lasted(silent_s)}, longer than {lasted(cfg.older_than)}"
        return f"{who} been in processing without a sign of life for {silent}{also} ({service})"
    over_s = max(float(row["lease_over_s"] or 0) for row in listed)
    return f"{who} been left in processing: the lease has been over for {lasted(over_s)}, and no worker takes over ({service})"


def _job(row: Row) -> str:
    tenant = f", tenant {one_line(row['tenant_id'], limit=64)}" if row["tenant_id"] else ""
    lease = f", lease over for {lasted(row['lease_over_s'])}" if row["is_expired"] else ""
    worker = f", worker {one_line(row['worker'], limit=64)}" if row["worker"] else ""
    return f"silent for {lasted(row['silent_s'] or 0)}{lease}{tenant}{worker}, last sign of life {row['last_sign']}"


STUCK_JOBS = SQL("""
SELECT job_id, tenant_id, worker, silent_s, lease_over_s, is_stuck, is_expired,
       to_char(alive_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') AS last_sign,
       count(*) OVER () AS processing, count(*) FILTER (WHERE is_stuck) OVER () AS stuck,
       count(*) FILTER (WHERE is_expired) OVER () AS expired, max(silent_s) OVER () AS oldest_s
FROM (
    SELECT *, coalesce(silent_s > %(older_than_s)s, false) OR is_expired AS is_stuck
    FROM (
        SELECT *, extract(epoch FROM clock_timestamp() - alive_at)::float8 AS silent_s,
               extract(epoch FROM clock_timestamp() - lease_until)::float8 AS lease_over_s,
               coalesce(extract(epoch FROM clock_timestamp() - lease_until) > %(grace_s)s, false) AS is_expired
        FROM (
            SELECT job_id::text AS job_id, {tenant} AS tenant_id, {worker} AS worker, {alive_at} AS alive_at, {lease} AS lease_until
            FROM {table} WHERE status = 'processing'
        ) AS processing
    ) AS aged
) AS jobs
ORDER BY is_stuck DESC, silent_s DESC NULLS LAST, job_id LIMIT %(limit)s
""")


def _stuck_sql(table: str, columns: frozenset[str]) -> Composed:
    return STUCK_JOBS.format(
        table=identifier(table),
        alive_at=alive_at(columns)[1],
        lease=column("lease_until", columns, cast=SQL("timestamptz")),
        tenant=column("tenant_id", columns, cast=SQL("text")),
        worker=column("worker", columns, cast=SQL("text")),
    )
