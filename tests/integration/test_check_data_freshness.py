"""``data_freshness`` on the platform's tables, 15 and 18, as the monitor's role: per tenant, cheap, exact where it matters."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from pydantic import SecretStr

from checks.data_freshness import NEWEST, data_freshness
from monitor.domain import Finding, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import look, looking_at
from tests.support.platform_tables import add_tenants, platform_database, run_sql

TABLES = ("purchase", "add_to_cart", "page_view")


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as found:
        yield found


def add_rows(dsn: str, tenant: str, ago: str, *tables: str) -> None:
    """One row that old in each table."""
    for table in tables or TABLES:
        row = "SELECT %(tenant)s, (at AT TIME ZONE 'UTC')::date, at FROM (SELECT now() - %(ago)s::interval AS at) AS a"
        run_sql(dsn, f"INSERT INTO {table} (tenant_id, event_date, event_timestamp) {row}", tenant=tenant, ago=ago)


def ages(observed: Observed) -> dict[tuple[str, str], float]:
    return {
        (sample.labels[0], sample.labels[1]): round(sample.value / 3600, 1)
        for sample in observed.samples
        if sample.metric.name == "monitor_data_age_seconds"
    }


def number(observed: Observed, metric: str) -> float:
    return next(sample.value for sample in observed.samples if sample.metric.name == metric)


def who(findings: tuple[Finding, ...]) -> list[tuple[str, str, Severity]]:
    return [(finding.kind.name, dict(finding.labels)["tenant"], finding.kind.severity) for finding in findings]


async def test_no_tenants_and_fresh_tenants_are_well(database: str, ctx: CheckContext) -> None:
    assert (await look(data_freshness, ctx)).findings == ()
    add_tenants(database, "a", "b")
    add_rows(database, "a", "30 h")
    add_rows(database, "a", "100 h")
    add_rows(database, "b", "1 h")
    observed = await look(data_freshness, ctx)
    assert observed.findings == ()
    assert ages(observed) == {(tenant, table): hours for tenant, hours in (("a", 30), ("b", 1)) for table in TABLES}
    assert number(observed, "monitor_data_tenants") == 2


async def test_a_tenant_without_new_data_is_found(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop", "fine")
    add_rows(database, "shop", "3 days")
    add_rows(database, "fine", "1 h")
    observed = await look(data_freshness, ctx)
    (finding,) = observed.findings
    assert who((finding,)) == [("NoNewData", "shop", Severity.P2)]
    assert finding.kind.incident == "INC-003"
    assert finding.summary == "no new data of tenant shop for 3 d: expected at least every 2 d (postgres)"
    assert finding.value == pytest.approx(259_200, abs=60)
    assert dict(finding.facts)["page_view"].endswith("UTC, 3 d ago")
    assert number(observed, "monitor_data_tenants_late") == 1


async def test_one_table_without_new_rows_is_found(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop")
    add_rows(database, "shop", "70 h", "purchase")
    add_rows(database, "shop", "1 h", "page_view")
    (finding,) = (await look(data_freshness, ctx)).findings
    assert who((finding,)) == [("DataLate", "shop", Severity.P3)]
    assert finding.summary == "no new purchase of tenant shop for 3 d, while other data arrives (postgres)"
    assert dict(finding.facts)["add_to_cart"] == "no rows"


async def test_who_never_had_data_is_told_and_found_only_when_expected(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "new", "shop")
    observed = await look(data_freshness, ctx)
    assert observed.findings == ()
    assert number(observed, "monitor_data_tenants_without_data") == 2
    add_rows(database, "shop", "5 days")
    (finding,) = (await look(data_freshness, ctx)).findings
    assert dict(finding.facts)["never had data"] == "new"
    expected = (await look(data_freshness, ctx, expect_tenants=["new", "unheard-of"])).findings
    assert sorted(who(expected)) == [("NoNewData", tenant, Severity.P2) for tenant in ("new", "shop", "unheard-of")]
    assert "is expected to have data and never had any" in str(expected)


async def test_what_is_expected_is_set_for_each_tenant(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "hourly", "weekly", "off")
    run_sql(database, "UPDATE tenant_config SET is_active = false WHERE id = 'off'")
    add_rows(database, "hourly", "3 h")
    add_rows(database, "weekly", "5 days")
    add_rows(database, "off", "90 days")
    observed = await look(data_freshness, ctx, max_age_of={"hourly": "2h", "weekly": "7d"})
    assert who(observed.findings) == [("NoNewData", "hourly", Severity.P2)]
    assert (await look(data_freshness, ctx, max_age_of={"hourly": "2h"}, ignore_tenants=["hourly", "weekly"])).findings == ()


async def test_rows_written_out_of_order_are_read_exactly_before_anybody_is_woken(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop")
    for table in TABLES:  # the newest row of the day was written first, and many older ones after it
        run_sql(
            database,
            f"""INSERT INTO {table} (tenant_id, event_date, event_timestamp)
                SELECT 'shop', (now() AT TIME ZONE 'UTC')::date, now() - make_interval(hours => CASE n WHEN 1 THEN 1 ELSE 9 END)
                FROM generate_series(1, 200) AS n""",
        )
    assert ages(await look(data_freshness, ctx)) == {("shop", table): 9.0 for table in TABLES}
    observed = await look(data_freshness, ctx, max_age="4h")
    assert observed.findings == ()
    assert set(ages(observed).values()) == {1.0}


async def test_a_date_in_the_future_proves_nothing(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop")
    add_rows(database, "shop", "4 days")
    add_rows(database, "shop", "-30 days")
    assert who((await look(data_freshness, ctx)).findings) == [("NoNewData", "shop", Severity.P2)]


async def test_many_tenants_and_hostile_names_stay_bounded(database: str, ctx: CheckContext) -> None:
    add_tenants(database, *(f"t{n:03}\x1b[2J\n{'x' * 500}" for n in range(60)))
    run_sql(
        database,
        *(
            f"""INSERT INTO {table} (tenant_id, event_date, event_timestamp)
                SELECT id, (now() AT TIME ZONE 'UTC')::date - 10, now() - interval '10 days' FROM tenant_config"""
            for table in TABLES
        ),
    )
    observed = await look(data_freshness, ctx, top=5)
    assert len(ages(observed)) == 6 * 3
    assert [tenant for _, tenant, _ in who(observed.findings)][-1] == "(other)"
    assert len(observed.findings) == 6
    assert observed.findings[-1].summary == "55 more tenants got no new data for too long (postgres)"
    texts = [text for finding in observed.findings for pair in (*finding.labels, *finding.facts) for text in pair]
    assert all(text.isprintable() and len(text) < 600 for text in texts)


async def test_only_the_end_of_the_index_is_read(database: str, ctx: CheckContext) -> None:
    add_tenants(database, *(f"t{n}" for n in range(20)))
    run_sql(
        database,
        """INSERT INTO page_view (tenant_id, event_date, event_timestamp)
           SELECT 't' || n % 20, (at AT TIME ZONE 'UTC')::date, at
           FROM (SELECT n, now() - make_interval(secs => n * 20) AS at FROM generate_series(1, 100000) n) AS rows""",
        "VACUUM ANALYZE page_view",
    )
    query = NEWEST.format(table=Identifier("page_view"), tenants=Identifier("tenant_config"), sample=SQL("50"))
    with psycopg.connect(database) as connection:
        params = {"expected": [], "ignored": []}
        (plan,) = connection.execute(SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + query, params).fetchone() or ((),)
    top = plan[0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 20 * 60  # the table has 100,000 rows
    assert number(await look(data_freshness, ctx), "monitor_data_tenants") == 20


async def test_missing_rights_and_locks_are_named(database: str, ctx: CheckContext) -> None:
    await look(data_freshness, ctx)
    with psycopg.connect(database) as migration:
        migration.execute("LOCK TABLE purchase IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CannotLook, match="locked by another session"):
            await look(data_freshness, ctx, within_s=1)
    run_sql(database, "REVOKE SELECT ON page_view FROM monitor_ro", "GRANT SELECT (tenant_id) ON page_view TO monitor_ro")
    with pytest.raises(CannotLook, match=r"GRANT SELECT \(event_date, event_timestamp\) ON public\.page_view TO monitor_ro"):
        await look(data_freshness, ctx)


async def test_the_monitor_sees_when_and_not_what(database: str, ctx: CheckContext) -> None:
    assert ctx.pg is not None
    for column in ("user_id", "value"):
        with pytest.raises(CannotLook, match="permission denied"):
            await ctx.pg.fetch(SQL("SELECT {} FROM public.purchase").format(Identifier(column)))
