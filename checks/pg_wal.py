"""Is WAL archived, does its directory stay in bounds, and how much is written?"""

from pydantic import Field

from checks import pg_sight
from checks.pg_epoch import kept_counters, since
from checks.words import lasted, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check
from monitor.probes_contract import Row

SIZE = Metric("monitor_pg_wal_bytes", "Size of the WAL directory.")
SEGMENTS = Metric("monitor_pg_wal_segments", "Files in the WAL directory.")
WRITTEN = Metric("monitor_pg_wal_written_bytes_total", "Bytes written since the cluster was made; primaries only.", (), "counter")
READY = Metric("monitor_pg_wal_ready_segments", "Segments that wait to be archived.")
ARCHIVED = Metric("monitor_pg_wal_archived_total", "Segments archived.", (), "counter")
ARCHIVE_FAILED = Metric("monitor_pg_wal_archive_failed_total", "Failed attempts to archive a segment.", (), "counter")

ARCHIVING_FAILS = FindingKind("WalArchivingFails", Severity.P2, None, "The last attempt to archive a WAL segment failed.")
ARCHIVE_BEHIND = FindingKind("WalArchiveBehind", Severity.P3, None, "More than ready_segments wait to be archived.")
DIRECTORY_LARGE = FindingKind("WalDirectoryLarge", Severity.P3, None, "The WAL directory is larger than size_factor times max_wal_size.")


class Config(PluginConfig):
    """Keys of a ``pg_wal`` check."""

    ready_segments: int = Field(20, ge=1, description="WalArchiveBehind when more segments wait to be archived.")
    size_factor: float = Field(2.0, gt=1, description="WalDirectoryLarge above so many times max_wal_size.")
    failing_after: Duration = Field(60.0, ge=0, description="WalArchivingFails when it has not succeeded for so long since it failed.")


@check(
    "pg_wal",
    config=Config,
    metrics=(SIZE, SEGMENTS, WRITTEN, READY, ARCHIVED, ARCHIVE_FAILED),
    finds=(ARCHIVING_FAILS, ARCHIVE_BEHIND, DIRECTORY_LARGE),
    needs=("dsn",),
    blind="The role may not list the WAL directory, or the database does not answer.",
    why="WAL that is not archived is a hole in every backup, and WAL that nobody removes fills the disk, which stops the server.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_wal(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at the WAL directory's size, at the archiver and its backlog, and at the rate of writing since the previous look."""
    assert ctx.pg is not None  # needs=("dsn",)
    ((row,),) = await pg_sight.look(ctx.pg, WAL)
    written = {"written": float(row["lsn_bytes"] or 0)}
    epoch, at_s = str(row["standby"]), float(row["at_s"])
    delta = since(ctx.kept and ctx.kept.value, epoch, at_s, written)
    rate = delta.added["written"] / delta.seconds if delta else None
    return Observed(_samples(row), judge(row, cfg, rate=rate, service=ctx.service.name), kept_counters(epoch, at_s, written))


def judge(row: Row, cfg: Config, *, rate: float | None, service: str) -> tuple[Finding, ...]:
    """What the row means; ``rate`` is bytes of WAL per second. Pure."""
    fails = row["failing"] and (row["failing_s"] or 0) >= cfg.failing_after
    is_behind, is_large = row["ready"] > cfg.ready_segments, row["bytes"] > cfg.size_factor * row["max_bytes"]
    if not (fails or is_behind or is_large):
        return ()
    facts = {
        "directory": f"{sized(row['bytes'])} in {row['segments']} files, max_wal_size {sized(row['max_bytes'])}",
        "waiting to be archived": f"{row['ready']} segments",
    }
    if rate is not None:
        facts["written"] = f"{sized(rate)} per second"
    findings = []
    if fails:
        since_when = f"for {lasted(row['unarchived_s'])}" if row["unarchived_s"] is not None else "ever"
        more = {"failed attempts": f"{row['failed_count']:,}", "look at": "archive_command in the server's log", **facts}
        findings.append(ARCHIVING_FAILS(f"no WAL has been archived {since_when} ({service})", facts=more, value=row["unarchived_s"]))
    if is_behind:
        findings.append(ARCHIVE_BEHIND(f"{row['ready']} WAL segments wait to be archived ({service})", facts=facts, value=row["ready"]))
    if is_large:
        why = {"look for": "replication slots that nobody reads (pg_replication_slots), failing archiving, wal_keep_size", **facts}
        summary = f"the WAL directory holds {sized(row['bytes'])}, {row['bytes'] / row['max_bytes']:.1f} times max_wal_size ({service})"
        findings.append(DIRECTORY_LARGE(summary, facts=why, value=row["bytes"] / row["max_bytes"]))
    return tuple(findings)


def _samples(row: Row) -> tuple[Sample, ...]:
    samples = (SIZE(row["bytes"]), SEGMENTS(row["segments"]), READY(row["ready"]), ARCHIVED(row["archived_count"]))
    written = (WRITTEN(float(row["lsn_bytes"])),) if row["lsn_bytes"] is not None else ()
    return (*samples, ARCHIVE_FAILED(row["failed_count"]), *written)


WAL = """
SELECT pg_is_in_recovery() AS standby, w.segments, w.bytes, pg_size_bytes(current_setting('max_wal_size')) AS max_bytes,
       (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS ready, a.archived_count, a.failed_count,
       current_setting('archive_mode') <> 'off'
           AND coalesce(a.last_failed_time > a.last_archived_time, a.last_failed_time IS NOT NULL) AS failing,
       extract(epoch FROM clock_timestamp() - coalesce(a.last_archived_time, a.stats_reset))::float8 AS failing_s,
       extract(epoch FROM clock_timestamp() - a.last_archived_time)::float8 AS unarchived_s,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') END::float8 AS lsn_bytes,
       extract(epoch FROM clock_timestamp())::float8 AS at_s
FROM pg_stat_archiver a, (SELECT count(*) AS segments, coalesce(sum(size), 0)::bigint AS bytes FROM pg_ls_waldir()) w
"""
