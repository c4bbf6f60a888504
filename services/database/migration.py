"""Applies ``migrations/*.sql`` in the order of their names, each once and in its own transaction, under an advisory lock."""

from hashlib import sha256
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from services.database.roles import grant_tables

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_KEY = 7_206_148_231
"""Any number that nobody else on this database uses."""
LOCK_TIMEOUT = "30s"

RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       text PRIMARY KEY,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class DatabaseError(Exception):
    """The schema cannot be brought up to date; the message names the migration and the cause."""


def migrate(dsn: str, *, folder: Path = MIGRATIONS) -> list[str]:
    """Apply what is missing; returns the names applied now, e.g. ``["001_platform.sql"]``.

    Raises ``DatabaseError`` for a migration that fails (it leaves nothing behind) or was changed after it was applied, and
    ``psycopg.OperationalError`` when the database cannot be reached.
    """
    with psycopg.connect(make_conninfo(dsn, connect_timeout=5), autocommit=True) as connection:
        connection.execute(sql.SQL("SET lock_timeout = {}").format(LOCK_TIMEOUT))
        try:
            connection.execute("SELECT pg_advisory_lock(%(key)s)", {"key": LOCK_KEY})
        except psycopg.errors.LockNotAvailable as exc:
            raise DatabaseError(f"another migration has been running for {LOCK_TIMEOUT}: wait for it, or end it") from exc
        connection.execute("SET client_min_messages = warning")
        connection.execute(RECORD)
        done: dict[str, str] = dict(connection.execute("SELECT name, sha256 FROM schema_migrations").fetchall())
        applied = [path.name for path in sorted(folder.glob("*.sql")) if _apply(connection, path, done)]
        grant_tables(connection)
        return applied


def _apply(connection: psycopg.Connection, path: Path, done: dict[str, str]) -> bool:
    text = path.read_bytes()
    digest = sha256(text).hexdigest()
    if path.name in done:
        if done[path.name] != digest:
            raise DatabaseError(f"{path}: changed after it was applied: put it back, and write the change as a new migration")
        return False
    try:
        with connection.transaction():
            connection.execute(text)
            connection.execute(
                "INSERT INTO schema_migrations (name, sha256) VALUES (%(name)s, %(sha256)s)", {"name": path.name, "sha256": digest}
            )
    except psycopg.Error as exc:
        raise DatabaseError(f"{path}: {str(exc).strip()}") from exc
    return True


def create_database(admin_dsn: str, name: str) -> bool:
    """Create the database unless it exists; whether it was created. ``admin_dsn`` names any other database of the server."""
    with psycopg.connect(make_conninfo(admin_dsn, connect_timeout=5), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %(name)s", {"name": name}).fetchone():
            return False
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return True
