"""Which statements and transactions have been running for too long, and are many of them slow right now?"""

from pydantic import Field

from checks import pg_sight
from checks.pg_statement_text import masked
from checks.words import lasted
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

LONG = Metric("monitor_pg_long_queries", "Client sessions whose statement or transaction runs for longer than long_after.")
SLOW = Metric("monitor_pg_slow_queries", "Client sessions whose statement runs for longer than slow_after.")
OLDEST = Metric("monitor_pg_oldest_query_seconds", "Age of the oldest running statement of a client; 0 when none runs.")
OLDEST_TRANSACTION = Metric(
    "monitor_pg_oldest_transaction_seconds", "Age of the oldest transaction of an active client; 0 when there is none."
)

LONG_QUERY = FindingKind("LongQuery", Severity.P3, "INC-005", "A statement or its transaction has been running for longer than long_after.")
SLOW_QUERIES = FindingKind("SlowQueries", Severity.P3, "INC-005", "At least slow_count statements run for longer than slow_after at once.")


class Config(PluginConfig):
    """Keys of a ``pg_long_queries`` check."""

    long_after: Duration = Field(300.0, gt=0, description="A statement or transaction that runs for longer is LongQuery.")
    slow_after: Duration = Field(2.0, gt=0, description="A statement that runs for longer is slow.")
    slow_count: int = Field(3, ge=1, description="So many slow ones at once are SlowQueries.")
    ignore_applications: tuple[str, ...] = Field((), description="Beginnings of application names whose long statements are expected.")
    max_listed: int = Field(5, ge=1, le=20, description="How many statements the evidence lists.")


@check(
    "pg_long_queries",
    config=Config,
    metrics=(LONG, SLOW, OLDEST, OLDEST_TRANSACTION),
    finds=(LONG_QUERY, SLOW_QUERIES),
    needs=("dsn",),
    blind="The role may not see other sessions, what they do is not kept (track_activities is off), or the database does not answer.",
    why="A statement that runs for minutes holds locks, keeps dead rows from being removed and makes pages wait (INC-005).",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_long_queries(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at the age of every running statement and of its transaction; maintenance (VACUUM, CREATE INDEX, COPY …) is left out.

    Maintenance is told by PostgreSQL's own progress views, not by a statement's text.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    (rows,) = await pg_sight.look(ctx.pg, (RUNNING, {"slow_after_s": min(cfg.slow_after, cfg.long_after)}), tracked=["track_activities"])
    return judge(rows, cfg, service=ctx.service.name)


def judge(rows: list[Row], cfg: Config, *, service: str) -> Observed:
    """What the running statements mean. Pure."""
    if not rows:
        return NOTHING_RUNS
    watched = [row for row in rows if not row["maintenance"] and not row["application"].startswith(cfg.ignore_applications or ("\0",))]
    slow = [row for row in watched if row["query_s"] >= cfg.slow_after]
    long = [row for row in watched if _age_s(row) >= cfg.long_after]
    samples = (
        LONG(len(long)),
        SLOW(len(slow)),
        OLDEST(max((row["query_s"] for row in watched), default=0.0)),
        OLDEST_TRANSACTION(max((row["xact_s"] for row in watched), default=0.0)),
    )
    findings = []
    if long:
        worst = max(map(_age_s, long))
        who = "1 statement has" if len(long) == 1 else f"{len(long)} statements have"
        summary = f"{who} been running for up to {lasted(worst)}, longer than {lasted(cfg.long_after)} ({service})"
        findings.append(LONG_QUERY(summary, facts=_facts(long, cfg), value=worst))
    if len(slow) >= cfg.slow_count:
        summary = f"{len(slow)} statements have been running for longer than {cfg.slow_after:g} s at once ({service})"
        findings.append(SLOW_QUERIES(summary, facts=_facts(slow, cfg), value=len(slow)))
    return Observed(samples, tuple(findings))


NOTHING_RUNS = Observed((LONG(0), SLOW(0), OLDEST(0.0), OLDEST_TRANSACTION(0.0)))


def _age_s(row: Row) -> float:
    return max(float(row["query_s"]), float(row["xact_s"]))


def _facts(rows: list[Row], cfg: Config) -> dict[str, str]:
    listed = sorted(rows, key=_age_s, reverse=True)[: cfg.max_listed]
    facts = {f"pid {row['pid']}": _describe(row) for row in listed}
    if len(rows) > len(listed):
        facts["more"] = f"{len(rows) - len(listed)} not listed"
    facts["to cancel one"] = f"SELECT pg_cancel_backend({listed[0]['pid']});"
    return facts


def _describe(row: Row) -> str:
    who = " ".join(one_line(row[name] or "?", limit=40) for name in ("username", "application", "database"))
    waits = f", waits for {row['wait']}" if row["wait"] else ""
    held = f", transaction {lasted(row['xact_s'])}" if row["xact_s"] > row["query_s"] + 1 else ""
    return f"{lasted(row['query_s'])}{held}, {who}{waits}: {masked(row['query'])}"


RUNNING = """
SELECT a.pid, a.usename::text AS username, coalesce(nullif(a.application_name, ''), '(unset)') AS application, a.datname::text AS database,
       greatest(extract(epoch FROM clock_timestamp() - a.query_start), 0)::float8 AS query_s,
       coalesce(greatest(extract(epoch FROM clock_timestamp() - a.xact_start), 0), 0)::float8 AS xact_s,
       CASE WHEN a.wait_event_type IN ('Lock', 'LWLock', 'IO', 'Client') THEN a.wait_event_type || ' ' || a.wait_event END AS wait,
       a.pid IN (
           SELECT pid FROM pg_stat_progress_vacuum UNION ALL SELECT pid FROM pg_stat_progress_analyze
           UNION ALL SELECT pid FROM pg_stat_progress_create_index UNION ALL SELECT pid FROM pg_stat_progress_cluster
           UNION ALL SELECT pid FROM pg_stat_progress_copy UNION ALL SELECT pid FROM pg_stat_progress_basebackup
       ) AS maintenance, left(a.query, 1000) AS query
FROM pg_stat_activity a
WHERE a.backend_type = 'client backend' AND a.state IN ('active', 'fastpath function call') AND a.pid <> pg_backend_pid()
  AND least(a.query_start, a.xact_start) < clock_timestamp() - make_interval(secs => %(slow_after_s)s)
ORDER BY least(a.query_start, a.xact_start) LIMIT 200
"""
