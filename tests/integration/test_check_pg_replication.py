"""``pg_replication`` on a real primary with a real standby, 15 and 18: gone, behind, paused, cut off, synchronous, and slots."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

import checks
from checks import pg_helpers
from checks.pg_replication import mark, pg_replication, sync_needed
from checks.pg_slots import judge as judge_slots
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, CheckContext, Service
from services.cluster import Cluster
from tests.support.looking import after, look, looking_at
from tests.support.postgres import execute
from tests.support.standby import caught_up, primary, standby_of, wait_for


@pytest.fixture(scope="module")
def leader(pg_cluster: Cluster) -> Iterator[Cluster]:
    with primary(pg_cluster, {"max_wal_size": "64MB", "min_wal_size": "32MB"}) as cluster:
        execute(cluster, "CREATE ROLE watcher LOGIN IN ROLE pg_monitor", "CREATE ROLE plain LOGIN", "CREATE TABLE t (n int)")
        yield cluster


@pytest.fixture(scope="module")
def follower(leader: Cluster) -> Iterator[Cluster]:
    with standby_of(leader, "second", slot="second") as cluster:
        wait_for(leader.dsn(), "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
        yield cluster


@asynccontextmanager
async def watched(cluster: Cluster, user: str = "watcher") -> AsyncIterator[CheckContext]:
    async with looking_at(Service("postgres", dsn=SecretStr(cluster.dsn(user=user)))) as ctx:
        yield ctx


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def values(observed: Observed, metric: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in observed.samples if sample.metric.name == metric}


async def test_a_pair_that_works_is_well_and_measured(leader: Cluster, follower: Cluster) -> None:
    execute(leader, "INSERT INTO t VALUES (1)")
    caught_up(leader, follower)
    async with watched(leader) as ctx:
        first = await look(pg_replication, ctx, expect_standbys=1, standbys=["second"])
        second = await look(pg_replication, after(ctx, first), expect_standbys=1, standbys=["second"])
    assert kinds(first) == kinds(second) == []
    assert values(second, "monitor_pg_standbys") == {(): 1}
    assert set(values(second, "monitor_pg_replication_lag_bytes")) == {("second", s) for s in ("sent", "write", "flush", "replay")}
    assert values(second, "monitor_pg_slot_active") == {("second",): 1}
    async with watched(follower) as ctx:
        first = await look(pg_replication, ctx, expect_standbys=3)  # what a primary expects is not asked of a standby
        second = await look(pg_replication, after(ctx, first), lag_after="1ms")  # however long ago the last transaction was
    assert kinds(first) == kinds(second) == []
    assert values(second, "monitor_pg_standby_receiving") == {(): 1}
    assert values(second, "monitor_pg_standby_replay_lag_seconds") == {(): 0}
    assert set(pg_replication.metrics) >= {sample.metric for sample in second.samples}


SERVER_CHECKS = [check for check in checks.BUILTINS if check.name.startswith("pg_") and check.name != "pg_statements"]


@pytest.mark.parametrize("check", SERVER_CHECKS, ids=lambda check: check.name)
async def test_every_check_of_a_server_sees_a_standby_too(leader: Cluster, follower: Cluster, check: AnyCheck) -> None:
    execute(leader, pg_helpers.INSTALL)
    caught_up(leader, follower)
    async with watched(follower) as ctx:
        observed = await look(check, ctx)
        again = await look(check, after(ctx, observed))
    assert not {finding.kind.name for finding in again.findings} - {"SettingAdvised"}


async def until(ctx: CheckContext, seen: Callable[[Observed], bool], **config: Any) -> Observed:
    """Look again and again, each look knowing the one before."""
    async with asyncio.timeout(20):
        observed = await look(pg_replication, ctx, **config)
        while not seen(observed):
            await asyncio.sleep(0.1)
            observed = await look(pg_replication, after(ctx, observed), **config)
        return observed


async def test_paused_replay_is_told_on_both_sides_and_goes_away(leader: Cluster, follower: Cluster) -> None:
    execute(follower, "SELECT pg_wal_replay_pause()")
    wait_for(follower.dsn(), "SELECT pg_get_wal_replay_pause_state() = 'paused'")
    try:
        execute(leader, "INSERT INTO t SELECT generate_series(1, 50000)")
        async with watched(follower) as ctx:
            lag = "monitor_pg_standby_replay_lag_bytes"
            observed = await until(ctx, lambda seen: values(seen, lag)[()] > 1_000_000, lag_bytes=1_000_000)
            assert kinds(observed) == ["ReplayPaused"]
            assert dict(observed.findings[0].facts)["to go on"] == "SELECT pg_wal_replay_resume();"
        async with watched(leader) as ctx:
            observed = await until(ctx, lambda seen: bool(seen.findings), lag_bytes=1_000_000)
            assert kinds(observed) == ["StandbyBehind"]
            assert observed.findings[0].labels == (("standby", "second"),)
            # The lag in seconds grows with the age of what is not replayed, though nothing is written any more.
            await until(ctx, lambda seen: any(one.value and one.value >= 1 for one in seen.findings), lag_bytes=1_000_000)
    finally:
        execute(follower, "SELECT pg_wal_replay_resume()")
        caught_up(leader, follower)
    async with watched(leader) as ctx:
        await until(ctx, lambda seen: not seen.findings, lag_bytes=1_000_000)


async def test_a_query_that_replay_cancelled(leader: Cluster, follower: Cluster) -> None:
    execute(leader, "CREATE TABLE doomed (n int)")
    execute(follower, "ALTER SYSTEM SET max_standby_streaming_delay = '100ms'", "SELECT pg_reload_conf()")
    caught_up(leader, follower)
    try:
        async with watched(follower) as ctx:
            before = await look(pg_replication, ctx)
            with suppress(psycopg.Error), psycopg.connect(follower.dsn()) as reader:  # it is cut off
                reader.execute("SELECT count(*) FROM doomed")
                execute(leader, "DROP TABLE doomed")
                caught_up(leader, follower)
            async with asyncio.timeout(15):
                while "RecoveryConflicts" not in kinds(observed := await look(pg_replication, after(ctx, before))):
                    await asyncio.sleep(0.1)
            assert "replay cancelled" in observed.findings[-1].summary
    finally:
        execute(follower, "ALTER SYSTEM RESET max_standby_streaming_delay", "SELECT pg_reload_conf()")


async def test_a_standby_that_is_gone_and_a_primary_that_is_gone(pg18: Cluster) -> None:
    settings = {"wal_sender_timeout": "10s"}
    with primary(pg18, settings) as leader:
        execute(leader, "CREATE ROLE watcher LOGIN IN ROLE pg_monitor", "CREATE TABLE t (n int)")
        with standby_of(leader, "only", slot="only") as follower:
            wait_for(leader.dsn(), "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
            execute(leader, "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (only)'", "SELECT pg_reload_conf()")
            wait_for(leader.dsn(), "SELECT sync_state = 'sync' FROM pg_stat_replication")
            async with watched(leader) as here, watched(follower) as there:
                assert kinds(await look(pg_replication, here, expect_standbys=1)) == []
                follower.stop()
                wait_for(leader.dsn(), "SELECT count(*) = 0 FROM pg_stat_replication")
                observed = await look(pg_replication, here, expect_standbys=1, standbys=["only"], slot_inactive_after="0s")
                assert kinds(observed) == ["StandbyMissing", "StandbyMissing", "SyncStandbyMissing", "SlotInactive"]
                assert observed.findings[0].labels == (("standby", "only"),)
                assert kinds(await look(pg_replication, here)) == ["SyncStandbyMissing"]  # the slot has not been idle for long
                execute(leader, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
                wait_for(leader.dsn(), "SELECT current_setting('synchronous_standby_names') = ''")
                follower.start()
                wait_for(leader.dsn(), "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
                async with asyncio.timeout(10):
                    while kinds(await look(pg_replication, here, expect_standbys=1)):
                        await asyncio.sleep(0.05)
                leader.stop()
                wait_for(follower.dsn(), "SELECT count(*) = 0 FROM pg_stat_wal_receiver")
                observed = await look(pg_replication, there)
                assert kinds(observed) == ["ReceiverNotStreaming"]
                assert values(observed, "monitor_pg_standby_receiving") == {(): 0}


async def test_slots_that_keep_and_lose_wal(pg_cluster: Cluster) -> None:
    with primary(pg_cluster, {"max_wal_size": "64MB", "min_wal_size": "32MB"}) as leader:
        execute(leader, "CREATE ROLE watcher LOGIN IN ROLE pg_monitor", "CREATE TABLE t (n int)")
        await keep_and_lose(leader)


async def keep_and_lose(leader: Cluster) -> None:
    async with watched(leader) as ctx:
        execute(leader, "SELECT pg_create_physical_replication_slot('forgotten', true)")
        execute(leader, "SELECT pg_create_physical_replication_slot('unused')")
        try:
            first = await look(pg_replication, ctx)
            assert kinds(first) == []
            (idle,) = (await look(pg_replication, after(ctx, first), slot_inactive_after="1ms")).findings
            assert (idle.kind.name, idle.labels) == ("SlotInactive", (("slot", "forgotten"),))  # the unused one keeps nothing
            execute(leader, *["INSERT INTO t VALUES (1)", "SELECT pg_switch_wal()"] * 3)
            wait_for(leader.dsn(), "SELECT NOT EXISTS (SELECT FROM pg_stat_replication WHERE flush_lsn < pg_current_wal_lsn())")
            observed = await look(pg_replication, ctx, slot_retained_bytes=20_000_000)
            assert kinds(observed) == ["SlotRetainsWal"]
            assert values(observed, "monitor_pg_slot_retained_bytes")["forgotten",] > 20_000_000
            execute(leader, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
            execute(leader, *["INSERT INTO t VALUES (1)", "SELECT pg_switch_wal()"] * 8, "CHECKPOINT")
            (lost,) = [finding for finding in (await look(pg_replication, ctx)).findings if finding.labels == (("slot", "forgotten"),)]
            assert lost.kind.name == "SlotLost"
        finally:
            execute(leader, "ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
            execute(leader, "SELECT pg_drop_replication_slot('forgotten')", "SELECT pg_drop_replication_slot('unused')")


async def test_a_strangers_name_is_one_line(leader: Cluster) -> None:
    with psycopg.connect(f"{leader.dsn()} replication=database application_name='evil\x1b[31m'", autocommit=True) as stranger:
        assert stranger.info.transaction_status is not None
        async with watched(leader) as ctx:
            observed = await look(pg_replication, ctx, catchup_after="0s")
    found = [finding for finding in observed.findings if finding.kind.name == "StandbyNotStreaming"]
    assert "startup" in found[0].summary
    assert all(part.isprintable() for finding in found for part in (finding.summary, *finding.labels[0]))


async def test_without_pg_monitor_it_is_blind(leader: Cluster) -> None:
    async with watched(leader, "plain") as ctx:
        with pytest.raises(CannotLook, match="GRANT pg_monitor TO plain"):
            await look(pg_replication, ctx)


@pytest.mark.parametrize(
    ("names", "needed"), [("", 0), (" ", 0), ("*", 1), ("a, b", 1), ("2 (a, b)", 2), ("FIRST 2 (a, b)", 2), ("any 3 (a, b, c, d)", 3)]
)
def test_how_many_a_commit_waits_for(names: str, needed: int) -> None:
    assert sync_needed(names) == needed


def test_a_mark_stands_until_it_is_reached() -> None:
    first = mark(None, 50, 100, 1000.0)
    assert first == {"lsn": 100, "at_s": 1000.0, "floor_s": 0.0}
    assert mark(first, 90, 200, 1010.0) == first
    second = mark(first, 100, 200, 1020.0)
    assert second == {"lsn": 200, "at_s": 1020.0, "floor_s": 1000.0}
    assert mark(second, 300, 300, 1030.0) == {"lsn": 300, "at_s": 1030.0, "floor_s": 1030.0}


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, None),
        ({"wal_status": "unreserved"}, "SlotRetainsWal"),
        ({"wal_status": "lost"}, "SlotLost"),
        ({"reason": "idle_timeout"}, "SlotLost"),
        ({"retained": 6 * 2**30}, "SlotRetainsWal"),
        ({"active": False}, "SlotInactive"),
        ({"active": False, "synced": True}, None),
        ({"active": False, "holds": False}, None),
    ],
)
def test_what_a_slot_means(changed: dict[str, object], kind: str | None) -> None:
    slot = {"name": "s", "slot_type": "logical", "active": True, "wal_status": "reserved", "holds": True}
    slot |= {"retained": 5.0, "inactive_at_s": None, "reason": None, "synced": False} | changed
    inactive = {} if slot["active"] else {"s": 100.0}
    found = judge_slots([slot], at_s=1000.0, inactive_since=inactive, inactive_after_s=600, retained_bytes=5 * 2**30, service="postgres")
    assert [finding.kind.name for finding in found] == ([kind] if kind else [])
