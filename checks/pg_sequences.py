"""Which sequences come to their end, or to that of the column that they fill?"""

from collections.abc import Sequence

from psycopg.sql import SQL
from pydantic import Field

from checks import pg_helpers, pg_sight
from checks.words import many
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, PluginConfig, check, one_line
from monitor.probes_contract import Row

USED = Metric(
    "monitor_pg_sequence_used_ratio", "How much of its numbers a sequence has given out, of those that its column can hold.", ("sequence",)
)

NEAR_END = FindingKind(
    "SequenceNearEnd", Severity.P3, None, "A sequence has given out most of its numbers; P2 from critical_percent on: then INSERT fails."
)


class Config(PluginConfig):
    """Keys of a ``pg_sequences`` check."""

    warn_percent: float = Field(75.0, gt=0, le=100, description="SequenceNearEnd from this share of the numbers on.")
    critical_percent: float = Field(90.0, gt=0, le=100, description="SequenceNearEnd is P2 from this share on.")
    top: int = Field(20, ge=1, le=100, description="How many sequences have series of their own: those nearest their end.")


@check(
    "pg_sequences",
    config=Config,
    metrics=(USED,),
    finds=(NEAR_END,),
    needs=("dsn",),
    blind="The role may not see where some sequences stand, and of those that it sees none comes to its end.",
    why="When an integer key is used up, every INSERT fails at once, and the cure rewrites the table.",
    privileges=f"The function `platmon.sequence_positions()` of [{pg_helpers.WHERE}](../postgresql.md), "
    "or `GRANT SELECT ON ALL SEQUENCES IN SCHEMA … TO` the role, for each schema.",
)
async def pg_sequences(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares every sequence with its own end and with the type of the column it fills: a bigint sequence under an integer column too."""
    assert ctx.pg is not None  # needs=("dsn",)
    if await pg_helpers.usable(ctx.pg, "sequence_positions"):
        (rows,) = await pg_sight.look(ctx.pg, (BY_HELPER, {"top": cfg.top}))
        return judge(rows, cfg, service=ctx.service.name)
    rows, (unseen,) = await pg_sight.look(ctx.pg, (BY_GRANT, {"top": cfg.top}), UNSEEN)
    blind = _unseen(unseen) if unseen["number"] else ""
    observed = judge(rows, cfg, service=ctx.service.name, blind=blind)
    if blind and not observed.findings:
        raise CannotLook(blind)
    return observed


def _unseen(unseen: Row) -> str:
    return (
        f"the role {unseen['me']} may not see where {many(unseen['number'], 'sequence')} of {unseen['of']} stand, the first "
        f"{one_line(unseen['first'], limit=100)}: install platmon.sequence_positions ({pg_helpers.WHERE}), "
        f"or GRANT SELECT ON ALL SEQUENCES IN SCHEMA … TO {unseen['me']}"
    )


def judge(rows: Sequence[Row], cfg: Config, *, service: str, blind: str = "") -> Observed:
    """What the positions mean, nearest the end first. Pure. ``blind`` tells of sequences that were not seen."""
    samples = tuple(USED(row["used"], sequence=one_line(row["name"], limit=127)) for row in rows)
    return Observed(samples, tuple(_near_end(row, cfg, service, blind) for row in rows if 100 * row["used"] >= cfg.warn_percent))


def _near_end(row: Row, cfg: Config, service: str, blind: str) -> Finding:
    name, percent = one_line(row["name"], limit=127), 100 * row["used"]
    facts = {"last number": f"{row['last_value']:,} of {row['ends_at']:,}"}
    if row["table_name"] is not None:
        column, kind = one_line(row["column_name"], limit=63), row["column_type"]
        table = one_line(row["table_name"], limit=127)
        facts["column"] = f"{table}.{column}, {kind}"
        facts["cure"] = f"ALTER TABLE {table} ALTER COLUMN {column} TYPE bigint; rewrites the table under an exclusive lock: plan it"
    facts["sequence"] = f"ALTER SEQUENCE {name} AS bigint MAXVALUE …, and whoever refers to the column"
    if blind:
        facts["not seen"] = blind
    severity = Severity.P2 if percent >= cfg.critical_percent else None
    summary = f"the sequence {name} has given out {percent:.0f} % of its numbers ({service})"
    return NEAR_END(summary, labels={"sequence": name}, facts=facts, severity=severity, value=percent)


READABLE = SQL("""
FROM pg_sequence s JOIN pg_class k ON k.oid = s.seqrelid
WHERE (k.relpersistence = 'p' OR (k.relpersistence = 'u' AND NOT pg_is_in_recovery()))
""")

# The end is the sequence's own, or that of a narrower column. A sequence that counts down goes to its least number.
ENDS = SQL("""
WITH positions AS MATERIALIZED ({positions})
SELECT c.oid::regclass::text AS name, p.last_value, e.ends_at, (p.last_value::numeric / e.ends_at)::float8 AS used,
       d.refobjid::regclass::text AS table_name, quote_ident(a.attname) AS column_name, format_type(a.atttypid, NULL) AS column_type
FROM positions p JOIN pg_sequence q ON q.seqrelid = p.seqrelid JOIN pg_class c ON c.oid = p.seqrelid
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
                     AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
CROSS JOIN LATERAL (
    SELECT CASE WHEN q.seqincrement > 0 THEN least(q.seqmax, w.most) ELSE greatest(q.seqmin, -w.most - 1) END AS ends_at
    FROM (SELECT CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647
                                 ELSE 9223372036854775807 END AS most) w
) e
WHERE p.last_value IS NOT NULL AND NOT q.seqcycle AND e.ends_at <> 0 AND sign(p.last_value) = sign(e.ends_at)
ORDER BY used DESC, name LIMIT %(top)s
""")

BY_HELPER = ENDS.format(positions=SQL("SELECT seqrelid, last_value FROM platmon.sequence_positions()"))

BY_GRANT = ENDS.format(
    positions=SQL("SELECT s.seqrelid, pg_sequence_last_value(s.seqrelid::regclass) AS last_value {readable} AND {may_see}").format(
        readable=READABLE, may_see=SQL("has_sequence_privilege(s.seqrelid, 'USAGE, SELECT')")
    )
)

UNSEEN = SQL("""
SELECT count(*) FILTER (WHERE NOT seen) AS number, count(*) AS of, min(name) FILTER (WHERE NOT seen) AS first, current_user::text AS me
FROM (SELECT s.seqrelid::regclass::text AS name, has_sequence_privilege(s.seqrelid, 'USAGE, SELECT') AS seen {readable}) sequences
""").format(readable=READABLE)
