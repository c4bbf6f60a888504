"""Wraparound, checkpoints and WAL on real servers, 15 and 18."""

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from checks.pg_checkpoints import pg_checkpoints
from checks.pg_counters import BY_COLUMN, pg_counters
from checks.pg_counters import judge as judge_counters
from checks.pg_epoch import Delta, kept_counters, since
from checks.pg_wal import pg_wal
from checks.pg_wraparound import REFUSES_AT, Config, judge, pg_wraparound
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, CheckContext, Service
from services.cluster import Cluster
from tests.support.looking import after, look, looking_at
from tests.support.world import until_async

ALL: tuple[AnyCheck, ...] = (pg_wraparound, pg_checkpoints, pg_wal, pg_counters)


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("postgres", dsn=SecretStr(database))) as found:
        yield found


@pytest.fixture
def archiving(pg_cluster: Cluster) -> Iterator[Cluster]:
    """A server whose archive_command always fails."""
    folder = Path(tempfile.mkdtemp(prefix="monitor-pg-"))
    folder.chmod(0o755)
    try:
        settings = {"archive_mode": "on", "archive_command": "false"}
        with Cluster(folder / "data", bin_dir=pg_cluster._bin, settings=settings) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def value(observed: Observed, metric: str) -> float:
    return next(sample.value for sample in observed.samples if sample.metric.name == metric)


