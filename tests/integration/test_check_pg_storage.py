"""Sizes, bloat, indexes and sequences on real tables, 15 and 18: grown, wasted, missing, used up, and locked by somebody."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from checks import pg_helpers
from checks.pg_bloat import pg_bloat
from checks.pg_indexes import pg_indexes
from checks.pg_sequences import pg_sequences
from checks.pg_sizes import pg_sizes
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, CheckContext, Service
from services.cluster import Cluster
from tests.support.looking import after, look, looking_at
from tests.support.world import ManualClock

CHECKS = (pg_sizes, pg_bloat, pg_indexes, pg_sequences)
BIG = "INSERT INTO {name} SELECT g, repeat('x', 100) FROM generate_series(1, {rows}) g"


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    run_sql(database, pg_helpers.INSTALL)
    async with looking_at(Service("postgres", dsn=SecretStr(database))) as found:
        yield found


def run_sql(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


def table(dsn: str, name: str = "orders", *, rows: int = 20_000, more: str = "") -> None:
    run_sql(dsn, f"CREATE TABLE {name} (id int, note text) {more}", BIG.format(name=name, rows=rows))
    run_sql(dsn, f"ANALYZE {name}")  # in a session of its own: the counters of the first one arrive when it ends


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def values(observed: Observed, metric: str) -> dict[str, float]:
    return {"/".join(sample.labels): sample.value for sample in observed.samples if sample.metric.name == metric}


@contextmanager
def locked(dsn: str, name: str) -> Iterator[None]:
    """Somebody holds the table exclusively, and a second one waits behind."""
    with psycopg.connect(dsn) as holder:
        holder.execute(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE".encode())
        yield


# --- sizes -----------------------------------------------------------------------------------------------------------


async def test_sizes_are_those_of_the_server(database: str, ctx: CheckContext) -> None:
    table(database, more="WITH (autovacuum_enabled = off)")
    run_sql(database, "CREATE INDEX ON orders (id)")
    observed = await look(pg_sizes, ctx)
    assert observed.findings == ()
    with psycopg.connect(database) as admin:
        row = admin.execute("SELECT pg_table_size('orders'), pg_indexes_size('orders'), current_database()").fetchone()
    assert row is not None
    assert values(observed, "monitor_pg_table_size_bytes")["public.orders"] == row[0]
    assert values(observed, "monitor_pg_table_indexes_size_bytes")["public.orders"] == row[1]
    here = values(observed, "monitor_pg_database_size_bytes")[row[2]]
    assert sum(values(observed, "monitor_pg_table_size_bytes").values()) + row[1] == pytest.approx(here, rel=0.02)


async def test_growth_is_told_with_what_grew(database: str) -> None:
    clock = ManualClock()
    async with looking_at(Service("postgres", dsn=SecretStr(database)), clock=clock) as ctx:
        table(database, rows=5_000)
        limits = {"fast_percent": 50, "fast_bytes": 1_000_000}
        first = await look(pg_sizes, ctx, **limits)
        assert kinds(first) == []
        run_sql(database, BIG.format(name="orders", rows=50_000))
        clock.advance(3600)
        second = await look(pg_sizes, after(ctx, first), **limits)
        assert set(kinds(second)) == {"GrowingFast"}
        told = {dict(finding.labels).get("table"): finding.summary for finding in second.findings}
        assert "the table public.orders grew by" in told["public.orders"]
        assert "within 60 min (postgres)" in told["public.orders"]
        clock.advance(86_401)
        assert kinds(await look(pg_sizes, after(ctx, second), **limits)) == []  # the window is over


async def test_a_database_beyond_what_its_disk_is_meant_for(database: str, ctx: CheckContext) -> None:
    observed = await look(pg_sizes, ctx, max_database_bytes=1_000_000)
    assert set(kinds(observed)) == {"DatabaseTooBig"}


async def test_a_locked_table_hides_neither_itself_nor_the_others(database: str, ctx: CheckContext) -> None:
    table(database, "held", rows=30_000)
    table(database, "free", rows=10_000)
    with locked(database, "held"):
        observed = await look(pg_sizes, ctx, within_s=2.0)
    sizes = values(observed, "monitor_pg_table_size_bytes")
    assert sizes["public.held"] > sizes["public.free"] > 1_000_000
    assert values(observed, "monitor_pg_table_sizes_noted") == {"": 1}
    assert "table public.held" not in observed.keep  # noted and measured sizes are not compared


# --- bloat -----------------------------------------------------------------------------------------------------------

SMALL = {"min_bytes": 100_000, "percent": 30}


async def test_a_tight_table_is_not_called_bloated(database: str, ctx: CheckContext) -> None:
    table(database)
    observed = await look(pg_bloat, ctx, **SMALL)
    assert kinds(observed) == []
    assert values(observed, "monitor_pg_table_bloat_ratio")["public.orders"] < 0.1
    assert values(observed, "monitor_pg_table_bloat_trusted") == {"public.orders": 1}


@pytest.mark.parametrize("extension", [True, False])
async def test_wasted_room_is_told_once_the_statistics_can_be_trusted(database: str, ctx: CheckContext, *, extension: bool) -> None:
    table(database, more="WITH (autovacuum_enabled = off)")
    if extension:
        run_sql(database, "CREATE EXTENSION pgstattuple")
    run_sql(database, "DELETE FROM orders WHERE id % 2 = 0")
    async with asyncio.timeout(15):
        while values(doubtful := await look(pg_bloat, ctx, **SMALL), "monitor_pg_table_bloat_trusted") != {"public.orders": 0}:
            await asyncio.sleep(0.1)
    assert kinds(doubtful) == []
    run_sql(database, "VACUUM ANALYZE orders")
    async with asyncio.timeout(15):
        while not (trusted := await look(pg_bloat, ctx, **SMALL)).findings:
            await asyncio.sleep(0.1)
    (finding,) = trusted.findings
    assert "% of public.orders is wasted room" in finding.summary
    assert finding.value == pytest.approx(50, abs=8)
    assert f"({'measured' if extension else 'estimated'})" in dict(finding.facts)["takes"]
    assert dict(finding.labels) == {"table": "public.orders"}


# --- indexes ---------------------------------------------------------------------------------------------------------


async def test_a_table_that_is_read_from_end_to_end(database: str, ctx: CheckContext) -> None:
    table(database)
    run_sql(database, "SELECT count(*) FROM orders")
    first = await look(pg_indexes, ctx)
    async with asyncio.timeout(15):
        while "public.orders" not in first.keep["scans"]:
            await asyncio.sleep(0.1)
            first = await look(pg_indexes, ctx)
    assert kinds(first) == []  # what was before nobody was looking is no news
    run_sql(database, *["SELECT count(*) FROM orders WHERE note = 'y'"] * 25)
    async with asyncio.timeout(15):
        while not (second := await look(pg_indexes, after(ctx, first))).findings:
            await asyncio.sleep(0.1)
    (finding,) = second.findings
    assert finding.kind.name == "IndexMissing"
    assert "public.orders was read from end to end 25 times since the last look" in finding.summary
    assert finding.value == 20_000
    assert kinds(await look(pg_indexes, after(ctx, second))) == []
    run_sql(database, "SELECT pg_stat_reset()")
    async with asyncio.timeout(15):
        while (await look(pg_indexes, after(ctx, second))).keep["epoch"] == second.keep["epoch"]:
            await asyncio.sleep(0.1)
    assert kinds(await look(pg_indexes, after(ctx, second))) == []


async def test_an_index_that_was_not_built_to_its_end(database: str, ctx: CheckContext) -> None:
    table(database)
    run_sql(database, "INSERT INTO orders VALUES (1, 'twice')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        run_sql(database, "CREATE UNIQUE INDEX CONCURRENTLY once ON orders (id)")
    (finding,) = (await look(pg_indexes, ctx)).findings
    assert finding.kind.name == "IndexInvalid"
    assert dict(finding.facts)["cure"] == "REINDEX INDEX CONCURRENTLY public.once; or drop it"
    with pytest.raises(psycopg.errors.UniqueViolation):
        run_sql(database, "REINDEX INDEX CONCURRENTLY once")
    cures = {dict(finding.labels)["index"]: dict(finding.facts)["cure"] for finding in (await look(pg_indexes, ctx)).findings}
    assert cures["public.once_ccnew"] == "DROP INDEX CONCURRENTLY public.once_ccnew;"


async def test_unused_and_double_indexes(database: str, ctx: CheckContext) -> None:
    table(database)
    run_sql(
        database,
        "CREATE INDEX one ON orders (id)",
        "CREATE INDEX same ON orders (id)",
        "CREATE INDEX longer ON orders (id, note)",
        "CREATE INDEX other_order ON orders (id DESC NULLS LAST)",
        "CREATE INDEX part ON orders (id) WHERE id > 5",
        "CREATE INDEX shorter ON orders (lower(note))",
        "CREATE UNIQUE INDEX pair ON orders (id, note)",
    )
    observed = await look(pg_indexes, ctx, unused_for=0, min_unused_bytes=0)
    told = {finding.kind.name: dict(finding.facts) for finding in observed.findings}
    double = {name.removeprefix("public.") for name in told["IndexesDuplicate"] if name != "first"}
    assert double == {"one", "same", "longer"}
    unused = {name.removeprefix("public.") for name in told["IndexesUnused"] if name.startswith("public.")}
    assert unused == {"one", "same", "longer", "other_order", "part", "shorter"}  # a unique one is of use without being read
    assert values(observed, "monitor_pg_indexes_duplicate") == {"": 3}
    assert kinds(await look(pg_indexes, ctx)) == []  # too young and too small to be told


async def test_what_is_not_looked_for_shows_nothing(ctx: CheckContext) -> None:
    observed = await look(pg_indexes, ctx, look_for=["missing", "unused"])
    shown = {sample.metric.name for sample in observed.samples} - {"monitor_pg_seq_scan_rows_total"}
    assert shown == {"monitor_pg_indexes_unused", "monitor_pg_indexes_unused_bytes"}
    assert observed.keep["epoch"]


async def test_a_foreign_key_without_an_index(database: str, ctx: CheckContext) -> None:
    run_sql(database, "CREATE TABLE customers (id int PRIMARY KEY)", "INSERT INTO customers SELECT generate_series(1, 20000)")
    table(database)
    run_sql(database, "ALTER TABLE orders ADD FOREIGN KEY (id) REFERENCES customers")
    (finding,) = (await look(pg_indexes, ctx, min_key_rows=1000)).findings
    assert finding.kind.name == "ForeignKeyUnindexed"
    assert dict(finding.facts)["first"] == "CREATE INDEX CONCURRENTLY ON public.orders (id);"
    run_sql(database, "CREATE INDEX ON orders (id)")
    assert kinds(await look(pg_indexes, ctx, min_key_rows=1000)) == []


# --- sequences -------------------------------------------------------------------------------------------------------


async def test_sequences_against_the_columns_they_fill(database: str, ctx: CheckContext) -> None:
    run_sql(
        database,
        "CREATE TABLE fine (id bigserial)",
        "CREATE TABLE narrow (id int)",
        "CREATE SEQUENCE wide AS bigint OWNED BY narrow.id",
        "SELECT setval('wide', 1900000000)",
        "CREATE TABLE tiny (id smallint GENERATED ALWAYS AS IDENTITY)",
        "SELECT setval('tiny_id_seq', 32000)",
        "CREATE SEQUENCE round MAXVALUE 10 CYCLE",
        "SELECT setval('round', 10)",
        "CREATE SEQUENCE down INCREMENT -1 MINVALUE -100 MAXVALUE -1",
        "SELECT setval('down', -80)",
        "SELECT setval('fine_id_seq', 5)",
        "CREATE SEQUENCE never_used",
    )
    observed = await look(pg_sequences, ctx)
    told = {dict(finding.labels)["sequence"]: finding for finding in observed.findings}
    assert set(told) == {"public.tiny_id_seq", "public.wide", "public.down"}
    assert told["public.tiny_id_seq"].severity is Severity.P2
    assert told["public.wide"].severity is None
    assert dict(told["public.wide"].facts)["column"] == "public.narrow.id, integer"
    assert "1,900,000,000 of 2,147,483,647" in dict(told["public.wide"].facts)["last number"]
    assert values(observed, "monitor_pg_sequence_used_ratio")["public.down"] == pytest.approx(0.8)


async def as_monitor(dsn: str, check: AnyCheck) -> Observed:
    """Look as a role with pg_monitor and no more."""
    name = f"mon_{conninfo_to_dict(dsn)['dbname']}"
    run_sql(dsn, f"CREATE ROLE {name} LOGIN", f"GRANT pg_monitor TO {name}")
    try:
        async with looking_at(Service("postgres", dsn=SecretStr(make_conninfo(dsn, user=name)))) as ctx:
            return await look(check, ctx)
    finally:
        run_sql(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def test_a_role_that_may_not_see_positions_is_blind_and_told_why(database: str) -> None:
    assert (await as_monitor(database, pg_sequences)).findings == ()  # no sequence, nothing unseen
    run_sql(database, "CREATE TABLE tiny (id smallserial)", "SELECT setval('tiny_id_seq', 32000)")
    with pytest.raises(CannotLook, match=r"may not see where 1 sequence of 1 stand, the first public.tiny_id_seq: install platmon"):
        await as_monitor(database, pg_sequences)
    with pytest.raises(CannotLook, match=r"install platmon\.column_widths"):
        await as_monitor(database, pg_bloat)
    run_sql(database, pg_helpers.INSTALL)
    assert kinds(await as_monitor(database, pg_sequences)) == ["SequenceNearEnd"]
    assert kinds(await as_monitor(database, pg_bloat)) == []


async def test_a_sequence_that_is_not_seen_hides_no_other(database: str) -> None:
    run_sql(database, "CREATE SEQUENCE near AS int", "SELECT setval('near', 2147483000)", "CREATE SEQUENCE hidden")
    run_sql(database, "GRANT SELECT ON SEQUENCE near TO PUBLIC")
    (finding,) = (await as_monitor(database, pg_sequences)).findings
    assert "public.near" in finding.summary
    assert "1 sequence of 2 stand, the first public.hidden" in dict(finding.facts)["not seen"]


async def test_sequences_that_are_granted_need_no_helper(database: str) -> None:
    run_sql(database, "CREATE TABLE tiny (id smallserial)", "SELECT setval('tiny_id_seq', 32000)")
    run_sql(database, "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO PUBLIC")
    assert kinds(await as_monitor(database, pg_sequences)) == ["SequenceNearEnd"]


async def test_the_helpers_tell_nobody_else_and_no_values(database: str, pg_cluster: Cluster) -> None:
    run_sql(database, pg_helpers.INSTALL, pg_helpers.INSTALL)
    name = f"nobody_{conninfo_to_dict(database)['dbname']}"
    run_sql(database, f"CREATE ROLE {name} LOGIN")
    try:
        for function in ("column_widths", "sequence_positions"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                run_sql(make_conninfo(database, user=name), f"SELECT * FROM platmon.{function}()")
    finally:
        run_sql(database, f"DROP ROLE {name}")


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_a_locked_table_delays_no_look(database: str, ctx: CheckContext, check: AnyCheck) -> None:
    run_sql(database, "CREATE TABLE orders (id serial PRIMARY KEY, note text)")
    run_sql(database, "INSERT INTO orders (note) SELECT repeat('x', 100) FROM generate_series(1, 20000)", "ANALYZE orders")
    with locked(database, "orders"):
        await look(check, ctx, within_s=2.0)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_hostile_names(database: str, ctx: CheckContext, check: AnyCheck) -> None:
    hostile = '"; DROP TABLE x; -- \x1b[2J\n<b>%s{}"'
    run_sql(
        database,
        f"CREATE TABLE {hostile} (id smallserial, note text)",
        f"INSERT INTO {hostile} (note) SELECT repeat('x', 100) FROM generate_series(1, 20000)",
    )
    run_sql(database, f"CREATE INDEX ON {hostile} (id)", f"CREATE INDEX ON {hostile} (id)", f"ANALYZE {hostile}")
    observed = await look(check, ctx)
    texts = [text for sample in observed.samples for text in sample.labels]
    for finding in observed.findings:
        texts += [finding.summary, *(text for pair in (*finding.labels, *finding.facts) for text in pair)]
    assert all(text.isprintable() and len(text) < 400 for text in texts)
