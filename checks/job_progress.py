"""Do jobs in processing get on, whatever their heartbeat says?"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from psycopg.sql import SQL, Composed
from pydantic import Field

from checks.job_tables import JOBS, PROGRESS, TABLE_NAME, Wanted, column, grant, identifier, readable
from checks.words import lasted, many
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

STILL = Metric("monitor_jobs_without_progress", "Jobs in processing whose progress has not moved for longer than no_progress_after.")
LONGEST = Metric("monitor_jobs_without_progress_longest_seconds", "Longest time that a job in processing has been known to stand still.")

NO_PROGRESS = FindingKind(
    "JobNoProgress",
    Severity.P2,
    "INC-003",
    "A job is in processing and its progress has not moved for longer than no_progress_after. The number is the longest time, in seconds.",
)

WANTED = Wanted(("job_id", "status", "started_at"), ("heartbeat_at",), ("created_at", "tenant_id", "worker"))
MAX_JOBS = 500
"""Jobs that are followed: those started first."""


class Config(PluginConfig):
    """Keys of a ``job_progress`` check."""

    table: str = Field(JOBS, pattern=TABLE_NAME, description="Schema and table with the runbook's columns.")
    progress: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], ...] = Field(
        (), max_length=5, description=f"Columns that move with progress. Without any: those of {', '.join(PROGRESS)} that the table has."
    )
    no_progress_after: Duration = Field(900.0, gt=0, description="A job that stands still for longer is found.")
    max_listed: int = Field(10, ge=1, le=50, description="How many jobs the evidence lists.")


@check(
    "job_progress",
    config=Config,
    metrics=(STILL, LONGEST),
    finds=(NO_PROGRESS,),
    needs=("dsn",),
    blind="The table is missing, not readable or locked, has neither column of progress nor heartbeat, or the database does not answer.",
    why="A job may beat its heart and get nowhere: a source that never answers, a loop, a lock. Only what it has done tells (INC-003).",
    privileges=grant((*WANTED.needed, *WANTED.where_there, PROGRESS[0], *WANTED.nice), JOBS),
)
async def job_progress(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares what each job in processing has done with the run before, and finds those that stand still.

    When a job is first seen, an old heartbeat tells since when. A job that was started anew begins anew.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    wanted = Wanted((*WANTED.needed, *cfg.progress), (*WANTED.where_there, *(() if cfg.progress else PROGRESS)), WANTED.nice)
    columns = (await readable(ctx.pg, {cfg.table: wanted}))[cfg.table]
    progress = cfg.progress or tuple(name for name in PROGRESS if name in columns) or tuple({"heartbeat_at"} & columns)
    if not progress:
        raise CannotLook(
            f"the table {cfg.table} has neither a heartbeat_at nor a column of progress ({', '.join(PROGRESS)}): name one in progress"
        )
    rows = await ctx.pg.fetch(_progress_sql(cfg.table, columns, progress), {"limit": MAX_JOBS})
    before = ctx.kept.value if ctx.kept else {}
    return judge(rows, before, cfg, now=ctx.clock.now(), progress=progress, service=ctx.service.name)


def judge(rows: list[Row], before: Mapping[str, Any], cfg: Config, *, now: datetime, progress: tuple[str, ...], service: str) -> Observed:
    """How long each job has stood still. ``before`` maps a job to what it had done, and since when by our clock. Pure."""
    keep: dict[str, list[object]] = {}
    still: list[tuple[float, Row]] = []
    for row in rows:
        done, since = f"{row['started']}|{row['done']}", now.timestamp()
        match before.get(row["job_id"]):
            case [str(last), float() | int() as at]:
                since = min(since, at) if last == done else since
            case _:  # seen for the first time: it made no progress since its last sign of life
                since -= max(0.0, float(row["silent_s"] or 0))
        keep[row["job_id"]] = [done, since]
        still.append((max(0.0, now.timestamp() - since), row))
    still.sort(key=lambda found: (-found[0], found[1]["job_id"]))
    bad = [(still_s, row) for still_s, row in still if still_s > cfg.no_progress_after]
    samples = (STILL(len(bad)), LONGEST(still[0][0] if still else 0))
    if not bad:
        return Observed(samples, keep=keep)
    longest_s = bad[0][0]
    facts = {"without progress": f"{len(bad)} of {len(rows)} in processing", "progress is": ", ".join(progress)}
    facts |= {f"job {one_line(row['job_id'], limit=64)}": _job(still_s, row) for still_s, row in bad[: cfg.max_listed]}
    if len(bad) > cfg.max_listed:
        facts["more"] = f"{len(bad) - cfg.max_listed} not listed"
    who = "1 job in processing has" if len(bad) == 1 else f"{many(len(bad), 'job')} in processing have"
    summary = f"{who} made no progress for {lasted(longest_s)}, longer than {lasted(cfg.no_progress_after)} ({service})"
    return Observed(samples, (NO_PROGRESS(summary, facts=facts, value=longest_s),), keep=keep)


def _job(still_s: float, row: Row) -> str:
    tenant = f", tenant {one_line(row['tenant_id'], limit=64)}" if row["tenant_id"] else ""
    worker = f", worker {one_line(row['worker'], limit=64)}" if row["worker"] else ""
    done = f"at {one_line(row['done'], limit=60)} " if row["done"] else ""
    beat = f", last heartbeat {lasted(max(0.0, row['silent_s']))} ago" if row["silent_s"] is not None else ""
    return f"{done}for {lasted(still_s)}{tenant}{worker}{beat}"


IN_PROCESSING = SQL("""
SELECT job_id::text AS job_id, {tenant} AS tenant_id, {worker} AS worker, concat_ws(' / ', {done}) AS done,
       extract(epoch FROM started_at)::text AS started, extract(epoch FROM now() - {heartbeat})::float8 AS silent_s
FROM {table} WHERE status = 'processing' ORDER BY started_at, job_id LIMIT %(limit)s
""")


def _progress_sql(table: str, columns: frozenset[str], progress: tuple[str, ...]) -> Composed:
    text = SQL("text")
    return IN_PROCESSING.format(
        table=identifier(table),
        heartbeat=column("heartbeat_at", columns, cast=SQL("timestamptz")),
        tenant=column("tenant_id", columns, cast=text),
        worker=column("worker", columns, cast=text),
        done=SQL(", ").join(column(name, columns, cast=text) for name in progress),
    )
