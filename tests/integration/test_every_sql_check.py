"""What holds for every check that asks PostgreSQL, on 15 and 18: sight or BLIND, no lock that holds it up, few series of many things."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

import checks
from checks import pg_helpers
from monitor.clock import SystemClock
from monitor.config.settings import CheckInstance
from monitor.domain import AlertPolicy, CheckResult, Outcome
from monitor.metrics.exposition import SERIES_PER_FAMILY, Exposition
from monitor.plugins import AnyCheck, Service
from monitor.probes.outside import SHARED_UP_TO_S, Outside
from monitor.runner import Runner
from services.cluster import Cluster
from tests.support.platform_tables import platform_database, run_sql
from tests.support.postgres import PASSWORD, small_cluster

CONFIG: dict[str, dict[str, object]] = {
    "sql_query": {"query": "SELECT count(*) AS value FROM public.purchase"},
    "smtp_server": {},
}
NEEDS_MORE = {"pg_statements"}
"""Needs a server that counts statements: looked at in its own tests."""
SQL_CHECKS = [check for check in checks.BUILTINS if "dsn" in check.needs and check.name not in NEEDS_MORE]
SERVER_CHECKS = [check for check in SQL_CHECKS if check.name.startswith("pg_")]
TIMEOUT_S = 3.0


async def run(check: AnyCheck, dsn: str, *, timeout_s: float = TIMEOUT_S) -> CheckResult:
    """One run as the monitor makes it."""
    service = Service("postgres", dsn=SecretStr(dsn))
    config = check.config.model_validate(CONFIG.get(check.name, {}))
    policy = AlertPolicy()
    instance = CheckInstance(f"{check.name}/postgres", check.name, check, service, config, 60.0, timeout_s, 5.0, policy)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        outside = Outside(clock)
        stack.push_async_callback(outside.close)
        runner = Runner(clock, lambda one, kept: outside.check_context(one.service, name=one.name, kept=kept, timeout_s=one.timeout_s))
        return await runner.run(instance)


@pytest.fixture
def platform_dsn(database: str) -> str:
    """The platform's tables, seen as the monitor's role."""
    return platform_database(database)


@pytest.fixture
def plain_dsn(database: str) -> Iterator[str]:
    """A role that was granted nothing, over the platform's tables."""
    platform_database(database)
    name = f"plain_{os.urandom(4).hex()}"
    run_sql(database, f"CREATE ROLE {name} LOGIN")
    yield make_conninfo(database, user=name)
    run_sql(database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.mark.parametrize("check", SQL_CHECKS, ids=lambda check: check.name)
async def test_it_sees_as_the_monitors_role(platform_dsn: str, check: AnyCheck) -> None:
    if check.name == "sql_query":
        run_sql(make_conninfo(platform_dsn, user="postgres"), "GRANT SELECT ON purchase TO monitor_ro")
    result = await run(check, platform_dsn)
    assert result.outcome is not Outcome.BLIND, result.error


@pytest.mark.parametrize("check", SQL_CHECKS, ids=lambda check: check.name)
async def test_without_the_right_it_is_blind_and_names_the_grant(plain_dsn: str, check: AnyCheck) -> None:
    if check.name == "pg_sequences":
        run_sql(make_conninfo(plain_dsn, user="postgres"), "CREATE SEQUENCE hidden")
    result = await run(check, plain_dsn)
    assert result.outcome is Outcome.BLIND, result.observed
    assert result.error is not None
    assert "GRANT" in result.error or "install platmon" in result.error, result.error


UNSEEN_WITHOUT = {
    "track_counts": {"pg_bloat", "pg_counters", "pg_indexes", "pg_vacuum"},
    "track_activities": {"pg_idle_in_transaction", "pg_indexes", "pg_long_queries"},
}


@pytest.mark.parametrize("setting", UNSEEN_WITHOUT)
async def test_what_the_server_does_not_keep_is_not_well(database: str, platform_dsn: str, setting: str) -> None:
    """Switched off, counters stand still and sessions are empty: those that read them are blind, and no other is."""
    run_sql(
        database, f"ALTER DATABASE {conninfo_to_dict(database)['dbname']} SET {setting} = off", "GRANT SELECT ON purchase TO monitor_ro"
    )
    results = {check.name: await run(check, platform_dsn) for check in SQL_CHECKS}
    blind = {name: str(result.error) for name, result in results.items() if result.outcome is Outcome.BLIND}
    assert set(blind) == UNSEEN_WITHOUT[setting]
    assert all(f"ALTER SYSTEM SET {setting} = on" in error for error in blind.values())


TABLES = ("purchase", "add_to_cart", "page_view", "processing_jobs", "email_sending_jobs", "tenant_config")


@pytest.mark.parametrize("check", SQL_CHECKS, ids=lambda check: check.name)
async def test_tables_that_are_held_exclusively_delay_it_no_longer_than_its_timeout(
    database: str, platform_dsn: str, check: AnyCheck
) -> None:
    with ExitStack() as stack:
        for number, table in enumerate(TABLES):
            holder = stack.enter_context(psycopg.connect(database, application_name=f"holder {number}"))
            holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        result = await run(check, platform_dsn)
    assert result.duration_s < TIMEOUT_S
    if check in SERVER_CHECKS:  # what it reads is the server's own: nobody can lock it
        assert result.outcome is not Outcome.BLIND, result.error
    elif result.outcome is Outcome.BLIND:
        assert "locked by another session" in str(result.error)


async def test_a_check_with_more_time_has_it_and_nobody_waits_behind_it(database: str, platform_dsn: str) -> None:
    """Its slow statement runs on the server for longer than the others may, who are answered meanwhile; then its own time is over too."""
    quick, own = next(check for check in SQL_CHECKS if check.name == "pg_wal"), next(c for c in SQL_CHECKS if c.name == "sql_query")
    clock, service = SystemClock(), Service("postgres", dsn=SecretStr(platform_dsn))
    outside = Outside(clock)
    runner = Runner(clock, lambda one, kept: outside.check_context(one.service, name=one.name, kept=kept, timeout_s=one.timeout_s))

    def instance(check: AnyCheck, timeout_s: float, **config: object) -> CheckInstance:
        configured = check.config.model_validate(config)
        return CheckInstance(f"{check.name}/postgres", check.name, check, service, configured, 60.0, timeout_s, 5.0, AlertPolicy())

    slow = "SELECT 1 AS value FROM pg_sleep({})"
    try:
        long, short = await asyncio.gather(
            runner.run(instance(own, 10.5, query=slow.format(3.4))), runner.run(instance(quick, SHARED_UP_TO_S))
        )
        assert long.outcome is Outcome.OK, long.error
        assert long.duration_s > 3.4
        assert short.outcome is Outcome.OK, short.error
        assert short.duration_s < 1
        stopped = await runner.run(instance(own, 10.5, query=slow.format(60)))
        assert "stopped after 4.5 s" in str(stopped.error)
        run_sql(database, "GRANT SELECT ON purchase TO monitor_ro")
        with psycopg.connect(database) as holder:
            holder.execute("LOCK TABLE purchase IN ACCESS EXCLUSIVE MODE")
            locked = await runner.run(instance(own, 10.5, query="SELECT count(*) AS value FROM public.purchase"))
        assert "locked by another session" in str(locked.error)
        assert locked.duration_s < 1
        costs = outside.postgres_costs()["postgres"]
        assert (costs.connects, len(outside.postgres_costs())) == (2, 1)
    finally:
        await outside.close()


# --- cardinality -----------------------------------------------------------------------------------------------------

MANY_TABLES, MANY_APPLICATIONS = 5_000, 200
MAKE_TABLES = f"""
DO $$ BEGIN FOR n IN 1..{MANY_TABLES} LOOP
    EXECUTE format('CREATE TABLE %I (id smallserial, note text)', 'table ' || n || E' \\x1b[2J"');
    IF n % 500 = 0 THEN COMMIT; END IF;
END LOOP; END $$
"""
FILL_SOME = """
DO $$ DECLARE name text; BEGIN FOR name IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'table %' LIMIT 30 LOOP
    EXECUTE format('INSERT INTO %I (note) SELECT repeat(''x'', 1000) FROM generate_series(1, 1200)', name);
    EXECUTE format('ANALYZE %I', name);
END LOOP; END $$
"""


@pytest.fixture(scope="module")
def crowded(pg_cluster: Cluster) -> Iterator[str]:
    """A server with 5,000 tables under hostile names, 30 of them filled, and 200 applications with hostile names connected: its DSN."""
    with small_cluster(pg_cluster) as cluster, ExitStack() as stack:
        run_sql(cluster.dsn(), "ALTER SYSTEM SET max_connections = 250", "ALTER SYSTEM SET max_locks_per_transaction = 256")
        cluster.stop()
        cluster.settings["max_connections"] = "250"
        cluster.start()
        run_sql(
            cluster.dsn(),
            MAKE_TABLES,
            FILL_SOME,
            pg_helpers.INSTALL,
            f"CREATE ROLE mon LOGIN PASSWORD '{PASSWORD}'",
            "GRANT pg_monitor TO mon",
        )
        for number in range(MANY_APPLICATIONS):
            name = f"app {number} \x1b[31m\u202e{{}}\"'\\"
            stack.enter_context(psycopg.connect(cluster.dsn(), application_name=name))
        yield make_conninfo(cluster.dsn(), user="mon", password=PASSWORD)


@pytest.mark.parametrize("check", SERVER_CHECKS, ids=lambda check: check.name)
async def test_thousands_of_tables_and_hundreds_of_applications_stay_few_series(crowded: str, check: AnyCheck) -> None:
    result = await run(check, crowded, timeout_s=10.0)
    assert result.outcome is not Outcome.BLIND, result.error
    assert result.observed.samples
    exposition = Exposition("test")
    exposition.record(result)
    text = exposition.render().decode()
    for metric in check.metrics:
        assert sum(line.startswith((f"{metric.name}{{", f"{metric.name} ")) for line in text.splitlines()) <= 110 < SERIES_PER_FAMILY
    assert all(line.endswith(" 0.0") for line in text.splitlines() if line.startswith("monitor_series_dropped_total{"))
    assert all(line.isprintable() for line in text.splitlines())
    assert len(result.observed.findings) <= 50


async def test_what_is_left_out_of_the_top_is_told_together(crowded: str) -> None:
    assert conninfo_to_dict(crowded)["user"] == "mon"
    sizes = await run(next(check for check in SQL_CHECKS if check.name == "pg_sizes"), crowded, timeout_s=10.0)
    connections = await run(next(check for check in SQL_CHECKS if check.name == "pg_connections"), crowded, timeout_s=10.0)
    for result, name in ((sizes, "monitor_pg_table_size_bytes"), (connections, "monitor_pg_connections_by_application")):
        shown = [sample for sample in result.observed.samples if sample.metric.name == name]
        assert len(shown) == 21
        assert any(sample.labels == ("(other)",) and sample.value > 0 for sample in shown)
