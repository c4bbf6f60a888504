"""Which tables take much more room than their rows need?

An estimate from the width of the columns, told only where the statistics behind it can be trusted.
"""

from collections.abc import Sequence

from psycopg.sql import SQL, Identifier
from pydantic import Field

from checks import pg_helpers, pg_sight
from checks.words import sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, PluginConfig, check, one_line
from monitor.probes_contract import Postgres, Row

BLOAT = Metric("monitor_pg_table_bloat_bytes", "Room that a table takes beyond what its rows need, as estimated.", ("table",))
RATIO = Metric("monitor_pg_table_bloat_ratio", "The same, as a share of the table.", ("table",))
TRUSTED = Metric(
    "monitor_pg_table_bloat_trusted", "1 where the statistics behind the estimate are fresh and whole, 0 where they are not.", ("table",)
)

BLOATED = FindingKind("TableBloated", Severity.P4, "INC-005", "A table takes much more room than its rows need.")


class Config(PluginConfig):
    """Keys of a ``pg_bloat`` check."""

    percent: float = Field(50.0, gt=0, le=100, description="TableBloated when so much of the table is wasted …")
    min_bytes: int = Field(1_073_741_824, ge=0, description="… and it is so many bytes.")
    stale_percent: float = Field(
        10.0, gt=0, le=100, description="Statistics are not trusted once so many of the rows changed since ANALYZE."
    )
    confirm_bytes: int = Field(
        2_147_483_648,
        ge=0,
        description="Tables up to this size are measured (pgstattuple_approx) before they are told, where the extension is there.",
    )
    top: int = Field(20, ge=1, le=100, description="How many tables have series of their own.")


@check(
    "pg_bloat",
    config=Config,
    metrics=(BLOAT, RATIO, TRUSTED),
    finds=(BLOATED,),
    needs=("dsn",),
    blind="The role may not see the widths of the columns: without them nothing can be estimated. Or statistics are switched off "
    "(track_counts): then none can be trusted. Or there are so many tables that a statement takes longer than `timeout` less 6 s.",
    why="A bloated table makes every scan and every backup read what is not there (INC-005); VACUUM does not give the room back.",
    privileges=f"The function `platmon.column_widths()` of [{pg_helpers.WHERE}](../postgresql.md): pg_stats shows nothing of tables that a "
    "role may not read.",
)
async def pg_bloat(ctx: CheckContext, cfg: Config) -> Observed:
    """Estimates the wasted room of every table from its pages, its rows and the widths of its columns; measures before it tells, if it can.

    Right after many rows were deleted or changed, the estimate is wrong in both directions: it is shown, marked and not told.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    if not await pg_helpers.usable(ctx.pg, "column_widths"):
        raise CannotLook(f"the widths of the columns cannot be seen: install platmon.column_widths ({pg_helpers.WHERE}) in this database")
    (rows,) = await pg_sight.look(ctx.pg, (ESTIMATES, {"top": cfg.top, "stale": cfg.stale_percent / 100}), tracked=["track_counts"])
    suspects = [row for row in rows if row["trusted"] and _is_bloated(row["wasted"], row["bytes"], cfg)]
    measured = {row["oid"]: await _measure(ctx.pg, row["oid"]) for row in suspects[:3] if row["bytes"] <= cfg.confirm_bytes}
    return judge(rows, measured, cfg, service=ctx.service.name)


async def _measure(pg: Postgres, oid: int) -> float | None:
    """Wasted bytes of a table as pgstattuple sees them; None where it cannot be asked or takes too long."""
    try:
        found = await pg.fetch(EXTENSION)
        if not found:
            return None
        rows = await pg.fetch(MEASURED.format(schema=Identifier(found[0]["schema"])), {"oid": oid})
    except CannotLook:
        return None
    return float(rows[0]["wasted"])


def judge(rows: Sequence[Row], measured: dict[int, float | None], cfg: Config, *, service: str) -> Observed:
    """What the estimates mean, the most wasteful first. Pure. A measurement is believed before an estimate."""
    samples = []
    findings: list[Finding] = []
    for row in rows:
        name = one_line(row["name"], limit=127)
        samples += [
            BLOAT(row["wasted"], table=name),
            RATIO(row["wasted"] / max(1, row["bytes"]), table=name),
            TRUSTED(row["trusted"], table=name),
        ]
        by_measure = measured.get(row["oid"])
        wasted = row["wasted"] if by_measure is None else by_measure
        if row["trusted"] and _is_bloated(wasted, row["bytes"], cfg):
            findings.append(_bloated(row, name, wasted, "estimated" if by_measure is None else "measured", service))
    return Observed(tuple(samples), tuple(findings))


def _is_bloated(wasted: float, size: int, cfg: Config) -> bool:
    return wasted >= cfg.min_bytes and 100 * wasted >= cfg.percent * size


def _bloated(row: Row, name: str, wasted: float, how: str, service: str) -> Finding:
    percent = 100 * wasted / row["bytes"]
    facts = {
        "takes": f"{sized(row['bytes'])}, of which {sized(wasted)} are wasted ({how})",
        "rows": f"about {row['rows']:,.0f}",
        "cure": f"pg_repack -t {name}, which keeps the table usable; VACUUM (FULL) {name} locks it for as long as it takes",
        "not a cure": "plain VACUUM: it keeps the room for new rows",
    }
    summary = f"{percent:.0f} % of {name} is wasted room, {sized(wasted)} ({service})"
    return BLOATED(summary, labels={"table": name}, facts=facts, value=percent)


# A row is its header, its null map, its columns (each rounded up as a whole) and its line pointer; a page has a header of 24 bytes.
ESTIMATES = """
WITH tables AS (
    SELECT c.oid, c.relpages::bigint AS pages, c.reltuples::float8 AS rows, w.without_statistics,
           current_setting('block_size')::bigint AS block,
           coalesce((SELECT split_part(o, '=', 2)::int FROM unnest(c.reloptions) o WHERE o LIKE 'fillfactor=%%'), 100) AS fillfactor,
           (23 + CASE WHEN w.nullable THEN (w.columns + 7) / 8 ELSE 0 END + 7) / 8 * 8 + (ceil(w.width)::int + 7) / 8 * 8 + 4 AS row_bytes
    FROM platmon.column_widths() w JOIN pg_class c ON c.oid = w.relid
    WHERE c.relpages > 128 AND c.reltuples > 0 AND c.relpersistence <> 't'
), estimates AS (
    SELECT t.*, ceil(rows / greatest(1, floor((block - 24) * fillfactor / 100.0 / row_bytes)))::bigint AS needed_pages FROM tables t
)
SELECT e.oid, e.oid::regclass::text AS name, e.pages * e.block AS bytes, greatest(0, e.pages - e.needed_pages) * e.block AS wasted, e.rows,
       e.without_statistics = 0 AND coalesce(s.n_mod_since_analyze, 0) < %(stale)s * greatest(e.rows, 1)
           AND greatest(s.last_analyze, s.last_autoanalyze) IS NOT NULL AS trusted
FROM estimates e LEFT JOIN pg_stat_user_tables s ON s.relid = e.oid ORDER BY wasted DESC, name LIMIT %(top)s
"""

EXTENSION = (
    "SELECT n.nspname::text AS schema FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'pgstattuple'"
)

MEASURED = SQL("SELECT (approx_free_space + dead_tuple_len)::float8 AS wasted FROM {schema}.pgstattuple_approx(%(oid)s::oid::regclass)")
