"""``tenants`` on the platform's tables, 15 and 18, as the monitor's role."""

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from checks.tenants import tenants
from monitor.domain import Finding, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import look, looking_at
from tests.support.platform_tables import add_tenants, platform_database, run_sql


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as found:
        yield found


def add_view(dsn: str, tenant: str, days_ago: int) -> None:
    run_sql(
        dsn,
        """INSERT INTO page_view (tenant_id, event_date, event_timestamp)
           VALUES (%(tenant)s, (now() AT TIME ZONE 'UTC')::date - %(days)s::int, now() - make_interval(days => %(days)s))""",
        tenant=tenant,
        days=days_ago,
    )


def who(findings: tuple[Finding, ...]) -> list[tuple[str, Severity]]:
    return [(dict(finding.labels)["tenant"], finding.severity or finding.kind.severity) for finding in findings]


async def test_active_tenants_and_those_long_off_are_well(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop", "other")
    add_tenants(database, "gone", "never", is_active=False)
    add_view(database, "shop", 0)
    add_view(database, "gone", 9)
    observed = await look(tenants, ctx, expect_active=["shop"])
    assert observed.findings == ()
    assert [sample.value for sample in observed.samples] == [2, 2, 0]


async def test_a_tenant_with_data_of_late_is_found_when_it_is_switched_off(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop", "other")
    add_view(database, "shop", 2)
    run_sql(database, "UPDATE tenant_config SET is_active = false WHERE id = 'shop'")
    observed = await look(tenants, ctx)
    assert who(observed.findings) == [("shop", Severity.P3)]
    (finding,) = observed.findings
    assert (finding.kind.name, finding.kind.incident) == ("TenantDisabled", "INC-006")
    assert finding.summary.startswith("tenant shop is switched off, but it had data ")
    assert "UPDATE tenant_config SET is_active = true" in dict(finding.facts)["to switch it on again"]
    assert "all of them" not in dict(finding.facts)
    assert (await look(tenants, ctx, expect_disabled=["shop"])).findings == ()
    assert (await look(tenants, ctx, data_tables=[])).findings == ()
    run_sql(database, "UPDATE tenant_config SET is_active = true WHERE id = 'shop'")
    assert (await look(tenants, ctx)).findings == ()


async def test_an_expected_tenant_that_is_off_or_gone_is_worse(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "shop", "late", is_active=False)
    add_view(database, "late", 0)
    observed = await look(tenants, ctx, expect_active=["shop", "vanished"])
    assert who(observed.findings) == [("shop", Severity.P2), ("vanished", Severity.P2), ("late", Severity.P3)]
    assert observed.findings[1].summary == "tenant vanished is not in the table of tenants, but it is expected to be active (postgres)"
    assert "to switch it on again" not in dict(observed.findings[1].facts)
    assert dict(observed.findings[0].facts)["all of them"] == "every tenant is switched off: nobody can log in"
    assert [sample.value for sample in observed.samples] == [0, 2, 3]


async def test_many_and_hostile_names_stay_bounded(database: str, ctx: CheckContext) -> None:
    names = [f"\x1b[2J{n:02}\n" for n in range(30)]
    add_tenants(database, *names, is_active=False)
    observed = await look(tenants, ctx, expect_active=names, top=3)
    assert len(observed.findings) == 4
    assert who(observed.findings)[-1] == ("(other)", Severity.P2)
    assert observed.findings[-1].value == 27
    texts = [text for finding in observed.findings for pair in (*finding.labels, *finding.facts) for text in pair]
    assert all(text.isprintable() for text in texts)


async def test_missing_rights_are_named(database: str, ctx: CheckContext) -> None:
    run_sql(database, "REVOKE SELECT ON tenant_config FROM monitor_ro")
    with pytest.raises(CannotLook, match=r"GRANT SELECT \(id, is_active\) ON public\.tenant_config TO monitor_ro"):
        await look(tenants, ctx)
