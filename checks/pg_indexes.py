"""Which indexes are missing, broken, double, or only cost?

Reads catalogs and counters only: nothing here waits for a lock on a table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from checks import pg_sight
from checks.words import lasted, many, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Postgres, Row, Statement

SCANNED = Metric(
    "monitor_pg_seq_scan_rows_total", "Rows read by sequential scans, of the big tables with the most.", ("table",), kind="counter"
)
INVALID_COUNT = Metric("monitor_pg_indexes_invalid", "Indexes that are kept up to date and never used, because building them failed.")
UNUSED_COUNT = Metric("monitor_pg_indexes_unused", "Indexes that no query used since the counters were last reset.")
UNUSED_BYTES = Metric("monitor_pg_indexes_unused_bytes", "What these take.")
DOUBLE_COUNT = Metric("monitor_pg_indexes_duplicate", "Indexes whose work another one of the same table does too.")
DOUBLE_BYTES = Metric("monitor_pg_indexes_duplicate_bytes", "What these take.")

MISSING = FindingKind("IndexMissing", Severity.P4, "INC-005", "A big table is read from end to end again and again.")
INVALID = FindingKind(
    "IndexInvalid", Severity.P3, "INC-005", "An index was not built to its end: it costs every write and serves no query."
)
UNUSED = FindingKind("IndexesUnused", Severity.P4, None, "Indexes were not used for unused_for, and cost every write.")
DOUBLE = FindingKind("IndexesDuplicate", Severity.P4, None, "Indexes do the work of others of the same table.")
NO_KEY_INDEX = FindingKind(
    "ForeignKeyUnindexed",
    Severity.P4,
    "INC-005",
    "A foreign key of a big table has no index: deleting what it refers to reads the whole table.",
)

Part = Literal["missing", "invalid", "unused", "duplicate", "foreign_keys"]
PARTS: tuple[Part, ...] = ("missing", "invalid", "unused", "duplicate", "foreign_keys")

TRACKED: Mapping[Part, pg_sight.Tracking] = {"missing": "track_counts", "unused": "track_counts", "invalid": "track_activities"}
"""What is read from statistics, or left out while it is built."""

AT_MOST = 50
"""Rows asked for of each kind; counts beyond are told as so many and more."""


class Config(PluginConfig):
    """Keys of a ``pg_indexes`` check."""

    look_for: tuple[Part, ...] = Field(PARTS, min_length=1, description="What to look for; what is left out is not asked for.")
    min_rows_per_scan: int = Field(10_000, ge=1, description="IndexMissing when the scans since the last look read so many rows each …")
    min_scans: int = Field(20, ge=1, description="… and there were so many of them.")
    unused_for: Duration = Field(30 * 86_400.0, ge=0, description="IndexesUnused when the counters are at least so old.")
    min_unused_bytes: int = Field(104_857_600, ge=0, description="Unused or double indexes that take less together are left alone.")
    min_key_rows: int = Field(100_000, ge=0, description="ForeignKeyUnindexed on tables with so many rows.")
    top: int = Field(20, ge=1, le=AT_MOST, description="How many tables have series of their own.")


@check(
    "pg_indexes",
    config=Config,
    metrics=(SCANNED, INVALID_COUNT, UNUSED_COUNT, UNUSED_BYTES, DOUBLE_COUNT, DOUBLE_BYTES),
    finds=(MISSING, INVALID, UNUSED, DOUBLE, NO_KEY_INDEX),
    needs=("dsn",),
    blind="The role may not see the server's statistics, they are switched off (track_counts for missing and unused indexes, "
    "track_activities for invalid ones), or the database does not answer.",
    why="A missing index makes every query of a growing table slower (INC-005); an unused one makes every write slower.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_indexes(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares the sequential scans of big tables with the previous look, and lists invalid, unused and double indexes of the database.

    Counters are those of this server alone: an index may be used on a standby.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    found, epoch = await _find(ctx.pg, cfg)
    scans, invalid, unused, double, keys = [found.get(part, []) for part in PARTS]
    before = ctx.kept.value if ctx.kept else {}
    samples = SCANNED.each([(_shown(row["name"]), row["rows"]) for row in scans])
    samples += [INVALID_COUNT(len(invalid))] if "invalid" in found else []
    samples += [UNUSED_COUNT(len(unused)), UNUSED_BYTES(_bytes(unused))] if "unused" in found else []
    samples += [DOUBLE_COUNT(len(double)), DOUBLE_BYTES(_bytes(double))] if "duplicate" in found else []
    service = ctx.service.name
    findings = missing(scans, before, cfg, epoch=epoch["epoch"], service=service)
    findings += broken(invalid, service=service) if invalid else []
    if unused or double:
        findings += wasted(unused, double, cfg, counted_s=epoch["counted_s"], standbys=epoch["standbys"], service=service)
    findings += unindexed(keys, service=service) if keys else []
    keep = {"epoch": epoch["epoch"], "scans": {row["name"]: [row["scans"], row["rows"]] for row in scans}}
    return Observed(tuple(samples), tuple(findings), keep=keep)


async def _find(pg: Postgres, cfg: Config) -> tuple[dict[Part, list[Row]], Row]:
    """The rows of each part that is looked for, and what the counters count from."""
    statements: dict[Part, tuple[Statement, dict[str, object]]] = {
        "missing": (SCANS, {"top": cfg.top}),
        "invalid": (INVALID_ONES, {}),
        "unused": (UNUSED_ONES, {}),
        "duplicate": (DOUBLE_ONES, {}),
        "foreign_keys": (UNINDEXED_KEYS, {"rows": cfg.min_key_rows}),
    }
    wanted = [part for part in PARTS if part in cfg.look_for]
    tracked = sorted({TRACKED[part] for part in wanted if part in TRACKED})
    *rows, (epoch,) = await pg_sight.look(pg, *map(statements.__getitem__, wanted), EPOCH, tracked=tracked)
    return dict(zip(wanted, rows, strict=True)), epoch


def missing(scans: Sequence[Row], before: Mapping[str, Any], cfg: Config, *, epoch: str, service: str) -> list[Finding]:
    """Tables that were read from end to end since the run before. Pure."""
    if before.get("epoch") != epoch:
        return []
    findings = []
    for row in scans:
        old_scans, old_rows = before["scans"].get(row["name"], (None, None))
        if old_scans is None or row["scans"] - old_scans < cfg.min_scans:
            continue
        number, rows = row["scans"] - old_scans, row["rows"] - old_rows
        if rows / number < cfg.min_rows_per_scan:
            continue
        name = _shown(row["name"])
        facts = {
            "scans": f"{number:,} since the last look, {rows / number:,.0f} rows each",
            "table": f"{sized(row['bytes'])}, about {row['live']:,} rows",
            "by index": f"{row['index_scans'] or 0:,} scans so far",
            "first": "find its statements in pg_stat_statements and EXPLAIN (ANALYZE, BUFFERS) the worst",
        }
        summary = f"{name} was read from end to end {number:,} times since the last look ({service})"
        findings.append(MISSING(summary, labels={"table": name}, facts=facts, value=rows / number))
    return findings


def broken(invalid: Sequence[Row], *, service: str) -> list[Finding]:
    """Indexes that were not built to their end. Pure."""
    findings = []
    for row in invalid:
        name = _shown(row["name"])
        leftover = row["leftover"]
        cure = f"DROP INDEX CONCURRENTLY {name};" if leftover else f"REINDEX INDEX CONCURRENTLY {name}; or drop it"
        facts = {"table": _shown(row["table_name"]), "takes": sized(row["bytes"]), "cure": cure}
        why = "left over by a REINDEX CONCURRENTLY" if leftover else "not built to its end"
        findings.append(INVALID(f"the index {name} is invalid, {why} ({service})", labels={"index": name}, facts=facts))
    return findings


def wasted(unused: Sequence[Row], double: Sequence[Row], cfg: Config, *, counted_s: float, standbys: int, service: str) -> list[Finding]:
    """Indexes that cost and do nothing. Pure."""
    findings = []
    if unused and counted_s >= cfg.unused_for and _bytes(unused) >= cfg.min_unused_bytes:
        facts = {_shown(row["name"]): f"{sized(row['bytes'])}, on {_shown(row['table_name'])}" for row in unused[:8]}
        facts["counted for"] = lasted(counted_s)
        facts["first"] = (
            f"look at the counters of the {many(standbys, 'standby', 'standbys')} too"
            if standbys
            else "DROP INDEX CONCURRENTLY, one by one"
        )
        summary = f"{_number(unused)} not used for {lasted(counted_s)}, {sized(_bytes(unused))} together ({service})"
        findings.append(UNUSED(summary, facts=facts, value=_bytes(unused)))
    if double and _bytes(double) >= cfg.min_unused_bytes:
        facts = {_shown(row["name"]): f"{sized(row['bytes'])}, {row['kind']} of {_shown(row['covered_by'])}" for row in double[:8]}
        facts["first"] = f"DROP INDEX CONCURRENTLY {_shown(double[0]['name'])};"
        summary = f"{_number(double)} done by others too, {sized(_bytes(double))} together ({service})"
        findings.append(DOUBLE(summary, facts=facts, value=_bytes(double)))
    return findings


def unindexed(keys: Sequence[Row], *, service: str) -> list[Finding]:
    """Foreign keys without an index, one at least. Pure."""
    facts = {
        _shown(row["table_name"]): f"({one_line(row['columns'], limit=80)}) → {_shown(row['refers_to'])}, about {row['rows']:,} rows"
        for row in keys[:8]
    }
    first = keys[0]
    facts["first"] = f"CREATE INDEX CONCURRENTLY ON {_shown(first['table_name'])} ({one_line(first['columns'], limit=80)});"
    return [NO_KEY_INDEX(f"{many(len(keys), 'foreign key')} of big tables without an index ({service})", facts=facts, value=len(keys))]


def _number(rows: Sequence[Row]) -> str:
    at_least = "at least " if len(rows) >= AT_MOST else ""
    return "an index is" if len(rows) == 1 else f"{at_least}{len(rows)} indexes are"


def _bytes(rows: Sequence[Row]) -> int:
    return sum(int(row["bytes"]) for row in rows)


def _shown(name: str) -> str:
    return one_line(name, limit=127)


# Names come as regclass: qualified and quoted, fit for the statements in the cures.
SCANS = """
WITH scanned AS (
    SELECT c.oid, c.relpages, pg_stat_get_live_tuples(c.oid) AS live, pg_stat_get_tuples_returned(c.oid) AS rows
    FROM pg_class c WHERE c.relkind IN ('r', 'm') AND greatest(c.relpages, pg_stat_get_live_tuples(c.oid) / 200) > 50
      AND c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema'))
      AND pg_stat_get_numscans(c.oid) > 0
    ORDER BY rows DESC, c.oid LIMIT %(top)s
)
SELECT oid::regclass::text AS name, pg_stat_get_numscans(oid) AS scans, rows, live,
       (SELECT sum(pg_stat_get_numscans(i.indexrelid)) FROM pg_index i WHERE i.indrelid = scanned.oid)::bigint AS index_scans,
       relpages::bigint * current_setting('block_size')::bigint AS bytes
