"""Is a prepared transaction left over that nobody will end?"""

from collections.abc import Sequence

from pydantic import Field

from checks import pg_sight
from checks.words import lasted, many
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

COUNT = Metric("monitor_pg_prepared_transactions", "Transactions that are prepared and not ended, in all databases.")
OLDEST = Metric("monitor_pg_prepared_transaction_oldest_seconds", "Age of the oldest one; 0 when there is none.")

LEFT_OVER = FindingKind("PreparedTransactionLeftOver", Severity.P3, "INC-005", "A prepared transaction is older than older_than.")

SHOWN = 10


class Config(PluginConfig):
    """Keys of a ``pg_prepared_transactions`` check."""

    older_than: Duration = Field(300.0, ge=0, description="PreparedTransactionLeftOver from this age on.")


@check(
    "pg_prepared_transactions",
    config=Config,
    metrics=(COUNT, OLDEST),
    finds=(LEFT_OVER,),
    needs=("dsn",),
    blind="The role may not see the server's statistics, or the database does not answer.",
    why="A prepared transaction survives restarts with all its locks, and keeps VACUUM from cleaning the whole server (INC-005).",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_prepared_transactions(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks for two-phase transactions that were prepared and neither committed nor rolled back for long."""
    assert ctx.pg is not None  # needs=("dsn",)
    (rows,) = await pg_sight.look(ctx.pg, PREPARED)
    return judge(rows, cfg, service=ctx.service.name)


def judge(rows: Sequence[Row], cfg: Config, *, service: str) -> Observed:
    """What the rows mean, oldest first. Pure."""
    samples = (COUNT(len(rows)), OLDEST(max((row["age_s"] for row in rows), default=0)))
    old = [row for row in rows if row["age_s"] >= cfg.older_than]
    if not old:
        return Observed(samples)
    facts = {
        one_line(
            row["gid"], limit=80
        ): f"{lasted(row['age_s'])} old, in {one_line(row['database'], limit=63)}, of {one_line(row['owner'], limit=63)}"
        for row in old[:SHOWN]
    }
    first = old[0]
    facts["to end it"] = (
        f"in {one_line(first['database'], limit=63)}: ROLLBACK PREPARED {first['quoted'] if first['gid'].isprintable() else 'its gid'};"
    )
    facts["first"] = "ask its transaction manager: it may still want to COMMIT PREPARED"
    summary = f"{many(len(old), 'prepared transaction')} left over, the oldest for {lasted(first['age_s'])} ({service})"
    return Observed(samples, (LEFT_OVER(summary, facts=facts, value=first["age_s"]),))


PREPARED = """
SELECT gid, quote_literal(gid) AS quoted, owner::text, database::text, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age_s
FROM pg_prepared_xacts ORDER BY prepared, gid LIMIT 1000
"""
