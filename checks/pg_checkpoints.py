"""Are checkpoints begun by the clock, or forced because the WAL fills up faster than the configuration foresees?"""

from operator import itemgetter

from pydantic import Field

from checks import pg_sight
from checks.pg_epoch import kept_counters, since
from checks.words import lasted
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, PluginConfig, check
from monitor.probes_contract import Postgres, Row

TIMED = Metric("monitor_pg_checkpoints_timed_total", "Checkpoints begun because checkpoint_timeout had passed.", (), "counter")
REQUESTED = Metric("monitor_pg_checkpoints_requested_total", "Checkpoints begun because of WAL volume or a command.", (), "counter")
WRITTEN = Metric("monitor_pg_checkpoint_buffers_total", "Buffers written by checkpoints.", (), "counter")
WRITE_TIME = Metric("monitor_pg_checkpoint_write_seconds_total", "Time spent writing files in checkpoints.", (), "counter")
SYNC_TIME = Metric("monitor_pg_checkpoint_sync_seconds_total", "Time spent synchronising files in checkpoints.", (), "counter")

FORCED = FindingKind("CheckpointsForced", Severity.P4, "INC-005", "Most checkpoints of the last interval were forced, and there were many.")

COUNTERS = ("timed", "requested", "buffers", "write_ms", "sync_ms")
_NUMBERS = itemgetter(*COUNTERS)


class Config(PluginConfig):
    """Keys of a ``pg_checkpoints`` check."""

    forced_percent: float = Field(50.0, gt=0, le=100, description="CheckpointsForced from this share of forced ones on.")
    min_count: int = Field(3, ge=1, description="Fewer checkpoints since the last look say nothing.")


@check(
    "pg_checkpoints",
    config=Config,
    metrics=(TIMED, REQUESTED, WRITTEN, WRITE_TIME, SYNC_TIME),
    finds=(FORCED,),
    needs=("dsn",),
    blind="The role may not see the server's counters, or the database does not answer.",
    why="Forced checkpoints come in bursts of writing, which everybody's statements wait for; a larger max_wal_size spreads them.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_checkpoints(ctx: CheckContext, cfg: Config) -> Observed:
    """Counts checkpoints by their cause since the previous look; works on the views before and since PostgreSQL 17."""
    assert ctx.pg is not None  # needs=("dsn",)
    row = await _fetch(ctx.pg)
    counters = dict(zip(COUNTERS, map(float, _NUMBERS(row)), strict=True))
    epoch, at_s = str(row["stats_reset"]), float(row["at_s"])
    delta = since(ctx.kept and ctx.kept.value, epoch, at_s, counters)
    samples = (
        TIMED(counters["timed"]),
        REQUESTED(counters["requested"]),
        WRITTEN(counters["buffers"]),
        WRITE_TIME(counters["write_ms"] / 1000),
        SYNC_TIME(counters["sync_ms"] / 1000),
    )
    keep = kept_counters(epoch, at_s, counters)
    if delta is None:
        return Observed(samples, keep=keep)
    forced, timed = delta.added["requested"], delta.added["timed"]
    percent = 100 * forced / (forced + timed) if forced + timed else 0.0
    if forced + timed < cfg.min_count:  # too few to judge: compared with the same earlier look again
        return Observed(samples, keep=ctx.kept.value if ctx.kept and delta.seconds < 86_400 else keep)
    if percent < cfg.forced_percent:
        return Observed(samples, keep=keep)
    facts = {
        "checkpoints": f"{forced:.0f} forced, {timed:.0f} by the clock in {lasted(delta.seconds)}",
        "max_wal_size": row["max_wal_size"],
        "checkpoint_timeout": row["checkpoint_timeout"],
        "likely cure": "a larger max_wal_size (reload is enough)",
    }
    summary = f"{percent:.0f} % of the last {forced + timed:.0f} checkpoints were forced by WAL volume ({ctx.service.name})"
    return Observed(samples, (FORCED(summary, facts=facts, value=percent),), keep)


async def _fetch(pg: Postgres) -> Row:
    """One row of counters, from the view that this version has. Raises ``CannotLook``."""
    (rows,) = await pg_sight.look(pg, SINCE_17 if await pg.version() >= 170_000 else BEFORE_17)
    if not rows:
        raise CannotLook("the server's checkpoint counters are empty")
    return rows[0]


SINCE_17 = """
SELECT num_timed AS timed, num_requested AS requested, buffers_written AS buffers, write_time AS write_ms, sync_time AS sync_ms,
       stats_reset, extract(epoch FROM clock_timestamp())::float8 AS at_s,
       current_setting('max_wal_size') AS max_wal_size, current_setting('checkpoint_timeout') AS checkpoint_timeout
FROM pg_stat_checkpointer
"""
BEFORE_17 = """
SELECT checkpoints_timed AS timed, checkpoints_req AS requested, buffers_checkpoint AS buffers, checkpoint_write_time AS write_ms,
       checkpoint_sync_time AS sync_ms, stats_reset, extract(epoch FROM clock_timestamp())::float8 AS at_s,
       current_setting('max_wal_size') AS max_wal_size, current_setting('checkpoint_timeout') AS checkpoint_timeout
FROM pg_stat_bgwriter
"""
