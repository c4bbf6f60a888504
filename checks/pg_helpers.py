"""Two functions that a database's owner may install so that the monitor sees what pg_monitor alone does not show.

They show widths of columns and positions of sequences: no value of any row.
"""

from monitor.probes_contract import Postgres

SCHEMA = "platmon"

INSTALL = """\
CREATE SCHEMA IF NOT EXISTS platmon;
REVOKE ALL ON SCHEMA platmon FROM PUBLIC;

-- How wide the columns are, without their most common values: pg_stats shows nothing of tables that a role may not read.
CREATE OR REPLACE FUNCTION platmon.column_widths()
RETURNS TABLE (relid oid, width float8, columns int, nullable boolean, without_statistics int)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attrelid, sum((1 - coalesce(s.stanullfrac, 0)) * coalesce(s.stawidth, 0))::float8, count(*)::int,
           bool_or(coalesce(s.stanullfrac, 0) > 0), count(*) FILTER (WHERE s.starelid IS NULL)::int
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_statistic s ON s.starelid = a.attrelid AND s.staattnum = a.attnum AND NOT s.stainherit
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'm')
      AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    GROUP BY a.attrelid $$;

-- Where the sequences stand: pg_sequences.last_value is NULL without a right on each of them.
CREATE OR REPLACE FUNCTION platmon.sequence_positions()
RETURNS TABLE (seqrelid oid, last_value bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.seqrelid, pg_sequence_last_value(s.seqrelid::regclass) FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
    WHERE c.relpersistence = 'p' OR (c.relpersistence = 'u' AND NOT pg_is_in_recovery()) $$;

REVOKE ALL ON FUNCTION platmon.column_widths(), platmon.sequence_positions() FROM PUBLIC;
GRANT USAGE ON SCHEMA platmon TO pg_monitor;
GRANT EXECUTE ON FUNCTION platmon.column_widths(), platmon.sequence_positions() TO pg_monitor;
"""
"""Run once in each watched database, by a superuser."""

WHERE = "docs/postgresql.md"
"""Where people find the statements."""

USABLE = """
SELECT coalesce(bool_and(has_function_privilege(p.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')), false) AS usable
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'platmon' AND p.proname = %(function)s AND p.prosecdef AND p.pronargs = 0
"""


async def usable(pg: Postgres, function: str) -> bool:
    """Whether this role may call ``platmon.FUNCTION``. Raises ``CannotLook``."""
    rows = await pg.fetch(USABLE, {"function": function})
    return bool(rows[0]["usable"])
