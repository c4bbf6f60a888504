"""Is a tenant switched off that should not be?"""

from collections.abc import Sequence
from typing import Annotated

from psycopg.sql import SQL, Composed
from pydantic import Field

from checks.data_freshness import EVENTS, TENANT_COLUMNS, TENANT_TABLE
from checks.job_tables import TABLE_NAME, Wanted, grant, identifier, readable
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

ACTIVE = Metric("monitor_tenants_active", "Tenants that may log in.")
DISABLED = Metric("monitor_tenants_disabled", "Tenants that are switched off.")
UNEXPECTED = Metric("monitor_tenants_disabled_unexpectedly", "Tenants that are switched off although they are expected or had data lately.")

TENANT_DISABLED = FindingKind(
    "TenantDisabled",
    Severity.P2,
    "INC-006",
    "A tenant is switched off, or gone, although expect_active lists it; P3 when it is not listed but had data within data_within.",
)

DATA_COLUMNS = Wanted(("tenant_id", "event_date"))
OTHER = "(other)"


class Config(PluginConfig):
    """Keys of a ``tenants`` check."""

    table: str = Field(TENANT_TABLE, pattern=TABLE_NAME, description="Table with id and is_active of every tenant.")
    expect_active: tuple[str, ...] = Field((), description="Tenants that must be active.")
    expect_disabled: tuple[str, ...] = Field((), description="Tenants that were switched off on purpose.")
    data_tables: tuple[Annotated[str, Field(pattern=TABLE_NAME)], ...] = Field(
        EVENTS,
        max_length=10,
        description="Tables with tenant_id and event_date, which tell whether a tenant had data lately; () to not look.",
    )
    data_within: Duration = Field(604_800.0, ge=86_400, description="A tenant with data of this time is expected to be active, too.")
    top: int = Field(20, ge=1, le=200, description="Tenants that are told apart in findings; the rest is (other).")


@check(
    "tenants",
    config=Config,
    metrics=(ACTIVE, DISABLED, UNEXPECTED),
    finds=(TENANT_DISABLED,),
    needs=("dsn",),
    blind="A table is missing, not readable or locked, or the database does not answer.",
    why="To the users of a tenant that was switched off by mistake every login fails, and every service looks healthy (INC-006).",
    privileges=f"{grant(TENANT_COLUMNS.needed, 'tenant_config')} {grant(DATA_COLUMNS.needed, 'the tables of data_tables')}",
)
async def tenants(ctx: CheckContext, cfg: Config) -> Observed:
    """Finds tenants that are switched off although they are expected to be active, or had data lately."""
    assert ctx.pg is not None  # needs=("dsn",)
    await readable(ctx.pg, {cfg.table: TENANT_COLUMNS} | dict.fromkeys(cfg.data_tables, DATA_COLUMNS))
    params = {"expected": list(cfg.expect_active), "within_s": cfg.data_within}
    (counts,), off = await ctx.pg.fetch_many([(_counts_sql(cfg), {}), (_off_sql(cfg), params)])
    return judge(counts, off, cfg, service=ctx.service.name)


def judge(counts: Row, off: Sequence[Row], cfg: Config, *, service: str) -> Observed:
    """What the tenants that are off mean: the expected first, then those with the newest data. Pure."""
    expected = [row for row in off if row["tenant_id"] in cfg.expect_active]
    lately = [row for row in off if row["day_age_s"] is not None and row not in expected and row["tenant_id"] not in cfg.expect_disabled]
    lately.sort(key=lambda row: (row["day_age_s"], row["tenant_id"]))
    bad = [*expected, *lately]
    samples = (ACTIVE(counts["active"]), DISABLED(counts["disabled"]), UNEXPECTED(len(bad)))
    nobody = "every tenant is switched off: nobody can log in" if off and not counts["active"] else ""
    findings = [_found(row, row in expected, nobody, service) for row in bad[: cfg.top]]
    if rest := bad[cfg.top :]:
        names = ", ".join(one_line(row["tenant_id"], limit=40) for row in rest[:10])
        severity = None if rest[0] in expected else Severity.P3
        summary = f"{many(len(rest), 'more tenant')} {'is' if len(rest) == 1 else 'are'} switched off unexpectedly ({service})"
        findings.append(TENANT_DISABLED(summary, labels={"tenant": OTHER}, facts={"among them": names}, severity=severity, value=len(rest)))
    return Observed(samples, tuple(findings))


def _found(row: Row, is_expected: bool, nobody: str, service: str) -> Finding:
    tenant = one_line(row["tenant_id"], limit=64)
    state = "switched off" if row["is_there"] else "not in the table of tenants"
    why = "it is expected to be active" if is_expected else f"it had data {lasted(row['day_age_s'])} ago"
    facts = {"tenant": f"{tenant}: {state}", "why it matters": f"{why}; none of its users can log in"}
    if nobody:
        facts["all of them"] = nobody
    if row["is_there"]:
        facts["to switch it on again"] = "UPDATE tenant_config SET is_active = true WHERE id = '…';"
    summary = f"tenant {tenant} is {state}, but {why} ({service})"
    return TENANT_DISABLED(summary, labels={"tenant": tenant}, facts=facts, severity=None if is_expected else Severity.P3)


COUNTS = SQL("SELECT count(*) FILTER (WHERE is_active) AS active, count(*) FILTER (WHERE is_active IS NOT TRUE) AS disabled FROM {table}")

# Of each table one look at the end of the index on (tenant_id, event_date).
OFF = SQL("""
SELECT t.id AS tenant_id, t.is_there, extract(epoch FROM now() - least(d.day::timestamp AT TIME ZONE 'UTC', now()))::float8 AS day_age_s
FROM (
    SELECT coalesce(c.id::text, e.id) AS id, c.id IS NOT NULL AS is_there
    FROM {table} c FULL JOIN unnest(%(expected)s::text[]) AS e (id) ON e.id = c.id::text
    WHERE c.is_active IS NOT TRUE
) AS t
CROSS JOIN LATERAL (SELECT max(newest.day) AS day FROM ({newest}) AS newest) AS d
WHERE d.day IS NOT NULL OR t.id = ANY (%(expected)s::text[])
ORDER BY t.id
""")
NEWEST_DAY = SQL("""
(SELECT event_date AS day FROM {table} WHERE tenant_id = t.id AND event_date >= (now() - make_interval(secs => %(within_s)s))::date
 ORDER BY event_date DESC LIMIT 1)
""")


def _counts_sql(cfg: Config) -> Composed:
    return COUNTS.format(table=identifier(cfg.table))


def _off_sql(cfg: Config) -> Composed:
    parts = [NEWEST_DAY.format(table=identifier(table)) for table in cfg.data_tables]
    newest = SQL(" UNION ALL ").join(parts) if parts else SQL("SELECT NULL::date AS day")
    return OFF.format(table=identifier(cfg.table), newest=newest)
