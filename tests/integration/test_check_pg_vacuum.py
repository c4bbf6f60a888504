"""``pg_vacuum`` on real tables, 15 and 18: own thresholds, switched off, held back by an old snapshot, hostile names, a held lock."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from pydantic import SecretStr

from checks.pg_vacuum import pg_vacuum
from monitor.domain import Observed
from monitor.plugins import CheckContext, Service
from tests.support.looking import look, looking_at

TABLE = "CREATE TABLE {name} (a int) WITH (autovacuum_enabled = {enabled}{more})"
FILL = "INSERT INTO {name} SELECT generate_series(1, 2000)"


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("postgres", dsn=SecretStr(database))) as found:
        yield found


def run_sql(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


def dirty(dsn: str, name: str = "orders", *, enabled: str = "on", more: str = "") -> None:
    """A table with 2,000 dead rows that autovacuum has had no time to clean."""
    table = TABLE.format(name=name, enabled=enabled, more=more)
    run_sql(dsn, table, FILL.format(name=name), f"ANALYZE {name}", f"DELETE FROM {name}")


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


async def until(ctx: CheckContext, seen: Callable[[Observed], object], **config: object) -> Observed:
    """Look until the counters of the ended session have arrived."""
    async with asyncio.timeout(15):
        while not seen(observed := await look(pg_vacuum, ctx, **config)):
            await asyncio.sleep(0.1)
        return observed


async def test_a_clean_database_is_well(database: str, ctx: CheckContext) -> None:
    observed = await look(pg_vacuum, ctx)
    assert observed.findings == ()
    assert {sample.labels for sample in observed.samples if sample.metric.name == "monitor_pg_xmin_age"} == {
        ("session",),
        ("standby",),
        ("slot",),
        ("prepared transaction",),
    }


async def test_a_table_over_its_own_threshold_is_found_with_the_cure(database: str, ctx: CheckContext) -> None:
    dirty(database, more=", autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0")
    observed = await until(ctx, lambda seen: seen.findings, min_dead_rows=1000)
    assert kinds(observed) == ["VacuumBehind"]
    (finding,) = observed.findings
    assert finding.value == pytest.approx(20, rel=0.01)
    assert "2,000 dead, 20.0 times its threshold, never vacuumed" in dict(finding.facts)["public.orders"]
    assert dict(finding.facts)["first"] == "VACUUM (ANALYZE) public.orders;"
    run_sql(database, "VACUUM orders")
    await until(ctx, lambda seen: not seen.findings, min_dead_rows=1000)


async def test_a_generous_threshold_of_its_own_is_respected(database: str, ctx: CheckContext) -> None:
    dirty(database, more=", autovacuum_vacuum_threshold = 5000")
    dead = ("public.orders",)
    observed = await until(ctx, lambda seen: any(s.labels == dead and s.value == 2000 for s in seen.samples), min_dead_rows=1000)
    assert observed.findings == ()


async def test_a_table_whose_autovacuum_is_off_is_told_apart(database: str, ctx: CheckContext) -> None:
    dirty(database, enabled="off")
    observed = await until(ctx, lambda seen: "AutovacuumOff" in kinds(seen), min_dead_rows=1000)
    (finding,) = observed.findings
    assert finding.labels == (("table", "public.orders"),)


async def test_who_holds_back_the_cleaning_is_named(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database, application_name="nightly-export") as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        run_sql(database, *["CREATE TABLE t (a int)", "DROP TABLE t"] * 3)
        observed = await until(ctx, lambda seen: "XminHeld" in kinds(seen), xmin_age_alone=3)
        (finding,) = observed.findings
        assert "nightly-export" in finding.summary
        assert str(old.info.backend_pid) in finding.summary
    await until(ctx, lambda seen: not seen.findings, xmin_age_alone=1_000)


async def held_by(ctx: CheckContext, dsn: str, kind: str, who: str) -> None:
    """This holder, which is there already, is named as the oldest once a few transactions have come after it."""
    run_sql(dsn, *["CREATE TABLE t (a int)", "DROP TABLE t"] * 3)
    (finding,) = (await until(ctx, lambda seen: "XminHeld" in kinds(seen), xmin_age_alone=3)).findings
    assert finding.summary.startswith(f"a {kind} holds back VACUUM by ")
    assert who in finding.summary
    assert f"{kind} {who}" in str(finding.facts)


async def test_a_session_that_is_idle_after_a_write_holds_back_too(database: str, ctx: CheckContext) -> None:
    """In READ COMMITTED it has no snapshot between its statements, and its own transaction is in the way all the same."""
    dirty(database, enabled="off")
    with psycopg.connect(database, application_name="forgotten") as writer:
        writer.execute("CREATE TABLE written (a int)")
        await held_by(ctx, database, "session", f"{writer.info.backend_pid} forgotten")
        run_sql(database, "INSERT INTO orders VALUES (1)", "DELETE FROM orders")
        assert orders_left(database) == 1  # it is true: the dead row stays
    assert orders_left(database) == 0
    await until(ctx, lambda seen: not seen.findings, xmin_age_alone=1_000)


def orders_left(dsn: str) -> int:
    """Dead rows that VACUUM has left in the table, as it tells itself."""
    told: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
        admin.execute("VACUUM (VERBOSE) orders")
    (number,) = re.findall(r"(\d+) are dead but not yet removable", "".join(told))
    return int(number)


async def test_a_prepared_transaction_holds_back(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database) as left:
        left.execute("CREATE TABLE written (a int)")
        left.execute("PREPARE TRANSACTION 'left over'")
    try:
        await held_by(ctx, database, "prepared transaction", "left over")
    finally:
        run_sql(database, "ROLLBACK PREPARED 'left over'")


async def test_a_slot_that_nobody_reads_holds_back(database: str, ctx: CheckContext) -> None:
    run_sql(database, "SELECT pg_create_logical_replication_slot('unread', 'pgoutput')")
    try:
        await held_by(ctx, database, "slot", "unread")
    finally:
        run_sql(database, "SELECT pg_drop_replication_slot('unread')")


async def test_a_locked_table_delays_nothing_and_hostile_names_stay_on_their_line(database: str, ctx: CheckContext) -> None:
    dirty(database, name='"a b\n<script>"')
    with psycopg.connect(database) as migration:
        migration.execute(b'LOCK TABLE "a b\n<script>" IN ACCESS EXCLUSIVE MODE')
        observed = await look(pg_vacuum, ctx, within_s=1)
    assert ("public.a b <script>",) in {sample.labels for sample in observed.samples}


async def test_many_tables_become_few_series(database18: str) -> None:
    run_sql(database18, "DO $$ BEGIN FOR n IN 1..300 LOOP EXECUTE format('CREATE TABLE t%s (a int)', n); END LOOP; END $$")
    async with looking_at(Service("postgres", dsn=SecretStr(database18))) as ctx:
        assert len((await look(pg_vacuum, ctx, top=20)).samples) == 20 + 20 + 1 + 4
