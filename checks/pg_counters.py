"""What has each database been doing since the previous look: deadlocks, temporary files, rollbacks, cache misses, damaged pages?"""

from collections.abc import Mapping
from itertools import repeat
from operator import itemgetter
from typing import Any

from pydantic import Field

from checks import pg_sight
from checks.pg_epoch import Delta, kept_counters, since
from checks.words import lasted, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, PluginConfig, check, one_line

_LABEL = ("database",)
COMMITS = Metric("monitor_pg_commits_total", "Transactions committed, by database.", _LABEL, "counter")
ROLLBACKS = Metric("monitor_pg_rollbacks_total", "Transactions rolled back, by database.", _LABEL, "counter")
HIT = Metric("monitor_pg_blocks_hit_total", "Blocks found in the server's cache, by database.", _LABEL, "counter")
READ = Metric("monitor_pg_blocks_read_total", "Blocks read from outside the server's cache, by database.", _LABEL, "counter")
TEMP_BYTES = Metric("monitor_pg_temp_bytes_total", "Written to temporary files, by database.", _LABEL, "counter")
TEMP_FILES = Metric("monitor_pg_temp_files_total", "Temporary files made, by database.", _LABEL, "counter")
DEADLOCKS = Metric("monitor_pg_deadlocks_total", "Deadlocks, by database.", _LABEL, "counter")
CONFLICTS = Metric("monitor_pg_conflicts_total", "Statements cancelled by recovery on a standby, by database.", _LABEL, "counter")
CHECKSUMS = Metric("monitor_pg_checksum_failures_total", "Damaged pages seen, by database.", _LABEL, "counter")
KILLED = Metric("monitor_pg_sessions_killed_total", "Sessions ended by an administrator, by database.", _LABEL, "counter")

BY_COLUMN: Mapping[str, Metric] = {
    "xact_commit": COMMITS,
    "xact_rollback": ROLLBACKS,
    "blks_hit": HIT,
    "blks_read": READ,
    "temp_bytes": TEMP_BYTES,
    "temp_files": TEMP_FILES,
    "deadlocks": DEADLOCKS,
    "conflicts": CONFLICTS,
    "checksum_failures": CHECKSUMS,
    "sessions_killed": KILLED,
}
_NUMBERS = itemgetter(*BY_COLUMN)

DEADLOCK = FindingKind("Deadlocks", Severity.P4, "INC-005", "Transactions were ended because they waited for each other.")
TEMPORARY = FindingKind("TempFilesLarge", Severity.P4, "INC-005", "Statements spill much more to disk than temp_bytes_per_minute.")
ROLLED_BACK = FindingKind("RollbacksMany", Severity.P4, None, "Much of the traffic is rolled back.")
CACHE = FindingKind("CacheHitLow", Severity.P4, "INC-005", "Much is read from outside the server's cache, under real traffic.")
DAMAGED = FindingKind("PagesDamaged", Severity.P1, None, "The server read pages whose checksum is wrong: data on disk is damaged.")

TOP = 20
WINDOW_S = 60.0


class Config(PluginConfig):
    """Keys of a ``pg_counters`` check. All compare with the previous look."""

    deadlocks: int = Field(1, ge=1, description="Deadlocks from so many on.")
    temp_bytes_per_minute: float = Field(1_073_741_824, gt=0, description="TempFilesLarge from so many bytes a minute on.")
    rollback_percent: float = Field(30.0, gt=0, le=100, description="RollbacksMany from this share of the transactions on.")
    min_transactions: int = Field(500, ge=1, description="Fewer since the last look say nothing about rollbacks.")
    cache_hit_percent: float = Field(90.0, ge=0, lt=100, description="CacheHitLow below this share of blocks found in the cache.")
    min_blocks: int = Field(100_000, ge=1, description="Fewer blocks asked for since the last look say nothing about the cache.")


