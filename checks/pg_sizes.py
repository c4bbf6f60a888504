"""How big are the databases and their biggest tables, and how fast do they grow?

A table that somebody holds, or waits for, exclusively is not touched: its size is then what the catalog last noted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from pydantic import Field

from checks import pg_sight
from checks.words import lasted, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Postgres, Row

DATABASE = Metric("monitor_pg_database_size_bytes", "Size of a database: the twenty biggest and (other).", ("database",))
TABLE = Metric("monitor_pg_table_size_bytes", "Size of a table without its indexes: the biggest, and (other) of this database.", ("table",))
INDEXES = Metric("monitor_pg_table_indexes_size_bytes", "Size of the indexes of these tables.", ("table",))
APPROXIMATE = Metric("monitor_pg_table_sizes_noted", "Tables whose size is what the catalog last noted, because they are locked.")

GROWING = FindingKind(
    "GrowingFast", Severity.P3, None, "A database or table grew by more than fast_percent and fast_bytes within the window."
)
TOO_BIG = FindingKind("DatabaseTooBig", Severity.P3, None, "A database is larger than max_database_bytes.")

OTHERS = "(other)"
DATABASES_SHOWN = 20
POINTS = 48


class Config(PluginConfig):
    """Keys of a ``pg_sizes`` check."""

    window: Duration = Field(86_400.0, ge=600, description="Growth is measured over so much of the past; less is known at first.")
    fast_percent: float = Field(20.0, gt=0, description="GrowingFast when something grew by this share …")
    fast_bytes: int = Field(10_737_418_240, ge=0, description="… and by so many bytes within the window.")
    max_database_bytes: int | None = Field(None, gt=0, description="DatabaseTooBig above this; the size that the disk is meant for.")
    top: int = Field(20, ge=0, le=100, description="How many tables have series of their own; with 0 only databases are measured.")


@check(
    "pg_sizes",
    config=Config,
    metrics=(DATABASE, TABLE, INDEXES, APPROXIMATE),
    finds=(GROWING, TOO_BIG),
    needs=("dsn",),
    blind="The role may not see the server's statistics, or the database does not answer in time.",
    why="What grows unseen fills the disk at night, and slows every backup and restore before.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_sizes(ctx: CheckContext, cfg: Config) -> Observed:
    """Measures every database and the biggest tables of this one, and compares with what they were up to a window ago."""
    assert ctx.pg is not None  # needs=("dsn",)
    if cfg.top:
        (databases,), tables = await asyncio.gather(pg_sight.look(ctx.pg, DATABASES), _tables(ctx.pg, cfg.top))
    else:
        (databases,), tables = await pg_sight.look(ctx.pg, DATABASES), []
    before = ctx.kept.value if ctx.kept else {}
    return judge(databases, tables, before, cfg, now_s=ctx.clock.now().timestamp(), service=ctx.service.name)


async def _tables(pg: Postgres, top: int) -> list[Row]:
    """Measured, or as noted in the catalog where somebody takes an exclusive lock in the very moment."""
    try:
        return await pg.fetch(TABLES, {"top": top})
    except CannotLook:
        return await pg.fetch(NOTED, {"top": top})


def judge(
    databases: Sequence[Row], tables: Sequence[Row], before: Mapping[str, Any], cfg: Config, *, now_s: float, service: str
) -> Observed:
    """What the sizes mean. Pure. ``before`` are the kept points of time and bytes, by what was measured."""
    samples = _samples(databases, tables)
    sizes = {f"database {row['name']}": float(row["bytes"]) for row in databases[:DATABASES_SHOWN]}
    if tables:
        sizes |= {f"table {row['name']}": float(row["table_bytes"] + row["index_bytes"]) for row in tables if row["measured"]}
    keep = {what: _extended(before.get(what, []), now_s, size, cfg.window) for what, size in sizes.items()}
    findings: list[Finding] = []
    for row in databases:
        if cfg.max_database_bytes is not None and row["bytes"] > cfg.max_database_bytes:
            name = one_line(row["name"], limit=63)
            facts = {"allowed": sized(cfg.max_database_bytes)} | ({"biggest tables": _biggest(tables)} if row["is_this"] else {})
            summary = f"the database {name} is {sized(row['bytes'])} big ({service})"
            findings.append(TOO_BIG(summary, labels={"database": name}, facts=facts, value=row["bytes"]))
    for what, points in keep.items():
        findings += _growth(what, points, cfg, service)
    return Observed(tuple(samples), tuple(findings), keep=keep)


def _samples(databases: Sequence[Row], tables: Sequence[Row]) -> list[Sample]:
    samples = DATABASE.each([(one_line(row["name"], limit=63), row["bytes"]) for row in databases[:DATABASES_SHOWN]])
    if rest := databases[DATABASES_SHOWN:]:
        samples.append(DATABASE(sum(row["bytes"] for row in rest), database=OTHERS))
    rest_bytes, noted = sum([row["bytes"] for row in databases if row["is_this"]]), 0
    for row in tables:
        name, noted = one_line(row["name"], limit=127), noted + (not row["measured"])
        samples += [TABLE(row["table_bytes"], table=name), INDEXES(row["index_bytes"], table=name)]
        rest_bytes -= row["table_bytes"] + row["index_bytes"]
    samples += [TABLE(max(0, rest_bytes), table=OTHERS), APPROXIMATE(noted)]
    return samples


def _biggest(tables: Sequence[Row]) -> str:
    return ", ".join(f"{one_line(row['name'], limit=60)} {sized(row['table_bytes'] + row['index_bytes'])}" for row in tables[:5])


def _extended(points: list[list[float]], now_s: float, size: float, window_s: float) -> list[list[float]]:
    """The kept points and this one: none older than the window, and so far apart that few are enough."""
    kept = points.copy()
    while kept and kept[-1][0] >= now_s:  # the clock was set back
        kept.pop()
    while kept and kept[0][0] < now_s - window_s:
        del kept[0]
    if len(kept) > 1 and kept[-1][0] - kept[-2][0] < window_s / POINTS:
        kept.pop()  # the latest point moves on until it is a whole step away from the one before
    return [*kept, [now_s, size]]


def _growth(what: str, points: Sequence[Sequence[float]], cfg: Config, service: str) -> list[Finding]:
    """Compared with the smallest size within the window: nothing is extrapolated."""
    at_s, size = points[-1]
    least = min(map(itemgetter(1), points))
    grown = size - least
    if grown < cfg.fast_bytes or grown < least * cfg.fast_percent / 100 or grown <= 0:
        return []
    least_at_s = next(point[0] for point in points if point[1] == least)
    kind, _, name = what.partition(" ")
    shown = one_line(name, limit=127)
    percent = f" ({100 * grown / least:.0f} %)" if least else ""
    facts = {
        "was": f"{sized(least)}, {lasted(at_s - least_at_s)} ago",
        "is": sized(size),
        "first": "what writes there: pg_stat_statements by rows",
    }
    summary = f"the {kind} {shown} grew by {sized(grown)}{percent} within {lasted(at_s - least_at_s)} ({service})"
    return [GROWING(summary, labels={kind: shown}, facts=facts, value=grown)]


DATABASES = """
SELECT datname::text AS name, pg_database_size(oid) AS bytes, datname = current_database() AS is_this
FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY bytes DESC, name
"""

# Sizes take the lightest lock on each table, which would wait behind an exclusive one that is held, or only waited for.
TABLES = """
WITH locked AS MATERIALIZED (
    SELECT DISTINCT relation FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), biggest AS MATERIALIZED (
    SELECT c.oid, c.reltoastrelid, c.relpages FROM pg_class c
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
      AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    ORDER BY greatest(c.relpages, pg_stat_get_live_tuples(c.oid) / 100) DESC, c.oid LIMIT %(top)s
), judged AS MATERIALIZED (
    SELECT b.oid, b.relpages::bigint * current_setting('block_size')::bigint AS noted,
           b.oid IN (SELECT relation FROM locked) OR b.reltoastrelid IN (SELECT relation FROM locked) OR EXISTS (
               SELECT FROM pg_index i JOIN locked ON relation = i.indexrelid WHERE i.indrelid = b.oid) AS locked
    FROM biggest b
)
SELECT oid::regclass::text AS name, NOT locked AS measured,
       CASE WHEN locked THEN noted ELSE coalesce(pg_table_size(oid), 0) END AS table_bytes,
       CASE WHEN locked THEN 0 ELSE coalesce(pg_indexes_size(oid), 0) END AS index_bytes
FROM judged ORDER BY table_bytes DESC, name
"""

NOTED = """
SELECT c.oid::regclass::text AS name, false AS measured, c.relpages::bigint * current_setting('block_size')::bigint AS table_bytes,
       0::bigint AS index_bytes
FROM pg_class c WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
  AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
ORDER BY c.relpages DESC, c.oid LIMIT %(top)s
"""
