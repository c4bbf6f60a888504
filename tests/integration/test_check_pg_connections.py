"""``pg_connections`` on real servers, 15 and 18: full, nearly full, stuck before authentication, redacted, gone."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from checks.pg_connections import Config, pg_connections
from monitor.clock import SystemClock
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from monitor.probes.http import CurlProbe
from monitor.probes.postgres import PgSentinel
from services.cluster import Cluster
from tests.support.looking import after, with_parts
from tests.support.postgres import PASSWORD, execute, leaked, small_cluster


@pytest.fixture
def cluster(pg_cluster: Cluster) -> Iterator[Cluster]:
    with small_cluster(pg_cluster) as cluster:
        execute(
            cluster,
            f"CREATE ROLE watcher LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_monitor",
            f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'",
        )
        yield cluster


@pytest.fixture
async def http() -> AsyncIterator[CurlProbe]:
    probe = CurlProbe(SystemClock())
    yield probe
    await probe.close()


@asynccontextmanager
async def watched(cluster: Cluster, http: CurlProbe, *, user: str = "watcher", canary: str = "app") -> AsyncIterator[CheckContext]:
    dsn, canary_dsn = (SecretStr(cluster.dsn(user=name, password=PASSWORD)) for name in (user, canary))
    clock = SystemClock()
    sentinel = PgSentinel(dsn, canary_dsn, clock, timeout_s=1.5)
    try:
        yield with_parts(Service("postgres", dsn=dsn, canary_dsn=canary_dsn), clock=clock, http=http, pg=sentinel)
    finally:
        await sentinel.close()


async def look(ctx: CheckContext, **config: float) -> Observed:
    async with asyncio.timeout(4):
        return await pg_connections.run(ctx, Config(**config))


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def value(observed: Observed, metric: str, *labels: str) -> float:
    return next(s.value for s in observed.samples if s.metric.name == metric and s.labels == labels)


async def test_a_quiet_server_is_measured(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http) as ctx:
        with leaked(f"{cluster.dsn(user='app', password=PASSWORD)} application_name=data-service", at_most=3):
            observed = await look(ctx)
    assert kinds(observed) == []
    assert value(observed, "monitor_pg_connections_usable") == 17
    assert value(observed, "monitor_pg_connections_used_ratio") == pytest.approx(4 / 17)
    assert value(observed, "monitor_pg_connections_by_application", "data-service") == 3
    assert value(observed, "monitor_pg_connections_by_application", "monitor") == 1
    assert value(observed, "monitor_pg_connections", "idle") == 3
    assert value(observed, "monitor_pg_connections", "active") == 1
    assert value(observed, "monitor_pg_canary_up") == 1


async def test_a_good_login_counts_for_a_while_unless_anything_is_unusual(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http) as ctx:
        assert isinstance(ctx.pg, PgSentinel)
        first = await look(ctx, login_every=60)
        second = await look(after(ctx, first), login_every=60)
        assert ctx.pg.cost.logins == 1
        assert value(second, "monitor_pg_canary_up") == 1
        assert value(second, "monitor_pg_canary_duration_seconds") == value(first, "monitor_pg_canary_duration_seconds")
        assert second.keep is None  # the age of the login goes on
        with leaked(cluster.dsn(user="app", password=PASSWORD)):
            assert kinds(await look(after(ctx, first), login_every=60)) == ["ConnectionsExhausted"]
            assert ctx.pg.cost.logins == 2
        execute(cluster, "ALTER ROLE app NOLOGIN")
        with pytest.raises(CannotLook, match="rejected"):
            await look(ctx, login_every=60)


async def test_thresholds(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http) as ctx:
        with leaked(cluster.dsn(user="app", password=PASSWORD), at_most=9):
            assert kinds(await look(ctx, warn_percent=50)) == ["ConnectionsHigh"]
            assert kinds(await look(ctx, warn_percent=20, critical_percent=50)) == ["ConnectionsExhausted"]


async def test_exhausted_is_seen_by_a_held_connection_and_by_a_late_one(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http) as held, watched(cluster, http) as late:
        assert kinds(await look(held)) == []
        with leaked(f"{cluster.dsn(user='app', password=PASSWORD)} application_name=analytics-service"):
            observed = await look(held)
            (finding,) = observed.findings
            assert finding.kind.name == "ConnectionsExhausted"
            assert finding.kind.incident == "INC-002"
            facts = dict(finding.facts)
            assert re.match(r"1[78] of 17 usable", facts["used"])  # one whose end the server has not seen yet may still be counted
            assert "analytics-service 16" in facts["by application"]
            assert facts["canary login"].startswith("exhausted")
            assert value(observed, "monitor_pg_canary_up") == 0
            (blind,) = (await look(late)).findings
            assert blind.kind.name == "ConnectionsExhausted"
            assert "could not be counted" in blind.summary


async def test_sockets_stuck_before_authentication_are_told_from_exhaustion(cluster: Cluster, http: CurlProbe) -> None:
    """They hold slots, few sessions exist, and nobody gets in."""
    address = ("127.0.0.1", int(conninfo_to_dict(cluster.dsn())["port"] or 0))
    words = b"\0\3\0\0user\0app\0database\0postgres\0\0"
    startup = (len(words) + 4).to_bytes(4, "big") + words  # then the server waits for a password that never comes
    async with watched(cluster, http) as ctx:
        assert kinds(await look(ctx)) == []
        stuck = [socket.create_connection(address, timeout=5) for _ in range(20)]
        try:
            for one in stuck:
                one.sendall(startup)
            for one in stuck:
                assert one.recv(1) in {b"R", b"E"}  # asked for its password, or refused: the slots are taken
            (finding,) = (await look(ctx)).findings
            assert finding.kind.name == "HandshakesStuck"
            assert dict(finding.facts)["canary login"].startswith("exhausted")
        finally:
            for one in stuck:
                one.close()


async def test_a_server_that_accepts_and_never_answers(cluster: Cluster, http: CurlProbe) -> None:
    assert cluster.pid
    async with watched(cluster, http) as ctx:
        assert kinds(await look(ctx)) == []
        os.kill(cluster.pid, signal.SIGSTOP)  # the postmaster: sessions live on, logins hang
        try:
            assert kinds(await look(ctx)) == ["HandshakesStuck"]
        finally:
            os.kill(cluster.pid, signal.SIGCONT)


async def test_a_role_without_pg_monitor_is_blind_and_the_grant_is_named(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http, user="app") as ctx:
        with pytest.raises(CannotLook, match="GRANT pg_monitor TO app"):
            await look(ctx)


async def test_a_rejected_canary_is_named(cluster: Cluster, http: CurlProbe) -> None:
    execute(cluster, "ALTER ROLE app PASSWORD 'changed'")
    async with watched(cluster, http) as ctx:
        with pytest.raises(CannotLook, match="canary login of postgres is rejected") as caught:
            await look(ctx)
    assert PASSWORD not in str(caught.value)


async def test_limits_of_role_and_database(cluster: Cluster, http: CurlProbe) -> None:
    execute(cluster, "ALTER ROLE app CONNECTION LIMIT 2")
    async with watched(cluster, http) as ctx:
        with leaked(cluster.dsn(user="app", password=PASSWORD), at_most=2):
            (finding,) = (await look(ctx)).findings
            assert (finding.kind.name, finding.labels) == ("RoleLimitReached", (("limit", "role"),))
            assert dict(finding.facts)["limits reached"] == "role app 2/2"
        execute(cluster, "ALTER ROLE app CONNECTION LIMIT 5")
        with leaked(cluster.dsn(user="app", password=PASSWORD), at_most=4):
            observed = await look(ctx)
            assert [finding.summary for finding in observed.findings] == [
                "the role app has used up 80 % of its own connection limit (postgres)"
            ]
            assert [sample.value for sample in observed.samples if sample.metric.name.endswith("limit_used_ratio")] == [0.8]
        execute(cluster, "ALTER ROLE app CONNECTION LIMIT -1", "ALTER DATABASE postgres CONNECTION LIMIT 2")
        with leaked(cluster.dsn(user="app", password=PASSWORD)):
            assert kinds(await look(ctx)) == ["DatabaseLimitReached"]


async def test_a_server_that_is_gone_is_down_and_comes_back(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http) as ctx:
        assert kinds(await look(ctx)) == []
        cluster.kill()
        assert kinds(await look(ctx)) == ["DatabaseDown"]
        cluster.start()
        assert kinds(await look(ctx)) == []


async def test_many_applications_are_capped(cluster: Cluster, http: CurlProbe) -> None:
    async with watched(cluster, http) as ctx:
        with leaked(f"{cluster.dsn(user='app', password=PASSWORD)} application_name='evil\x1b[31m'", at_most=2):
            observed = await look(ctx)
    names = {sample.labels[0] for sample in observed.samples if sample.metric.name == "monitor_pg_connections_by_application"}
    assert all(name.isprintable() for name in names)
    assert len(names) <= 21