FROM scanned ORDER BY rows DESC, name
"""

# 'I' is the index of a partitioned table, invalid until all parts have theirs
INVALID_ONES = r"""
SELECT i.indexrelid::regclass::text AS name, i.indrelid::regclass::text AS table_name, c.relname ~ '_cc(new|old)[0-9]*$' AS leftover,
       c.relpages::bigint * current_setting('block_size')::bigint AS bytes
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relkind = 'i'
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid OR p.relid = i.indrelid)
ORDER BY c.relpages DESC, name LIMIT 20
"""

UNUSED_ONES = """
SELECT s.indexrelid::regclass::text AS name, s.relid::regclass::text AS table_name,
       c.relpages::bigint * current_setting('block_size')::bigint AS bytes
FROM pg_stat_user_indexes s JOIN pg_index i ON i.indexrelid = s.indexrelid JOIN pg_class c ON c.oid = s.indexrelid
WHERE s.idx_scan = 0 AND i.indisvalid AND c.relpages > 10
  AND NOT (i.indisunique OR i.indisprimary OR i.indisexclusion OR i.indisreplident OR i.indisclustered)
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = s.indexrelid)
  AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND f.conrelid = i.indrelid AND f.conkey[1] = i.indkey[0])
  AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = s.indexrelid)