@check(
    "pg_counters",
    config=Config,
    metrics=tuple(BY_COLUMN.values()),
    finds=(DEADLOCK, TEMPORARY, ROLLED_BACK, CACHE, DAMAGED),
    needs=("dsn",),
    blind="The role may not see the server's statistics, they are switched off (track_counts), or the database does not answer.",
    why="Deadlocks, spills to disk and cold caches are how slowness begins (INC-005); a damaged page is how data is lost.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_counters(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares every database's cumulative counters with the previous look, within one epoch of its statistics."""
    assert ctx.pg is not None  # needs=("dsn",)
    (rows,) = await pg_sight.look(ctx.pg, (COUNTERS, {"top": TOP}), tracked=["track_counts"])
    samples: list[Sample] = []
    findings: list[Finding] = []
    before: Mapping[str, Any] = ctx.kept.value if ctx.kept else {}
    keep = {}
    for row in rows:
        database, epoch, at_s = row["database"], str(row["stats_reset"]), row["at_s"]
        counters = dict(zip(BY_COLUMN, map(float, _NUMBERS(row)), strict=True))
        keep[database] = kept_counters(epoch, at_s, counters)
        name = one_line(database, limit=63)
        samples += map(Sample, BY_COLUMN.values(), repeat((name,)), counters.values())
        delta = since(before.get(database), epoch, at_s, counters)
        if delta is not None:
            findings += judge(delta, cfg, database=name, service=ctx.service.name)
    return Observed(tuple(samples), tuple(findings), keep)


def judge(delta: Delta, cfg: Config, *, database: str, service: str) -> tuple[Finding, ...]:
    """What was added to one database's counters means. Pure."""
    added = delta.added
    temp = added["temp_bytes"] * 60 / max(delta.seconds, WINDOW_S)
    transactions = added["xact_commit"] + added["xact_rollback"]
    rolled_back = 100 * added["xact_rollback"] / transactions if transactions >= cfg.min_transactions else 0.0
    blocks = added["blks_hit"] + added["blks_read"]
    hit = 100 * added["blks_hit"] / blocks if blocks >= cfg.min_blocks else 100.0
    damaged, deadlocks = added["checksum_failures"], added["deadlocks"]
    are_locked, spill = deadlocks >= cfg.deadlocks, temp >= cfg.temp_bytes_per_minute
    roll_back, miss = rolled_back >= cfg.rollback_percent, hit < cfg.cache_hit_percent
    if not (damaged or are_locked or spill or roll_back or miss):
        return ()
    labels = {"database": database}
    place = f"in {database}, within {lasted(delta.seconds)} ({service})"
    findings = []
    if damaged:
        facts = {"do not": "restart, VACUUM or restore over it", "first": "stop writing, copy the data directory, look at the disk"}
        findings.append(DAMAGED(f"{damaged:.0f} damaged pages were read {place}", labels=labels, facts=facts, value=damaged))
    if are_locked:
        facts = {"find them": "the server's log names both statements of each (log_lock_waits shows who waits)"}
        findings.append(DEADLOCK(f"{deadlocks:.0f} deadlocks {place}", labels=labels, facts=facts, value=deadlocks))
    if spill:
        facts = {"files": f"{added['temp_files']:.0f}", "likely cure": "more work_mem for these statements, or an index (log_temp_files)"}
        findings.append(TEMPORARY(f"{sized(added['temp_bytes'])} of temporary files {place}", labels=labels, facts=facts, value=temp))
    if roll_back:
        summary = f"{rolled_back:.0f} % of {transactions:.0f} transactions were rolled back {place}"
        findings.append(ROLLED_BACK(summary, labels=labels, value=rolled_back))
    if miss:
        summary = f"only {hit:.0f} % of {blocks:.0f} blocks were in the server's cache {place}"
        findings.append(CACHE(summary, labels=labels, value=hit))
    return tuple(findings)


COUNTERS = """
SELECT datname::text AS database, xact_commit, xact_rollback, blks_hit, blks_read, temp_files, temp_bytes, deadlocks, conflicts,
       coalesce(checksum_failures, 0) AS checksum_failures, sessions_killed, stats_reset,
       extract(epoch FROM clock_timestamp())::float8 AS at_s
FROM pg_stat_database WHERE datname IS NOT NULL AND NOT starts_with(datname, 'template')
ORDER BY xact_commit + xact_rollback DESC, datname LIMIT %(top)s
"""
