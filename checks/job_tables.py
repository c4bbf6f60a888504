"""What a configured table offers to the monitor's role: which columns it has, which may be read, and the grant that is missing.

Owns no statement on the table itself: the catalog is asked, so that a locked table is never waited for here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from psycopg.sql import SQL, Composable, Identifier

from monitor.errors import CannotLook
from monitor.probes_contract import Postgres

TABLE_NAME = r"^([A-Za-z_]\w*\.)?[A-Za-z_]\w*$"
"""Pattern of a configured table: ``schema.table`` or, in the schema public, ``table``."""

JOBS = "public.processing_jobs"
MAIL_JOBS = "public.email_sending_jobs"
PROGRESS = ("rows_ingested", "emails_sent", "emails_failed")
"""Columns that move when a job makes progress."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a check reads of a table."""

    needed: tuple[str, ...]
    """Without these the check cannot look."""
    where_there: tuple[str, ...] = ()
    """A table may lack these; one that has them must show them, or what is judged would be wrong."""
    nice: tuple[str, ...] = ()
    """Read where the role may, left out where not."""


def qualified(table: str) -> tuple[str, str]:
    """Schema and name of a configured table."""
    schema, _, name = table.rpartition(".")
    return schema or "public", name


def identifier(table: str) -> Identifier:
    return Identifier(*qualified(table))


# to_regclass() would take no lock either, but raises where the role may not enter the schema
COLUMNS = """
SELECT w.position, n.oid IS NOT NULL AND c.oid IS NOT NULL AS is_there, current_user::text AS me,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_enter,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
             AND has_column_privilege(c.oid, attnum, 'SELECT')) AS readable
FROM unnest(%(schemas)s::text[], %(names)s::text[]) WITH ORDINALITY AS w (schema, name, position)
LEFT JOIN pg_namespace n ON n.nspname = w.schema
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY w.position
"""


async def readable(pg: Postgres, wanted: Mapping[str, Wanted]) -> dict[str, frozenset[str]]:
    """The wanted columns that each table has and shows, by table. Raises ``CannotLook`` naming the table and the grant."""
    places = [qualified(table) for table in wanted]
    rows = await pg.fetch(COLUMNS, {"schemas": [schema for schema, _ in places], "names": [name for _, name in places]})
    found: dict[str, frozenset[str]] = {}
    for (table, want), (schema, _), row in zip(wanted.items(), places, rows, strict=True):
        if not row["is_there"]:
            raise CannotLook(f"the table {table} does not exist in the service's database: look at the check's table and the service's dsn")
        if not row["may_enter"]:
            raise CannotLook(f"the role {row['me']} may not enter the schema {schema}: GRANT USAGE ON SCHEMA {schema} TO {row['me']}")
        found[table] = _usable(table, want, set(row["columns"]), set(row["readable"]), me=row["me"])
    return found


async def may_read(pg: Postgres, table: str) -> bool:
    """Whether the table is there and the role may read all of it."""
    schema, name = qualified(table)
    (row,) = await pg.fetch(COLUMNS, {"schemas": [schema], "names": [name]})
    return bool(row["is_there"] and row["may_enter"] and row["columns"] == row["readable"])


def _usable(table: str, want: Wanted, columns: set[str], shown: set[str], *, me: str) -> frozenset[str]:
    missing = [column for column in want.needed if column not in columns]
    if missing:
        raise CannotLook(f"the table {table} has no column {', '.join(sorted(missing))}, which the runbook's table has")
    hidden = [column for column in (*want.needed, *want.where_there) if column in columns - shown]
    if hidden:
        listed = ", ".join(hidden)
        what = f"{listed} of the table {table}" if shown else f"the table {table}"
        raise CannotLook(f"the role {me} may not read {what}: GRANT SELECT ({listed}) ON {table} TO {me}")
    return frozenset(column for column in (*want.needed, *want.where_there, *want.nice) if column in shown)


def column(name: str, available: Iterable[str], *, cast: SQL, otherwise: SQL | None = None) -> Composable:
    """``name::cast`` where the column is available, else ``otherwise`` (NULL), of the same type."""
    if name in available:
        return SQL("{}::{}").format(Identifier(name), cast)
    return otherwise or SQL("NULL::{}").format(cast)


def alive_at(available: Iterable[str]) -> tuple[str, Composable]:
    """The best sign of life that the table has, and the expression that reads it: heartbeat, else start, else creation."""
    known = set(available)
    signs = [sign for sign in ("heartbeat_at", "started_at", "created_at") if sign in known]
    return signs[0], SQL("coalesce({})::timestamptz").format(SQL(", ").join(map(Identifier, signs)))


def grant(columns: Iterable[str], table: str) -> str:
    """For ``privileges``: what the role of the service's dsn must be granted."""
    return f"`GRANT SELECT ({', '.join(columns)}) ON {table} TO` the role of the service's `dsn`."