ORDER BY c.relpages DESC, name LIMIT 50
"""

# Expressions and predicates are compared as stored, without their places in the text: pg_get_expr() would wait for locks.
# Arrays of type int2vector and oidvector begin at 0, so both sides are sliced.
DOUBLE_ONES = """
WITH x AS MATERIALIZED (
    SELECT i.indexrelid, i.indrelid, i.indisunique, c.relam, c.relpages, i.indnkeyatts,
           (i.indkey::int2[])[0:i.indnkeyatts - 1] AS keys, (i.indkey::int2[])[i.indnkeyatts:] AS included,
           (i.indclass::oid[])[0:i.indnkeyatts - 1] AS classes, (i.indcollation::oid[])[0:i.indnkeyatts - 1] AS collations,
           (i.indoption::int2[])[0:i.indnkeyatts - 1] AS options,
           coalesce(regexp_replace(i.indexprs::text, ':location -?[0-9]+', '', 'g'), '') AS expressions,
           coalesce(regexp_replace(i.indpred::text, ':location -?[0-9]+', '', 'g'), '') AS predicate,
           EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid) AS of_constraint
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indisvalid AND c.relkind = 'i' AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
)
SELECT DISTINCT ON (a.relpages, a.indexrelid) a.indexrelid::regclass::text AS name, b.indexrelid::regclass::text AS covered_by,
       CASE WHEN a.keys = b.keys AND a.included = b.included THEN 'a duplicate' ELSE 'a prefix' END AS kind,
       a.relpages::bigint * current_setting('block_size')::bigint AS bytes
