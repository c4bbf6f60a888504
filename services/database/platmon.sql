-- What the monitor documents in docs/postgresql.md: a superuser installs it so that pg_monitor sees widths and sequences.

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
