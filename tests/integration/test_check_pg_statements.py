"""``pg_statements`` on real servers that count statements, 15 and 18: slow, slower, forgotten, reset, and without the extension."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from checks.pg_statements import pg_statements
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from services.cluster import Cluster
from tests.support.looking import after, look, looking_at
from tests.support.postgres import execute

SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.max": "100", "max_connections": "20"}


@pytest.fixture(scope="module")
def cluster(pg_cluster: Cluster) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="monitor-pg-"))
    folder.chmod(0o755)
    try:
        with Cluster(folder / "data", bin_dir=pg_cluster._bin, settings=SETTINGS) as own:
            execute(
                own,
                'CREATE SCHEMA "odd schema"',
                'CREATE EXTENSION pg_stat_statements SCHEMA "odd schema"',
                "CREATE ROLE mon LOGIN",
                "GRANT pg_monitor TO mon",
                'GRANT USAGE ON SCHEMA "odd schema" TO mon',
                "CREATE ROLE plain LOGIN",
                "CREATE TABLE pause (seconds float8)",
                "INSERT INTO pause VALUES (0)",
                "CREATE DATABASE bare",
            )
            yield own
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def ctx(cluster: Cluster) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("postgres", dsn=SecretStr(make_conninfo(cluster.dsn(), user="mon")))) as found:
        yield found


def run_often(cluster: Cluster, statement: str, times: int) -> None:
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        for _ in range(times):
            connection.execute(statement.encode())


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


PAUSE = "SELECT pg_sleep(seconds) FROM pause WHERE 'hunter2' <> ''"


async def test_a_statement_that_became_slow(cluster: Cluster, ctx: CheckContext) -> None:
    execute(cluster, 'SELECT "odd schema".pg_stat_statements_reset()', "UPDATE pause SET seconds = 0")
    run_often(cluster, PAUSE, 30)
    first = await look(pg_statements, ctx)
    assert kinds(first) == []  # what was before nobody was looking is no news
    execute(cluster, "UPDATE pause SET seconds = 0.02")
    run_often(cluster, PAUSE, 10)
    limits = {"min_calls": 5, "min_calls_before": 20, "slower_mean_ms": 10, "slow_mean_ms": 500}
    second = await look(pg_statements, after(ctx, first), **limits)
    (finding,) = second.findings
    assert finding.kind.name == "StatementSlower"
    ((numbers, text), _) = finding.facts
    assert "10 runs, before 0 ms" in numbers
    assert "pg_sleep" in text
    assert "hunter2" not in str(second)
    assert {sample.labels for sample in second.samples if sample.metric.name.endswith("top_ratio")} >= {("1",)}
    assert kinds(await look(pg_statements, after(ctx, second), **limits)) == []
    run_often(cluster, PAUSE, 10)
    (finding,) = (await look(pg_statements, after(ctx, second), **{**limits, "slow_mean_ms": 15})).findings
    assert finding.kind.name == "StatementSlow"
    assert finding.value == pytest.approx(20, abs=8)


async def test_a_reset_begins_anew(cluster: Cluster, ctx: CheckContext) -> None:
    execute(cluster, "UPDATE pause SET seconds = 0.02")
    first = await look(pg_statements, ctx)
    execute(cluster, 'SELECT "odd schema".pg_stat_statements_reset()')
    run_often(cluster, PAUSE, 10)
    assert kinds(await look(pg_statements, after(ctx, first), min_calls=5, slow_mean_ms=10)) == []


async def test_too_little_room_is_told(cluster: Cluster, ctx: CheckContext) -> None:
    first = await look(pg_statements, ctx)
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        for number in range(1, 250):
            connection.execute(f"SELECT {', '.join(['1'] * number)}".encode())
    observed = await look(pg_statements, after(ctx, first), max_evictions=1, slow_mean_ms=1e6, slower_mean_ms=1e6)
    assert kinds(observed) == ["StatementsForgotten"]


async def test_without_the_extension_or_the_right_it_is_blind(cluster: Cluster) -> None:
    async with looking_at(Service("postgres", dsn=SecretStr(cluster.dsn("bare")))) as bare:
        with pytest.raises(CannotLook, match="is not in this database: CREATE EXTENSION pg_stat_statements"):
            await look(pg_statements, bare)
    async with looking_at(Service("postgres", dsn=SecretStr(make_conninfo(cluster.dsn(), user="plain")))) as poor:
        with pytest.raises(CannotLook, match="GRANT pg_monitor TO plain"):
            await look(pg_statements, poor)


async def test_an_extension_that_is_not_loaded_is_blind(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION pg_stat_statements")
    async with looking_at(Service("postgres", dsn=SecretStr(database))) as ctx:
        with pytest.raises(CannotLook, match="shared_preload_libraries"):
            await look(pg_statements, ctx)
