"""Do ingestion jobs hang in ``processing``, without a sign of life for longer than the runbook allows?"""

from dataclasses import dataclass

from psycopg.sql import SQL, Composed, Identifier
from pydantic import Field

from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Postgres, Row

PROCESSING = Metric("monitor_jobs_processing", "Jobs in processing.")
STUCK = Metric("monitor_jobs_stuck", "Jobs in processing without a sign of life for longer than older_than.")
OLDEST = Metric(
    "monitor_jobs_oldest_heartbeat_seconds", "Longest time since the last sign of life of a job in processing; 0 when there is none."
)

STUCK_JOB = FindingKind("StuckJob", Severity.P2, "INC-003", "At least one job is in processing and silent for longer than older_than.")


class Config(PluginConfig):
    """Keys of a ``stuck_jobs`` check."""

    table: str = Field(
        "public.processing_jobs", pattern=r"^([A-Za-z_]\w*\.)?[A-Za-z_]\w*$", description="Schema and table with the runbook's columns."
    )
    older_than: Duration = Field(1800.0, gt=0, description="A job silent for longer is stuck.")
    max_listed: int = Field(10, ge=1, le=50, description="How many stuck jobs the evidence lists.")

    @property
    def qualified(self) -> tuple[str, str]:
        schema, _, name = self.table.rpartition(".")
        return schema or "public", name


@dataclass(frozen=True, slots=True)
class Shape:
    """What the table offers: the columns that tell of a sign of life, best first, and whether it names a tenant."""

    signs: tuple[str, ...]
    has_tenant: bool


@check(
    "stuck_jobs",
    config=Config,
    metrics=(PROCESSING, STUCK, OLDEST),
    finds=(STUCK_JOB,),
    needs=("dsn",),
    blind="The table is missing, not readable, or locked, or the database does not answer.",
    why="A job that hangs in processing brings no new data, blocks its worker and looks busy for ever (INC-003).",
    privileges="`SELECT` on the jobs table for the role of the service's `dsn`.",
)
async def stuck_jobs(ctx: CheckContext, cfg: Config) -> Observed:
    """Finds jobs in processing whose last sign of life is too old: the heartbeat where the table has one, else the start.

    Times without a time zone are read as UTC.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    shape = await _shape(ctx.pg, cfg)
    rows = await ctx.pg.fetch(_jobs_sql(cfg, shape), {"older_than_s": cfg.older_than, "limit": cfg.max_listed})
    return judge(rows, cfg, sign=shape.signs[0], service=ctx.service.name)


def judge(rows: list[Row], cfg: Config, *, sign: str, service: str) -> Observed:
    """What the rows mean: silent longest first, each with the totals. Pure."""
    processing = int(rows[0]["processing"]) if rows else 0
    stuck = int(rows[0]["stuck"]) if rows else 0
    oldest_s = max(0.0, float(rows[0]["silent_s"] or 0)) if rows else 0.0
    samples = (PROCESSING(processing), STUCK(stuck), OLDEST(oldest_s))
    if not stuck:
        return Observed(samples)
    listed = [row for row in rows if row["is_stuck"]]
    facts = {"stuck": f"{stuck} of {processing} in processing", "silent for": _age(oldest_s), "sign of life": sign}
    facts |= {f"job {one_line(row['job_id'], limit=64)}": _job(row) for row in listed}
    if stuck > len(listed):
        facts["more"] = f"{stuck - len(listed)} not listed"
    who = "1 job has" if stuck == 1 else f"{stuck} jobs have"
    summary = f"{who} been in processing without a sign of life for {_age(oldest_s)}, longer than {_age(cfg.older_than)} ({service})"
    return Observed(samples, (STUCK_JOB(summary, facts=facts),))


def _job(row: Row) -> str:
    tenant = f", tenant {one_line(row['tenant_id'], limit=64)}" if row["tenant_id"] else ""
    return f"silent for {_age(row['silent_s'])}{tenant}, last sign of life {row['last_sign']}"


def _age(seconds: float) -> str:
    minutes = round(seconds) // 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


# to_regclass() would take no lock either, but raises where the role may not enter the schema
SHAPE = """
SELECT has_schema_privilege(n.oid, 'USAGE') AS may_enter, has_table_privilege(c.oid, 'SELECT') AS may_read, current_user::text AS me,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""


async def _shape(pg: Postgres, cfg: Config) -> Shape:
    """Look the table up in the catalog, without touching it. Raises ``CannotLook`` naming the table and the grant."""
    schema, table = cfg.qualified
    rows = await pg.fetch(SHAPE, {"schema": schema, "table": table})
    if not rows:
        raise CannotLook(
            f"the table {cfg.table} does not exist in the service's database: look at the check's table and at the service's dsn"
        )
    row, me = rows[0], rows[0]["me"]
    if not row["may_enter"]:
        raise CannotLook(f"the role {me} may not enter the schema {schema}: GRANT USAGE ON SCHEMA {schema} TO {me}")
    if not row["may_read"]:
        raise CannotLook(f"the role {me} may not read the table {cfg.table}: GRANT SELECT ON {cfg.table} TO {me}")
    missing = sorted({"job_id", "status", "started_at"} - set(row["columns"]))
    if missing:
        raise CannotLook(f"the table {cfg.table} has no column {', '.join(missing)}, which the runbook's jobs table has")
    signs = tuple(column for column in ("heartbeat_at", "started_at", "created_at") if column in row["columns"])
    return Shape(signs, "tenant_id" in row["columns"])


JOBS = SQL("""
SELECT job_id, tenant_id, silent_s, to_char(alive_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') AS last_sign,
       coalesce(silent_s > %(older_than_s)s, false) AS is_stuck,
       count(*) OVER () AS processing, count(*) FILTER (WHERE silent_s > %(older_than_s)s) OVER () AS stuck
FROM (
    SELECT job_id, tenant_id, alive_at, extract(epoch FROM clock_timestamp() - alive_at)::float8 AS silent_s
    FROM (
        SELECT job_id::text AS job_id, {tenant} AS tenant_id, coalesce({signs})::timestamptz AS alive_at
        FROM {table} WHERE status = 'processing'
    ) AS processing
) AS jobs
ORDER BY silent_s DESC NULLS LAST, job_id LIMIT %(limit)s
""")


def _jobs_sql(cfg: Config, shape: Shape) -> Composed:
    return JOBS.format(
        table=Identifier(*cfg.qualified),
        signs=SQL(", ").join(map(Identifier, shape.signs)),
        tenant=SQL("tenant_id::text") if shape.has_tenant else SQL("NULL::text"),
    )
