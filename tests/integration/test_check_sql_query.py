"""``sql_query`` on real servers, 15 and 18: values, rows, and everything that a query must not be able to do."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr, ValidationError

from checks.sql_query import sql_query
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import look, looking_at


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    """The strongest role there is: what is refused is refused by the way it is asked."""
    run_sql(
        database,
        "CREATE TABLE orders (region text, total int)",
        "INSERT INTO orders VALUES ('north', 5), ('south', 500), ('west', NULL)",
        "CREATE SEQUENCE numbers",
        "CREATE FUNCTION spend() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM public.orders; RETURN 1; END $$",
    )
    async with looking_at(Service("shop", dsn=SecretStr(database))) as found:
        yield found


@pytest.fixture
def plain(database: str) -> Iterator[str]:
    """The DSN of a role that was granted nothing."""
    name = f"plain_{os.urandom(4).hex()}"
    run_sql(database, f"CREATE ROLE {name} LOGIN")
    yield make_conninfo(database, user=name)
    run_sql(database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def run_sql(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


ADVISORY = """
SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' AND d.datname = current_database()
"""


def state(dsn: str) -> list[tuple[object, ...]]:
    """Everything that a query could have changed."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        return [
            *admin.execute("SELECT region, total FROM orders ORDER BY 1").fetchall(),
            *admin.execute("SELECT last_value, is_called FROM numbers").fetchall(),
            *admin.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1").fetchall(),
            *admin.execute(ADVISORY).fetchall(),
        ]


def told(observed: Observed) -> list[str]:
    return [finding.summary for finding in observed.findings]


TOTALS = "SELECT region, total AS value FROM public.orders WHERE total IS NOT NULL AND region LIKE '%th' ORDER BY 1;"


async def test_values_and_their_limits(ctx: CheckContext) -> None:
    observed = await look(sql_query, ctx, query=TOTALS, labels=["region"], max=100, message="too many orders")
    assert told(observed) == ["too many orders: 500 for south (shop)"]
    assert observed.findings[0].value == 500
    assert {sample.labels: sample.value for sample in observed.samples} == {("north",): 5, ("south",): 500, (): 2}
    assert told(await look(sql_query, ctx, query=TOTALS, labels=["region"], min=10)) == ["the_check: 5 for north (shop)"]
    assert told(await look(sql_query, ctx, query="SELECT 7 AS n", value="n", min=7, max=7)) == []


async def test_rows_that_are_expected_or_not(ctx: CheckContext) -> None:
    orphans = "SELECT region FROM public.orders WHERE total IS NULL"
    observed = await look(sql_query, ctx, query=orphans, expect="no rows", message="orders without a total")
    assert told(observed) == ["orders without a total: the query gave 1 row (shop)"]
    assert dict(observed.findings[0].facts) == {"row 1": "region = west"}
    assert told(await look(sql_query, ctx, query=orphans, expect="rows")) == []
    assert told(await look(sql_query, ctx, query="SELECT 1 WHERE false", expect="rows")) == ["the_check: the query gave no row (shop)"]
    assert told(await look(sql_query, ctx, query="SELECT 1 WHERE false", expect="no rows")) == []


async def test_many_rows_stay_few_series(ctx: CheckContext) -> None:
    observed = await look(
        sql_query, ctx, query="SELECT g AS name, g AS value FROM generate_series(1, 5000) g", labels=["name"], max=0, top=5
    )
    assert len(observed.samples) == 6
    assert told(observed)[0] == "the_check: 1,000 for 1000 (shop)"
    assert told(observed)[-1] == "the_check: 995 more rows out of range (shop)"
    assert len(observed.findings) == 6


