"""Settings and left-over prepared transactions, on real servers, 15 and 18."""

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL
from pydantic import SecretStr, ValidationError

from checks.pg_prepared_transactions import pg_prepared_transactions
from checks.pg_settings import RULES, pg_settings
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, CheckContext, Service
from services.cluster import Cluster
from tests.support.looking import look, looking_at
from tests.support.postgres import PASSWORD, execute, small_cluster


@pytest.fixture(scope="module")
def cluster(pg_cluster: Cluster) -> Iterator[Cluster]:
    """A server that lets transactions be prepared, and a role as applications have it."""
    with small_cluster(pg_cluster) as own:
        execute(own, "ALTER SYSTEM SET max_prepared_transactions = 5", f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        own.stop()
        own.start()
        yield own


# The servers of the tests are started without fsync.
IGNORED = ["fsync"]


@pytest.fixture
async def ctx(cluster: Cluster) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("postgres", dsn=SecretStr(cluster.dsn()))) as found:
        yield found


def settings(observed: Observed) -> dict[str, str]:
    return {dict(finding.labels)["setting"]: finding.summary for finding in observed.findings}


async def set_and_look(ctx: CheckContext, cluster: Cluster, *statements: str) -> Observed:
    """Change the server, let it read that, look, and undo it."""
    execute(cluster, *(f"ALTER SYSTEM SET {statement}" for statement in statements), "SELECT pg_reload_conf()")
    try:
        # Each session reads changed settings when it begins its next statement; a new one has them from the start.
        async with looking_at(ctx.service) as fresh:
            return await look(pg_settings, fresh, ignore=IGNORED)
    finally:
        execute(cluster, *(f"ALTER SYSTEM RESET {statement.split()[0]}" for statement in statements), "SELECT pg_reload_conf()")


async def test_advice_on_a_server_as_it_comes(ctx: CheckContext) -> None:
    observed = await look(pg_settings, ctx, ignore=IGNORED)
    told = settings(observed)
    assert "statement_timeout of postgres: one statement can run, and hold its locks, for ever: 1 role may: app" in told.values()
    assert {"idle_in_transaction_session_timeout", "log_temp_files", "shared_buffers"} <= set(told)
    assert "fsync" in settings(await look(pg_settings, ctx))
    assert not {"autovacuum", "superuser_reserved_connections", "max_slot_wal_keep_size"} & set(told)
    assert all(finding.severity is None for finding in observed.findings)


@pytest.mark.parametrize(
    ("statement", "severity"),
    [
        ("full_page_writes = off", Severity.P2),
        ("autovacuum = off", Severity.P3),
        ("log_lock_waits = off", None),
    ],
)
async def test_a_bad_setting_is_told_with_its_cure(ctx: CheckContext, cluster: Cluster, statement: str, severity: Severity | None) -> None:
    observed = await set_and_look(ctx, cluster, statement)
    name = statement.split(maxsplit=1)[0]
    finding = next(found for found in observed.findings if dict(found.labels)["setting"] == name)
    assert finding.severity == severity
    assert dict(finding.facts)["now"] == statement
    assert dict(finding.facts)["cure"].startswith(f"ALTER SYSTEM SET {name} = on")
    if severity is Severity.P2:
        assert observed.findings[0] is finding  # the worst first


async def test_a_change_that_waits_for_a_restart(ctx: CheckContext, cluster: Cluster) -> None:
    observed = await set_and_look(ctx, cluster, "max_connections = 55")
    assert "changed settings wait for a restart" in settings(observed)["pending_restart"]


async def test_a_slot_without_a_bound_and_roles_with_their_own_timeouts(ctx: CheckContext, cluster: Cluster) -> None:
    execute(
        cluster,
        "SELECT pg_create_physical_replication_slot('keeper')",
        "ALTER ROLE app SET statement_timeout = '30s'",
        "ALTER ROLE app SET idle_in_transaction_session_timeout = '0'",
    )
    try:
        told = settings(await look(pg_settings, ctx))
        assert "keeps WAL until the disk is full" in told["max_slot_wal_keep_size"]
        assert "statement_timeout" not in told
        assert "idle_in_transaction_session_timeout" in told
    finally:
        execute(cluster, "SELECT pg_drop_replication_slot('keeper')", "ALTER ROLE app RESET ALL")


