"""Who makes whom wait for a lock, and who is at the root of it?"""

from pydantic import Field

from checks import pg_sight
from checks.pg_statement_text import masked
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

BLOCKED = Metric("monitor_pg_blocked_sessions", "Sessions that wait for a lock which another session holds.")
LONGEST = Metric("monitor_pg_blocked_longest_seconds", "Longest time that one has been waiting; 0 when none waits.")

BLOCKED_SESSIONS = FindingKind(
    "BlockedSessions", Severity.P2, "INC-005", "Sessions have been waiting for a lock for longer than wait_after; the root is named."
)


class Config(PluginConfig):
    """Keys of a ``pg_blocking`` check."""

    wait_after: Duration = Field(30.0, gt=0, description="BlockedSessions when one has been waiting for longer.")
    max_listed: int = Field(5, ge=1, le=20, description="How many roots the evidence lists.")


@check(
    "pg_blocking",
    config=Config,
    metrics=(BLOCKED, LONGEST),
    finds=(BLOCKED_SESSIONS,),
    needs=("dsn",),
    blind="The role may not see other sessions, or the database does not answer.",
    why="One forgotten transaction can make every request wait behind it; ending its root frees all of them, ending a victim frees nobody.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_blocking(ctx: CheckContext, cfg: Config) -> Observed:
    """Follows every chain of waiting sessions to its root, counts the victims and names the root's session and statement."""
    assert ctx.pg is not None  # needs=("dsn",)
    (rows,) = await pg_sight.look(ctx.pg, CHAINS)
    return judge(rows, cfg, service=ctx.service.name)


def judge(rows: list[Row], cfg: Config, *, service: str) -> Observed:
    """What the chains mean; one row per root. Pure."""
    waiting = rows[0]["waiting"] if rows else 0
    longest = max((float(row["longest_s"] or 0) for row in rows), default=0.0)
    samples = (BLOCKED(waiting), LONGEST(longest))
    bad = [row for row in rows if (row["longest_s"] or 0) >= cfg.wait_after]
    if not bad:
        return Observed(samples)
    listed = bad[: cfg.max_listed]
    facts: dict[str, str] = {}
    for row in listed:
        facts[_root(row)] = _describe(row)
    if bad[0]["root"]:
        facts["to end the first root"] = f"SELECT pg_terminate_backend({bad[0]['root']});"
    if len(bad) > len(listed):
        facts["more"] = f"{len(bad) - len(listed)} roots not listed"
    who = "1 session waits" if waiting == 1 else f"{waiting} sessions wait"
    summary = f"{who} for a lock, the longest for {longest:.0f} s, because of {_root(bad[0])} ({service})"
    return Observed(samples, (BLOCKED_SESSIONS(summary, facts=facts, value=longest),))


def _root(row: Row) -> str:
    if row["root"] is None:
        return "each other"
    return f"pid {row['root']}" if row["root"] else "a prepared transaction"


def _describe(row: Row) -> str:
    wanted = ", ".join(one_line(str(lock), limit=60) for lock in (row["wanted"] or [])[:3])
    waits = f"{row['victims']} waiting, {row['longest_s'] or 0:.0f} s at most, for {wanted}"
    if row["root"] is None:
        return f"{waits}; a deadlock, which the server ends after deadlock_timeout"
    if not row["root"]:
        return f"{waits}; find it in pg_prepared_xacts"
    who = f"{one_line(row['username'] or row['kind'] or '?', limit=40)} by {one_line(row['application'] or '(unset)', limit=40)}"
    return f"{waits}; it is {who}, {row['state'] or 'state unknown'}, transaction {row['xact_s'] or 0:.0f} s: {masked(row['query'] or '')}"


# pg_blocking_pids() takes the lock manager's locks, so only who waits for a heavyweight lock is asked about.
# A session's blockers are also those ahead of it in the queue: from the roots each pair is met once, from the victims every path would be.
# Pid 0 is a prepared transaction; without a root are those that wait for each other, until the server ends their deadlock.
CHAINS = """
WITH RECURSIVE waits AS MATERIALIZED (
    SELECT a.pid, blocker FROM pg_stat_activity a CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS blocker
    WHERE a.wait_event_type = 'Lock'
), roots AS (
    SELECT w.blocker AS root, w.pid AS victim FROM waits w WHERE NOT EXISTS (SELECT FROM waits b WHERE b.pid = w.blocker)
    UNION
    SELECT r.root, w.pid FROM roots r JOIN waits w ON w.blocker = r.victim
), victims AS (
    SELECT root, victim FROM roots
    UNION ALL
    SELECT DISTINCT NULL::int, w.pid FROM waits w WHERE NOT EXISTS (SELECT FROM roots r WHERE r.victim = w.pid)
)
SELECT r.root, ra.backend_type AS kind, count(DISTINCT r.victim)::int AS victims, (SELECT count(DISTINCT pid)::int FROM waits) AS waiting,
       max(extract(epoch FROM clock_timestamp() - l.waitstart))::float8 AS longest_s,
       ra.usename::text AS username, ra.application_name AS application, ra.state,
       extract(epoch FROM clock_timestamp() - ra.xact_start)::float8 AS xact_s, left(ra.query, 1000) AS query,
       array_agg(DISTINCT l.mode || ' on ' || coalesce(c.relname, l.locktype)) FILTER (WHERE l.mode IS NOT NULL) AS wanted
FROM victims r
LEFT JOIN pg_stat_activity ra ON ra.pid = r.root
LEFT JOIN pg_locks l ON l.pid = r.victim AND NOT l.granted
LEFT JOIN pg_class c ON c.oid = l.relation AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY r.root, ra.backend_type, ra.usename, ra.application_name, ra.state, ra.xact_start, ra.query
ORDER BY victims DESC, r.root LIMIT 20
"""
