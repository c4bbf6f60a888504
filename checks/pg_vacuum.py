"""Which tables does autovacuum not keep up with, measured against each table's own threshold, and who holds back the cleaning?"""

from operator import itemgetter

from pydantic import Field

from checks import pg_sight
from checks.words import lasted
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, PluginConfig, check, one_line
from monitor.probes_contract import Row

DEAD = Metric("monitor_pg_dead_rows", "Dead rows of the tables with the most vacuum pressure, and of the others together.", ("table",))
PRESSURE = Metric("monitor_pg_vacuum_pressure_ratio", "Dead rows as a share of the table's effective autovacuum threshold.", ("table",))
XMIN_AGE = Metric(
    "monitor_pg_xmin_age", "Transactions since the oldest snapshot that somebody still holds, by kind of holder.", ("holder",)
)

BEHIND = FindingKind(
    "VacuumBehind", Severity.P3, "INC-005", "A table has several times more dead rows than its autovacuum threshold: it is not cleaned."
)
XMIN_HELD = FindingKind(
    "XminHeld", Severity.P3, "INC-005", "A session, slot, standby or prepared transaction keeps VACUUM from removing dead rows."
)
DISABLED = FindingKind("AutovacuumOff", Severity.P3, "INC-005", "A table with dead rows has autovacuum switched off.")

OTHERS = "(other)"
_DEAD, _PRESSURE = itemgetter("dead"), itemgetter("pressure")
HOLDERS = ("session", "standby", "slot", "prepared transaction")


class Config(PluginConfig):
    """Keys of a ``pg_vacuum`` check."""

    pressure: float = Field(3.0, gt=1, description="VacuumBehind at so many times the table's effective threshold.")
    min_dead_rows: int = Field(10_000, ge=0, description="A table with fewer dead rows is left alone.")
    xmin_age: int = Field(1_000_000, ge=1, description="XminHeld when a holder is so many transactions old and tables are behind, or …")
    xmin_age_alone: int = Field(50_000_000, ge=1, description="… so many, whatever the tables look like.")
    top: int = Field(20, ge=1, le=100, description="How many tables have series of their own; the rest are one.")