@pytest.mark.parametrize(
    ("statements", "advised"),
    [
        (["ALTER DATABASE postgres SET statement_timeout = '30s'"], False),
        (["ALTER ROLE ALL SET statement_timeout = '30s'"], False),
        (["ALTER ROLE app IN DATABASE postgres SET statement_timeout = '30s'"], False),
        (["ALTER ROLE app IN DATABASE template1 SET statement_timeout = '30s'"], True),
        (["ALTER ROLE app SET statement_timeout = '30s'", "ALTER ROLE app IN DATABASE postgres SET statement_timeout = 0"], True),
        (["ALTER DATABASE postgres SET statement_timeout = '30s'", "ALTER ROLE app SET statement_timeout = 0"], True),
    ],
)
async def test_timeouts_of_the_database_count_as_the_server_applies_them(
    ctx: CheckContext, cluster: Cluster, statements: list[str], advised: bool
) -> None:
    """Asked over a connection that is older than the change, and compared with what the role's own session gets."""
    await look(pg_settings, ctx)
    execute(cluster, *statements)
    try:
        told = settings(await look(pg_settings, ctx))
        with psycopg.connect(make_conninfo(cluster.dsn(), user="app", password=PASSWORD)) as app:
            row = app.execute("SELECT current_setting('statement_timeout')").fetchone()
        assert ("statement_timeout" in told) == advised == (row == ("0",))
    finally:
        execute(
            cluster,
            *("ALTER ROLE app RESET ALL", "ALTER ROLE ALL RESET ALL", "ALTER DATABASE postgres RESET ALL"),
            *(f"ALTER ROLE app IN DATABASE {name} RESET ALL" for name in ("postgres", "template1")),
        )


async def test_timeouts_of_the_whole_server_count_for_its_roles(ctx: CheckContext, cluster: Cluster) -> None:
    told = settings(await set_and_look(ctx, cluster, "statement_timeout = '60s'", "idle_in_transaction_session_timeout = '5min'"))
    assert not {"statement_timeout", "idle_in_transaction_session_timeout"} & set(told)


async def test_declined_advice_is_not_given(ctx: CheckContext) -> None:
    everything = list(settings(await look(pg_settings, ctx)))
    assert (await look(pg_settings, ctx, ignore=everything)).findings == ()
    with pytest.raises(ValidationError, match="there is no advice for 'max_connectoins' to ignore"):
        await look(pg_settings, ctx, ignore=["max_connectoins"])


async def test_every_rule_is_about_a_setting_that_some_server_has(cluster: Cluster) -> None:
    with psycopg.connect(cluster.dsn()) as admin:
        known = {name for (name,) in admin.execute("SELECT name FROM pg_settings").fetchall()}
        newer = {"reserved_connections"} if admin.info.server_version < 160_000 else set()
    assert {rule.setting for rule in RULES} - known == newer


async def test_a_prepared_transaction_that_nobody_ends(ctx: CheckContext, cluster: Cluster) -> None:
    assert (await look(pg_prepared_transactions, ctx, older_than=0)).findings == ()
    execute(cluster, "CREATE TABLE IF NOT EXISTS two_phase (a int)")
    hostile = "o'clock\x1b[2J"
    for gid in ("plain", hostile):
        with psycopg.connect(cluster.dsn()) as connection:
            connection.execute("INSERT INTO two_phase VALUES (1)")
            connection.execute(SQL("PREPARE TRANSACTION {}").format(gid))
    try:
        observed = await look(pg_prepared_transactions, ctx, older_than=0)
        (finding,) = observed.findings
        assert "2 prepared transactions left over" in finding.summary
        assert all(text.isprintable() for pair in finding.facts for text in pair)
        assert dict(finding.facts)["to end it"] == "in postgres: ROLLBACK PREPARED 'plain';"
        assert (await look(pg_prepared_transactions, ctx)).findings == ()  # it is young
    finally:
        for gid in ("plain", hostile):
            with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
                connection.execute(SQL("ROLLBACK PREPARED {}").format(gid))


@pytest.mark.parametrize("check", [pg_settings, pg_prepared_transactions], ids=lambda check: check.name)
async def test_a_role_without_sight_is_blind(cluster: Cluster, check: AnyCheck) -> None:
    dsn = make_conninfo(cluster.dsn(), user="app", password=PASSWORD)
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as poor:
        with pytest.raises(CannotLook, match="GRANT pg_monitor TO app"):
            await look(check, poor)