async def test_hostile_values(ctx: CheckContext) -> None:
    observed = await look(sql_query, ctx, query="SELECT E'\\x1b[2J\\n<b>' || repeat('x', 500) AS name, 1 AS value", labels=["name"], max=0)
    texts = [text for sample in observed.samples for text in sample.labels] + told(observed)
    assert all(text.isprintable() and len(text) < 300 for text in texts)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM public.orders RETURNING 1 AS value",
        "INSERT INTO public.orders VALUES ('x', 1) RETURNING 1 AS value",
        "WITH gone AS (DELETE FROM public.orders RETURNING 1 AS value) SELECT * FROM gone",
        "SELECT public.spend() AS value",
        "SELECT nextval('public.numbers') AS value",
        "SELECT 1 AS value; DROP TABLE public.orders",
        "SELECT 1 AS value) AS a; DROP TABLE public.orders; --",
        "SELECT 1 AS value) AS a; COMMIT; DROP TABLE public.orders; --",
        "SELECT 1 AS value) AS a UNION ALL (SELECT 2; DROP TABLE public.orders",
        "SELECT 1 INTO public.copied",
        "SELECT set_config('transaction_read_only', 'off', false) AS value, public.spend()",
        "TABLE public.orders; TRUNCATE public.orders",
        "COPY public.orders TO PROGRAM 'touch /tmp/never'",
        "SET default_transaction_read_only = off",
        "DO $$ BEGIN DELETE FROM public.orders; END $$",
        "SELECT 1 AS value FROM public.orders FOR UPDATE",
        "EXPLAIN ANALYZE DELETE FROM public.orders",
        "VACUUM public.orders",
        "LOCK TABLE public.orders",
        "SELECT pg_sleep(60) AS value",
    ],
)
async def test_a_query_changes_nothing(database: str, ctx: CheckContext, query: str) -> None:
    before = state(database)
    with pytest.raises(CannotLook):
        await look(sql_query, ctx, query=query)
    assert state(database) == before
    assert told(await look(sql_query, ctx, query="SELECT 1 AS value", max=1)) == []  # and the held connection is as it was


@pytest.mark.parametrize(
    "query",
    [
        "SELECT set_config('default_transaction_read_only', 'off', false)",
        "SELECT set_config('statement_timeout', '0', false), set_config('search_path', 'public', false)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_notify('x', 'y')",
    ],
)
async def test_what_a_query_sets_or_locks_is_undone(database: str, ctx: CheckContext, query: str) -> None:
    assert ctx.pg is not None
    settings = (
        "SELECT current_setting('default_transaction_read_only') AS a, current_setting('statement_timeout') AS b, "
        "current_setting('search_path') AS c, pg_backend_pid() AS pid"
    )
    before, changed = await ctx.pg.fetch(settings), state(database)
    with suppress(CannotLook):
        await look(sql_query, ctx, query=query)
    assert await ctx.pg.fetch(settings) == before
    assert state(database) == changed
    with pytest.raises(CannotLook, match="the statement would change something, and the monitor only reads"):
        await look(sql_query, ctx, query="SELECT public.spend() AS value")


ENDS = "SELECT pg_terminate_backend(pid)::int AS value FROM pg_stat_activity WHERE application_name = 'other'"


async def test_functions_with_an_effect_are_the_roles_to_refuse(database: str, plain: str, ctx: CheckContext) -> None:
    """A read-only transaction does not hold them back: the page says which role to use, and this is why."""
    async with looking_at(Service("shop", dsn=SecretStr(plain))) as as_plain:
        with psycopg.connect(database, application_name="other", autocommit=True) as strong:
            for query in (ENDS, "SELECT pg_reload_conf()::int AS value", "SELECT count(pg_stat_reset()) AS value"):
                with pytest.raises(CannotLook, match="lacks a privilege"):
                    await look(sql_query, as_plain, query=query)
            assert strong.execute("SELECT 1").fetchone() == (1,)
        with psycopg.connect(plain, application_name="other", autocommit=True) as own:
            await look(sql_query, as_plain, query=ENDS)
            with pytest.raises(psycopg.OperationalError, match="terminat"):
                own.execute("SELECT 1")


async def test_a_role_without_the_right_is_told_which(plain: str, ctx: CheckContext) -> None:
    async with looking_at(Service("shop", dsn=SecretStr(plain))) as poor:
        with pytest.raises(CannotLook, match=r"lacks a privilege: GRANT it SELECT.*permission denied for table orders"):
            await look(sql_query, poor, query=TOTALS)


@pytest.mark.parametrize(
    ("query", "more", "why"),
    [
        ("SELECT 'many' AS value", {}, "no number in the column 'value' but str"),
        ("SELECT NULL::int AS value", {"max": 1}, "no number in the column 'value' but NULL"),
        ("SELECT 'NaN'::float8 AS value", {"max": 1}, "no number"),
        ("SELECT 1 AS n", {"max": 1}, "gives no column 'value', it gives n"),
        ("SELECT 1 AS value", {"labels": ["region"]}, "gives no column 'region', it gives value"),
        ("SELECT 1 AS value WHERE false", {"max": 1}, "gave no row, so there is nothing to compare"),
        ("SELECT FROM", {}, "the statement failed"),
        ("SELECT value FROM public.nothing", {}, "the database does not have what is asked for"),
    ],
)
async def test_what_cannot_be_compared_is_blind(ctx: CheckContext, query: str, more: dict[str, object], why: str) -> None:
    with pytest.raises(CannotLook, match=why):
        await look(sql_query, ctx, query=query, **more)


def test_limits_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="min must not be above max"):
        sql_query.config.model_validate({"query": "SELECT 1", "min": 2, "max": 1})
