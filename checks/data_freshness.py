"""Does new data still arrive, for every tenant and every kind of event?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from psycopg.sql import SQL, Composed
from pydantic import Field

from checks.job_tables import TABLE_NAME, Wanted, grant, identifier, readable
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Postgres, Row

AGE = Metric(
    "monitor_data_age_seconds",
    "Time since the newest row of the tenant in the table; the tenants with the oldest data, and (other): the oldest of the rest.",
    ("tenant", "table"),
)
TENANTS = Metric("monitor_data_tenants", "Tenants whose data is looked at: the active and the expected ones.")
LATE = Metric("monitor_data_tenants_late", "Tenants of which a table got no new rows for longer than max_age.")
WITHOUT = Metric("monitor_data_tenants_without_data", "Tenants that never had a row in any of the tables.")

NO_NEW_DATA = FindingKind(
    "NoNewData",
    Severity.P2,
    "INC-003",
    "No table got a new row of the tenant for longer than max_age, or an expected tenant never had one. The number is the age of its "
    "newest row in seconds; a tenant that never had one has none.",
)
DATA_LATE = FindingKind(
    "DataLate", Severity.P3, "INC-003", "Some tables get new rows of the tenant, others got none for longer than max_age."
)

EVENTS = ("public.purchase", "public.add_to_cart", "public.page_view")
TENANT_TABLE = "public.tenant_config"
COLUMNS = Wanted(("tenant_id", "event_date", "event_timestamp"))
TENANT_COLUMNS = Wanted(("id", "is_active"))
SAMPLE = 50
"""How many of the newest rows of a tenant are looked at, of each table."""
EXACT = 20
"""Tenants a table whose newest day is read whole at each run, because the sample alone is no proof that they are late."""
DAY_SLACK_S = 14 * 3600.0
"""``event_date`` may be a date of any time zone."""
OTHER = "(other)"


class Config(PluginConfig):
    """Keys of a ``data_freshness`` check."""

    tables: tuple[Annotated[str, Field(pattern=TABLE_NAME)], ...] = Field(
        EVENTS, min_length=1, max_length=10, description="Tables with tenant_id, event_date and event_timestamp, indexed by the first two."
    )
    tenants_table: str = Field(TENANT_TABLE, pattern=TABLE_NAME, description="Table with id and is_active of every tenant.")
    max_age: Duration = Field(172_800.0, gt=0, description="A tenant whose newest row is older gets no new data.")
    max_age_of: dict[str, Duration] = Field(default_factory=dict, description="Another max_age for single tenants, by id.")
    expect_tenants: tuple[str, ...] = Field((), description="Tenants that must have data, even if they never had any.")
    ignore_tenants: tuple[str, ...] = Field((), description="Tenants that are not looked at.")
    top: int = Field(20, ge=1, le=200, description="Tenants that are told apart in metrics and findings; the rest is (other).")

    def allowed_s(self, tenant: str) -> float:
        return self.max_age_of.get(tenant, self.max_age)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest row of one tenant in one table. ``age_s`` is None when there never was one."""

    tenant: str
    table: str
    age_s: float | None
    at: str = ""
    day: str = ""
    day_over_s: float = 0.0
    """Time since the newest day ended; negative while it lasts."""


