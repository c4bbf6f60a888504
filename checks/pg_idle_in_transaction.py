"""Which sessions hold a transaction open and do nothing with it?"""

from pydantic import Field

from checks import pg_sight
from checks.pg_statement_text import masked
from checks.words import lasted
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

IDLE = Metric("monitor_pg_idle_in_transaction", "Client sessions that hold a transaction open and do nothing.")
OLDEST = Metric("monitor_pg_idle_in_transaction_oldest_seconds", "Longest time that one has done nothing; 0 when there is none.")

IDLE_IN_TRANSACTION = FindingKind(
    "IdleInTransaction", Severity.P3, "INC-005", "A session has held its transaction open for longer than idle_after without a statement."
)
BLOCKS_OTHERS = FindingKind(
    "IdleTransactionBlocks", Severity.P2, "INC-005", "A session that does nothing in its transaction holds a lock that others wait for."
)


class Config(PluginConfig):
    """Keys of a ``pg_idle_in_transaction`` check."""

    idle_after: Duration = Field(300.0, gt=0, description="IdleInTransaction after so long without a statement.")
    blocks_after: Duration = Field(10.0, gt=0, description="IdleTransactionBlocks after so long without one, while somebody waits.")
    max_listed: int = Field(5, ge=1, le=20, description="How many sessions the evidence lists.")


@check(
    "pg_idle_in_transaction",
    config=Config,
    metrics=(IDLE, OLDEST),
    finds=(IDLE_IN_TRANSACTION, BLOCKS_OTHERS),
    needs=("dsn",),
    blind="The role may not see other sessions, what they do is not kept (track_activities is off), or the database does not answer.",
    why="An application that forgot to commit keeps its locks and keeps VACUUM from removing what changed since: both end as slow pages.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_idle_in_transaction(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks for transactions that are open and idle, how long, which write locks they hold and whom they block."""
    assert ctx.pg is not None  # needs=("dsn",)
    (rows,) = await pg_sight.look(ctx.pg, IDLING, tracked=["track_activities"])
    return judge(rows, cfg, service=ctx.service.name)


def judge(rows: list[Row], cfg: Config, *, service: str) -> Observed:
    """What the idle transactions mean. Pure."""
    samples = (IDLE(len(rows)), OLDEST(max((row["idle_s"] for row in rows), default=0.0)))
    blocking = [row for row in rows if row["victims"] and row["idle_s"] >= cfg.blocks_after]
    idle = [row for row in rows if row["idle_s"] >= cfg.idle_after]
    findings = []
    if blocking:
        victims = sum(row["victims"] for row in blocking)
        waiting = "1 session waits" if victims == 1 else f"{victims} sessions wait"
        summary = f"{waiting} for a transaction that has done nothing for {lasted(blocking[0]['idle_s'])} ({service})"
        findings.append(BLOCKS_OTHERS(summary, facts=_facts(blocking, cfg), value=victims))
    if idle:
        worst = idle[0]["idle_s"]
        summary = (
            f"{len(idle)} open {'transaction does' if len(idle) == 1 else 'transactions do'} nothing, for up to {lasted(worst)} ({service})"
        )
        findings.append(IDLE_IN_TRANSACTION(summary, facts=_facts(idle, cfg), value=worst))
    return Observed(samples, tuple(findings))


def _facts(rows: list[Row], cfg: Config) -> dict[str, str]:
    listed = rows[: cfg.max_listed]
    facts = {f"pid {row['pid']}": _describe(row) for row in listed}
    if len(rows) > len(listed):
        facts["more"] = f"{len(rows) - len(listed)} not listed"
    facts["to end one"] = f"SELECT pg_terminate_backend({listed[0]['pid']});"
    facts["to prevent it"] = "ALTER ROLE … SET idle_in_transaction_session_timeout = '5min';"
    return facts


def _describe(row: Row) -> str:
    who = f"{one_line(row['username'] or '?', limit=40)} by {one_line(row['application'], limit=40)}"
    locks = f", {row['write_locks']} write locks" if row["write_locks"] else ""
    victims = f", blocks {row['victims']}" if row["victims"] else ""
    return f"idle {lasted(row['idle_s'])}, open {lasted(row['xact_s'])}, {who}{locks}{victims}, last: {masked(row['query'])}"


# pg_blocking_pids() takes the lock manager's locks, so only who waits for a heavyweight lock is asked about.
IDLING = """
WITH waits AS MATERIALIZED (
    SELECT w.pid, blocker FROM pg_stat_activity w CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS blocker
    WHERE w.wait_event_type = 'Lock'
)
SELECT a.pid, a.usename::text AS username, coalesce(nullif(a.application_name, ''), '(unset)') AS application,
       greatest(extract(epoch FROM clock_timestamp() - a.state_change), 0)::float8 AS idle_s,
       greatest(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS xact_s,
       (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.locktype = 'relation'
        AND l.mode NOT IN ('AccessShareLock', 'RowShareLock'))::int AS write_locks,
       (SELECT count(DISTINCT w.pid) FROM waits w WHERE w.blocker = a.pid)::int AS victims,
       left(a.query, 1000) AS query
FROM pg_stat_activity a WHERE a.backend_type = 'client backend' AND a.state LIKE 'idle in transaction%'
ORDER BY a.state_change LIMIT 200
"""