@check(
    "pg_vacuum",
    config=Config,
    metrics=(DEAD, PRESSURE, XMIN_AGE),
    finds=(BEHIND, XMIN_HELD, DISABLED),
    needs=("dsn",),
    blind="The role may not see the server's statistics, statistics are switched off (track_counts), or the database does not answer.",
    why="Dead rows that nobody removes make every scan read more (INC-005); the usual cause is one old snapshot.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_vacuum(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares each table's dead rows with its effective autovacuum threshold: its own settings, the server's, PostgreSQL 18's ceiling.

    Dead rows are the server's estimate and arrive late from idle sessions.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    tables, holders = await pg_sight.look(ctx.pg, (TABLES, {"top": cfg.top}), HOLDING, tracked=["track_counts"])
    return judge(tables, holders, cfg, service=ctx.service.name)


def judge(tables: list[Row], holders: list[Row], cfg: Config, *, service: str) -> Observed:
    """What the rows mean; the tables with the most pressure first, the oldest holder first. Pure."""
    names, dead = list(map(_name, tables)), list(map(_DEAD, tables))
    others = max(0, (tables[0]["all_dead"] if tables else 0) - sum(dead))
    oldest = dict.fromkeys(HOLDERS, 0)
    for row in reversed(holders):
        oldest[row["kind"]] = row["age"]
    samples = (
        *DEAD.each(zip(names, dead, strict=True)),
        *PRESSURE.each(zip(names, map(_PRESSURE, tables), strict=True)),
        DEAD(others, table=OTHERS),
        *XMIN_AGE.each(oldest.items()),
    )
    behind = [row for row in tables if row["pressure"] >= cfg.pressure and row["dead"] >= cfg.min_dead_rows]
    findings: list[Finding] = []
    if behind:
        cleaned = [row for row in behind if row["enabled"]]
        findings += [_behind(cleaned, holders, cfg, service)] if cleaned else []
        findings += [_disabled(row, service) for row in behind if not row["enabled"]]
    limit = cfg.xmin_age if behind else cfg.xmin_age_alone
    if holders and holders[0]["age"] >= limit:
        first = holders[0]
        facts = {f"{row['kind']} {one_line(row['who'], limit=60)}": f"{row['age']:,} transactions old" for row in holders[:5]}
        summary = f"a {first['kind']} holds back VACUUM by {first['age']:,} transactions: {one_line(first['who'], limit=60)} ({service})"
        findings.append(XMIN_HELD(summary, facts={**facts, "to end it": _END[first["kind"]]}, value=first["age"]))
    return Observed(samples, tuple(findings))


_END = {
    "session": "SELECT pg_terminate_backend(pid); its pid stands first in its line",
    "standby": "the standby's own long queries, or hot_standby_feedback = off there",
    "slot": "its consumer must read on, or SELECT pg_drop_replication_slot('NAME')",
    "prepared transaction": "COMMIT PREPARED or ROLLBACK PREPARED 'GID'",
}


def _behind(rows: list[Row], holders: list[Row], cfg: Config, service: str) -> Finding:
    facts = {}
    for row in rows[:8]:
        cleaned = f"last vacuum {lasted(row['vacuumed_s'])} ago" if row["vacuumed_s"] is not None else "never vacuumed"
        facts[_name(row)] = f"{row['dead']:,} dead, {row['pressure']:.1f} times its threshold, {cleaned}"
    held = bool(holders) and holders[0]["age"] >= cfg.xmin_age
    facts["first"] = "end what holds back VACUUM: see XminHeld" if held else f"VACUUM (ANALYZE) {_name(rows[0])};"
    count = "1 table is" if len(rows) == 1 else f"{len(rows)} tables are"
    worst = max(float(row["pressure"]) for row in rows)
    return BEHIND(f"{count} not cleaned in time, the worst at {worst:.1f} times its threshold ({service})", facts=facts, value=worst)


def _disabled(row: Row, service: str) -> Finding:
    name = _name(row)
    facts = {"dead rows": f"{row['dead']:,}", "cure": f"ALTER TABLE {name} RESET (autovacuum_enabled);"}
    summary = f"autovacuum is switched off for {name}, which has {row['dead']:,} dead rows ({service})"
    return DISABLED(summary, labels={"table": name}, facts=facts)


def _name(row: Row) -> str:
    return one_line(f"{row['schema']}.{row['name']}", limit=127)


# The functions behind pg_stat_user_tables: the view adds up every table's indexes too, which takes ten times as long.
TABLES = """
WITH server AS MATERIALIZED (
    SELECT current_setting('autovacuum_vacuum_threshold')::float8 AS base,
           current_setting('autovacuum_vacuum_scale_factor')::float8 AS factor,
           current_setting('autovacuum_vacuum_max_threshold', true)::float8 AS most
), tables AS MATERIALIZED (
    SELECT n.nspname, c.relname, c.oid, greatest(c.reltuples, 0) AS rows, pg_stat_get_dead_tuples(c.oid) AS dead,
           CASE WHEN c.reloptions IS NOT NULL
                THEN (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(c.reloptions)) END AS own
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
), pressed AS (
    SELECT t.*, dead / greatest(1, least(
        coalesce((own ->> 'autovacuum_vacuum_threshold')::float8, base)
            + coalesce((own ->> 'autovacuum_vacuum_scale_factor')::float8, factor) * rows,
        coalesce(nullif(coalesce((own ->> 'autovacuum_vacuum_max_threshold')::float8, most), -1), 'Infinity'))) AS pressure
    FROM tables t, server ORDER BY pressure DESC, nspname, relname LIMIT %(top)s
)
SELECT nspname::text AS schema, relname::text AS name, dead, coalesce((own ->> 'autovacuum_enabled')::bool, true) AS enabled,
       extract(epoch FROM clock_timestamp()
               - greatest(pg_stat_get_last_vacuum_time(oid), pg_stat_get_last_autovacuum_time(oid)))::float8 AS vacuumed_s,
       pressure::float8 AS pressure, (SELECT sum(dead) FROM tables)::bigint AS all_dead
FROM pressed ORDER BY pressure DESC, nspname, relname
"""

# A session holds by the snapshot that it reads with, and by its own transaction once it has written: idle after a write, by that alone.
HOLDING = """
SELECT kind, who, age FROM (
    SELECT 'session' AS kind, concat_ws(' ', pid, application_name) AS who, greatest(age(backend_xmin), age(backend_xid)) AS age
    FROM pg_stat_activity
    WHERE coalesce(backend_xmin, backend_xid) IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    UNION ALL
    SELECT 'standby', pid::text || ' ' || application_name, age(backend_xmin) FROM pg_stat_replication WHERE backend_xmin IS NOT NULL
    UNION ALL
    SELECT 'slot', slot_name::text, greatest(age(xmin), age(catalog_xmin)) FROM pg_replication_slots
    WHERE coalesce(xmin, catalog_xmin) IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction', gid, age(transaction) FROM pg_prepared_xacts
) holders ORDER BY age DESC, kind, who LIMIT 10
"""