@check(
    "data_freshness",
    config=Config,
    metrics=(AGE, TENANTS, LATE, WITHOUT),
    finds=(NO_NEW_DATA, DATA_LATE),
    needs=("dsn",),
    blind="A table is missing, not readable or locked, or the database does not answer in time.",
    why="Every job may be green and still no data arrive: nobody ordered an ingestion, or the source is empty. Whoever opens a report sees "
    "it first (INC-003).",
    privileges=f"{grant(COLUMNS.needed, 'purchase, add_to_cart and page_view')} {grant(TENANT_COLUMNS.needed, 'tenant_config')} "
    "What is in the rows stays unseen.",
)
async def data_freshness(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares the age of each active tenant's newest row in each table with what is expected of the tenant.

    Cheap on big tables: the end of the index on (tenant_id, event_date) is read, and a whole day only where the answer hangs on it.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    await readable(ctx.pg, {cfg.tenants_table: TENANT_COLUMNS} | dict.fromkeys(cfg.tables, COLUMNS))
    found = await _exactly(ctx.pg, await _newest(ctx.pg, cfg), cfg)
    return judge(found, cfg, service=ctx.service.name)


def judge(found: Sequence[Newest], cfg: Config, *, service: str) -> Observed:
    """What the ages mean: one finding a tenant, those with the oldest data first. Pure."""
    tenants: dict[str, list[Newest]] = {}
    for newest in found:
        tenants.setdefault(newest.tenant, []).append(newest)
    by_age = sorted(tenants.values(), key=lambda tables: (-_youngest_s(tables), tables[0].tenant))
    without = [tables[0].tenant for tables in by_age if all(newest.age_s is None for newest in tables)]
    late = [tables for tables in by_age if _is_late(tables, cfg)]
    samples = (*_ages(by_age, cfg), TENANTS(len(tenants)), LATE(len(late)), WITHOUT(len(without)))
    findings = [_found(tables, cfg, without, service) for tables in late[: cfg.top]]
    if rest := late[cfg.top :]:
        names = ", ".join(one_line(tables[0].tenant, limit=40) for tables in rest[:10])
        summary = f"{many(len(rest), 'more tenant')} got no new data for too long ({service})"
        findings.append(NO_NEW_DATA(summary, labels={"tenant": OTHER}, facts={"among them": names}, value=_youngest_s(rest[0])))
    return Observed(samples, tuple(findings))


def _late(newest: Newest, cfg: Config) -> bool:
    return newest.age_s is not None and newest.age_s > cfg.allowed_s(newest.tenant)


def _is_late(tables: list[Newest], cfg: Config) -> bool:
    if all(newest.age_s is None for newest in tables):
        return tables[0].tenant in cfg.expect_tenants
    return any(_late(newest, cfg) for newest in tables)


def _youngest_s(tables: list[Newest]) -> float:
    """Age of the tenant's newest row in any table; 0 when it never had one, so that it comes last."""
    return min((newest.age_s for newest in tables if newest.age_s is not None), default=0.0)


def _found(tables: list[Newest], cfg: Config, without: list[str], service: str) -> Finding:
    tenant = tables[0].tenant
    shown, allowed = one_line(tenant, limit=64), lasted(cfg.allowed_s(tenant))
    facts = {newest.table: _when(newest) for newest in tables}
    facts["expected"] = f"new rows at least every {allowed}"
    if without:
        names = ", ".join(one_line(name, limit=40) for name in without[:10])
        facts["never had data"] = names + (f" and {len(without) - 10} more" if len(without) > 10 else "")
    ages = [newest for newest in tables if newest.age_s is not None]
    late = [newest for newest in ages if _late(newest, cfg)]
    labels = {"tenant": shown}
    if not ages:
        return NO_NEW_DATA(f"tenant {shown} is expected to have data and never had any ({service})", labels=labels, facts=facts)
    if len(late) == len(ages):
        age_s = _youngest_s(tables)
        summary = f"no new data of tenant {shown} for {lasted(age_s)}: expected at least every {allowed} ({service})"
        return NO_NEW_DATA(summary, labels=labels, facts=facts, value=age_s)
    age_s = max(newest.age_s or 0 for newest in late)
    names = ", ".join(newest.table for newest in late)
    summary = f"no new {names} of tenant {shown} for {lasted(age_s)}, while other data arrives ({service})"
    return DATA_LATE(summary, labels=labels, facts=facts, value=age_s)


def _when(newest: Newest) -> str:
    return "no rows" if newest.age_s is None else f"newest {newest.at}, {lasted(newest.age_s)} ago"


def _ages(by_age: list[list[Newest]], cfg: Config) -> list[Sample]:
    """The oldest first; what two tenants have in common once their names were made printable counts as one, the oldest."""
    oldest: dict[tuple[str, str], float] = {}
    for number, tables in enumerate(by_age):
        tenant = one_line(tables[0].tenant, limit=64) if number < cfg.top else OTHER
        for newest in tables:
            if newest.age_s is not None:
                key = (tenant, newest.table)
                oldest[key] = max(oldest.get(key, 0.0), newest.age_s)
    return [AGE(age_s, tenant=tenant, table=table) for (tenant, table), age_s in oldest.items()]


# --- looking ---------------------------------------------------------------------------------------------------------

# The index is read backwards from its end: the newest day first and, of one day, what was written last. So a few rows tell the newest day
# for certain, and its newest moment unless rows were not written in order. A date in the future is no proof of anything.
NEWEST = SQL("""
SELECT t.id AS tenant_id, n.day::text AS day, to_char(n.at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') AS at,
       extract(epoch FROM now() - n.at)::float8 AS age_s,
       extract(epoch FROM now() - (n.day + 1)::timestamp AT TIME ZONE 'UTC')::float8 AS day_over_s
FROM (SELECT id::text AS id FROM {tenants} WHERE is_active UNION SELECT unnest(%(expected)s::text[])) AS t
CROSS JOIN LATERAL (
    SELECT max(event_date) AS day, max(event_timestamp)::timestamptz AS at FROM (
        SELECT event_date, event_timestamp FROM {table}
        WHERE tenant_id = t.id AND event_date <= (now() AT TIME ZONE 'UTC')::date + 1
        ORDER BY event_date DESC LIMIT {sample}
    ) AS newest
) AS n
WHERE t.id <> ALL (%(ignored)s::text[])
ORDER BY t.id
""")

WHOLE_DAY = SQL("""
SELECT w.tenant_id, to_char(n.at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') AS at,
       extract(epoch FROM now() - n.at)::float8 AS age_s
FROM unnest(%(tenants)s::text[], %(days)s::date[]) AS w (tenant_id, day)
CROSS JOIN LATERAL (
    SELECT max(event_timestamp)::timestamptz AS at FROM {table} WHERE tenant_id = w.tenant_id AND event_date = w.day
) AS n
""")


def _statement(template: SQL, table: str, cfg: Config) -> Composed:
    return template.format(table=identifier(table), tenants=identifier(cfg.tenants_table), sample=SQL(str(SAMPLE)))


async def _newest(pg: Postgres, cfg: Config) -> list[Newest]:
    """One row a tenant and table."""
    params = {"expected": list(cfg.expect_tenants), "ignored": list(cfg.ignore_tenants)}
    answers = await pg.fetch_many([(_statement(NEWEST, table, cfg), params) for table in cfg.tables])
    return [_read(row, table) for table, rows in zip(cfg.tables, answers, strict=True) for row in rows]


def _read(row: Row, table: str) -> Newest:
    name = table.removeprefix("public.")
    if row["day"] is None:
        return Newest(row["tenant_id"], name, None)
    return Newest(row["tenant_id"], name, max(0.0, row["age_s"]), row["at"], row["day"], row["day_over_s"])


async def _exactly(pg: Postgres, found: Sequence[Newest], cfg: Config) -> list[Newest]:
    """The same, after the newest day was read whole where the sample seems late and the day itself is no proof."""
    doubtful = [newest for newest in found if _late(newest, cfg) and newest.day_over_s - DAY_SLACK_S <= cfg.allowed_s(newest.tenant)]
    by_table = {table: [newest for newest in doubtful if newest.table == table.removeprefix("public.")][:EXACT] for table in cfg.tables}
    asked = {table: pairs for table, pairs in by_table.items() if pairs}
    if not asked:
        return list(found)
    answers = await pg.fetch_many(
        [
            (_statement(WHOLE_DAY, table, cfg), {"tenants": [pair.tenant for pair in pairs], "days": [pair.day for pair in pairs]})
            for table, pairs in asked.items()
        ]
    )
    known = _by_pair(asked, answers)
    return [known.get((newest.tenant, newest.table), newest) for newest in found]


def _by_pair(asked: Mapping[str, list[Newest]], answers: Iterable[list[Row]]) -> dict[tuple[str, str], Newest]:
    exact: dict[tuple[str, str], Newest] = {}
    for (table, _), rows in zip(asked.items(), answers, strict=True):
        name = table.removeprefix("public.")
        for row in rows:
            if row["age_s"] is not None:
                exact[row["tenant_id"], name] = Newest(row["tenant_id"], name, max(0.0, row["age_s"]), row["at"])
    return exact