FROM x a JOIN x b ON a.indrelid = b.indrelid AND a.indexrelid <> b.indexrelid AND a.relam = b.relam
                 AND a.predicate = b.predicate AND a.expressions = b.expressions
WHERE NOT a.indisunique AND NOT a.of_constraint AND cardinality(a.included) = 0
  AND a.keys = b.keys[1:a.indnkeyatts] AND a.classes = b.classes[1:a.indnkeyatts]
  AND a.collations = b.collations[1:a.indnkeyatts] AND a.options = b.options[1:a.indnkeyatts]
  AND ((a.indnkeyatts = b.indnkeyatts AND (b.indisunique OR a.indexrelid > b.indexrelid OR cardinality(b.included) > 0))
       OR (a.indnkeyatts < b.indnkeyatts AND a.expressions = '' AND a.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')))
ORDER BY a.relpages DESC, a.indexrelid, b.indexrelid LIMIT 50
"""

UNINDEXED_KEYS = """
SELECT k.conrelid::regclass::text AS table_name, k.confrelid::regclass::text AS refers_to, t.reltuples::bigint AS rows,
       (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY n.place) FROM unnest(k.conkey) WITH ORDINALITY n(number, place)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n.number) AS columns
FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid
WHERE k.contype = 'f' AND t.relkind = 'r' AND t.reltuples >= %(rows)s AND NOT EXISTS (
    SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
    WHERE i.indrelid = k.conrelid AND i.indisvalid AND i.indpred IS NULL AND m.amname IN ('btree', 'hash')
      AND (SELECT array_agg(x ORDER BY x) FROM unnest((i.indkey::int2[])[0:cardinality(k.conkey) - 1]) x)
        = (SELECT array_agg(x ORDER BY x) FROM unnest(k.conkey) x))
ORDER BY t.reltuples DESC, table_name LIMIT 30
"""

EPOCH = """
SELECT coalesce(d.stats_reset, pg_postmaster_start_time())::text AS epoch,
       extract(epoch FROM clock_timestamp() - coalesce(d.stats_reset, pg_postmaster_start_time()))::float8 AS counted_s,
       (SELECT count(*) FROM pg_stat_replication) AS standbys
FROM pg_stat_database d WHERE d.datname = current_database()
"""