def run_sql(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
async def test_a_quiet_server_is_well_and_measured(check: AnyCheck, ctx: CheckContext) -> None:
    first = await look(check, ctx)
    assert first.findings == ()
    assert {sample.metric for sample in first.samples} == set(check.metrics)
    assert (await look(check, after(ctx, first))).findings == ()


async def test_every_database_is_named_with_its_age(database: str, ctx: CheckContext) -> None:
    observed = await look(pg_wraparound, ctx)
    assert database.rpartition("dbname=")[2].split()[0].strip("'\"") in {sample.labels[0] for sample in observed.samples}
    assert all(sample.value >= 0 for sample in observed.samples)


@pytest.mark.parametrize(("share", "severity"), [(0.2, None), (0.3, Severity.P3), (0.6, Severity.P2), (0.8, Severity.P1)])
@pytest.mark.parametrize("counter", ["xid_age", "mxid_age"])
def test_the_nearer_the_refusal_the_worse(counter: str, share: float, severity: Severity | None) -> None:
    row = {"database": "shop\n", "xid_age": 1, "mxid_age": 1, "freeze_at": 200_000_000, counter: int(share * REFUSES_AT)}
    findings = judge([row], Config(), service="postgres").findings
    assert [finding.severity for finding in findings] == ([] if severity is None else [severity])


async def test_forced_checkpoints_are_found_and_few_say_nothing(database: str, ctx: CheckContext) -> None:
    first = await look(pg_checkpoints, ctx)
    run_sql(database, "CHECKPOINT")
    second = await look(pg_checkpoints, after(ctx, first), min_count=3)
    assert second.findings == ()
    assert second.keep == first.keep  # one checkpoint says nothing yet
    run_sql(database, "CHECKPOINT", "CHECKPOINT")
    third = second

    async def both_are_counted() -> bool:  # a moment after they are done
        nonlocal third
        third = await look(pg_checkpoints, after(ctx, second), min_count=3)
        return bool(third.findings)

    await until_async(both_are_counted)
    assert kinds(third) == ["CheckpointsForced"]
    assert third.findings[0].value == 100
    assert (await look(pg_checkpoints, after(ctx, third), min_count=1)).findings == ()


async def test_archiving_that_fails_is_found(archiving: Cluster) -> None:
    async with looking_at(Service("postgres", dsn=SecretStr(archiving.dsn()))) as ctx:
        run_sql(archiving.dsn(), "CREATE TABLE t (a int)", "SELECT pg_switch_wal()", "INSERT INTO t VALUES (1)", "SELECT pg_switch_wal()")
        with psycopg.connect(archiving.dsn(), autocommit=True) as admin:
            while admin.execute("SELECT failed_count FROM pg_stat_archiver").fetchone() == (0,):
                admin.execute("SELECT pg_sleep(0.05)")
        observed = await look(pg_wal, ctx, failing_after="0s", ready_segments=1)
        assert "WalArchivingFails" in kinds(observed)
        assert "no WAL has been archived ever" in observed.findings[0].summary
        assert "WalArchiveBehind" in kinds(observed)
        assert value(observed, "monitor_pg_wal_archive_failed_total") >= 1


async def test_a_large_wal_directory_is_found_with_the_rate(database: str, ctx: CheckContext) -> None:
    first = await look(pg_wal, ctx)
    run_sql(database, "CREATE TABLE big AS SELECT generate_series(1, 20000) AS n")
    size = value(first, "monitor_pg_wal_bytes")
    run_sql(database, "SELECT pg_create_physical_replication_slot('forgotten', true)")  # keeps what a checkpoint would remove
    run_sql(database, "ALTER SYSTEM SET max_wal_size = '32MB'", "SELECT pg_reload_conf()")
    try:
        run_sql(database, *["SELECT pg_switch_wal()", "INSERT INTO big VALUES (1)"] * 4)
        async with asyncio.timeout(10):
            while not (observed := await look(pg_wal, after(ctx, first), size_factor=1.01)).findings:
                await asyncio.sleep(0.05)  # the new setting reaches the held session in a moment
        assert value(observed, "monitor_pg_wal_bytes") >= size
        assert kinds(observed) == ["WalDirectoryLarge"]
        assert "per second" in dict(observed.findings[0].facts)["written"]
    finally:
        run_sql(database, "SELECT pg_drop_replication_slot('forgotten')", "ALTER SYSTEM RESET max_wal_size", "SELECT pg_reload_conf()")


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
async def test_without_pg_monitor_they_are_blind(check: AnyCheck, database: str) -> None:
    role = f"poor_{database.rpartition('t_')[2][:12]}"
    run_sql(database, f'CREATE ROLE "{role}" LOGIN')
    try:
        async with looking_at(Service("postgres", dsn=SecretStr(f"{database} user={role}"))) as poor:
            with pytest.raises(CannotLook, match="GRANT"):
                await look(check, poor)
    finally:
        run_sql(database, f'DROP ROLE "{role}"')


def test_a_reset_or_a_clock_that_stands_still_begins_a_new_epoch() -> None:
    before = kept_counters("e1", 100.0, {"a": 5.0})
    assert since(before, "e1", 110.0, {"a": 8.0}) == Delta(10.0, {"a": 3.0})
    assert since(before, "e1", 110.0, {"a": 8.0, "new": 7.0}) == Delta(10.0, {"a": 3.0, "new": 0.0})
    assert since(None, "e1", 110.0, {"a": 8.0}) is None
    assert since(before, "e2", 110.0, {"a": 8.0}) is None
    assert since(before, "e1", 110.0, {"a": 4.0}) is None
    assert since(before, "e1", 100.0, {"a": 8.0}) is None
    assert since(["junk"], "e1", 110.0, {"a": 8.0}) is None


async def test_deadlocks_are_counted_and_found(database: str, ctx: CheckContext) -> None:
    first = await look(pg_counters, ctx)
    run_sql(database, "CREATE TABLE a (n int)", "CREATE TABLE b (n int)")

    def lock(one: str, other: str, ready: threading.Barrier) -> None:
        with psycopg.connect(database) as connection:
            connection.execute("SET deadlock_timeout = '20ms'")
            connection.execute(f"LOCK TABLE {one}".encode())
            ready.wait(5)
            with contextlib.suppress(psycopg.errors.DeadlockDetected):
                connection.execute(f"LOCK TABLE {other}".encode())
            connection.rollback()

    ready = threading.Barrier(2)
    await asyncio.gather(asyncio.to_thread(lock, "a", "b", ready), asyncio.to_thread(lock, "b", "a", ready))
    async with asyncio.timeout(15):
        while not (observed := await look(pg_counters, after(ctx, first))).findings:
            await asyncio.sleep(0.1)
    assert kinds(observed) == ["Deadlocks"]
    assert observed.findings[0].value == 1
    assert (await look(pg_counters, after(ctx, observed))).findings == ()


async def test_what_spills_to_disk_is_counted_and_found(database: str, ctx: CheckContext) -> None:
    first = await look(pg_counters, ctx)
    run_sql(database, "SET work_mem = '64kB'", "SELECT n FROM generate_series(1, 200000) n ORDER BY -n OFFSET 199999")
    async with asyncio.timeout(15):
        while not (observed := await look(pg_counters, after(ctx, first), temp_bytes_per_minute=1_000_000)).findings:
            await asyncio.sleep(0.1)
    (finding,) = observed.findings
    assert finding.kind.name == "TempFilesLarge"
    assert finding.value is not None
    assert finding.value > 1_000_000


@pytest.mark.parametrize(
    ("added", "kind"),
    [
        ({"checksum_failures": 1}, "PagesDamaged"),
        ({"temp_bytes": 3 * 2**30, "temp_files": 4}, "TempFilesLarge"),
        ({"xact_commit": 600, "xact_rollback": 400}, "RollbacksMany"),
        ({"blks_hit": 500_000, "blks_read": 500_000}, "CacheHitLow"),
        ({"xact_commit": 6, "xact_rollback": 4, "blks_hit": 5, "blks_read": 5, "temp_bytes": 2**20}, None),
    ],
)
def test_what_was_added_is_judged(added: dict[str, float], kind: str | None) -> None:
    delta = Delta(60.0, dict.fromkeys(BY_COLUMN, 0.0) | added)
    found = judge_counters(delta, pg_counters.config(), database="shop", service="postgres")
    assert [finding.kind.name for finding in found] == ([kind] if kind else [])
    assert all("shop" in finding.summary for finding in found)
