"""Opening the state database: SQLite (WAL, durable commits) or PostgreSQL, brought to the newest schema.

Owns the engine and the kinds of transactions; every database error leaves here as a ``StoreError``.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, inspect, make_url
from sqlalchemy import text as sql
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from monitor.errors import StoreError

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process's lock before it is an error."""
CHECKPOINT_PAGES = 4_000
"""Pages of the write-ahead log, 16 MiB, before they are copied into the file. After every thousand, as it comes, the copying is a fifth of
what a storm's writing costs, all of it while somebody waits for a commit."""
MIGRATIONS = Path(__file__).parent / "migrations"
_REVISION = re.compile(r'^(revision|down_revision) = "(\w+)"$', re.MULTILINE)
_LOCK_DECIDE = 7_201_001
"""PostgreSQL advisory lock: replicas decide one after the other."""


_POSTGRES = {
    "connect_timeout": 5,
    "options": "-c lock_timeout=5s -c statement_timeout=15s -c idle_in_transaction_session_timeout=30s",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Every wait has an end: the one store thread must not be held by a lock or a silent network."""


class Database:
    """An open state database. ``place`` names it in messages, without a password."""

    def __init__(self, url: str, busy_timeout_s: float = BUSY_TIMEOUT_S, *, read_only: bool = False) -> None:
        parsed = make_url(url)
        self.place = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._here = threading.local()
        """Of this thread: ``held``, its connection; ``writing``, its transaction that writes; ``begin``, how the next one begins."""
        self._held: list[Connection] = []
        if self.is_sqlite:
            self.place = parsed.database or ":memory:"
            if read_only:
                open_readable(Path(self.place))
            else:
                _make_folder(self.place)
            self._engine = create_engine(parsed, connect_args={"timeout": busy_timeout_s, "check_same_thread": False})
            _configure_sqlite(self._engine, self._here, ("query_only=ON",) if read_only else ("journal_mode=WAL", "synchronous=FULL"))
        else:
            options = f"{_POSTGRES['options']} -c default_transaction_read_only=on" if read_only else _POSTGRES["options"]
            arguments = {**_POSTGRES, "options": options}
            self._engine = create_engine(parsed, pool_size=2, max_overflow=2, pool_pre_ping=True, connect_args=arguments)

        assert self._engine.dialect.dbapi is not None
        self._driver_error = self._engine.dialect.dbapi.Error
        """What statements raise that go past SQLAlchemy."""

    @property
    def dialect(self) -> Dialect:
        """What statements are compiled for."""
        return self._engine.dialect

    def upgrade(self) -> None:
        """Bring the schema to the newest version, once, whoever else starts at the same moment. Raises ``StoreError``."""
        known, newest = read_revisions(MIGRATIONS)
        with self.write() as connection:
            current = _revisions_of(connection)
            if current - known:
                raise StoreError(
                    f"state {self.place} was written by a newer version of the monitor: upgrade the program, or use another file"
                )
            if current != newest:
                _migrate(connection)

    def require_current(self) -> None:
        """Raise ``StoreError`` unless the schema is this program's own."""
        _, newest = read_revisions(MIGRATIONS)
        with self.read() as connection:
            current = _revisions_of(connection)
        if current != newest:
            raise StoreError(f"state {self.place} was written by another version of the monitor: start this version once, it upgrades it")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that changes things, serialised against every other writer. Raises ``StoreError``."""
        with self._translated(), self._begun("BEGIN IMMEDIATE") as connection:
            if not self.is_sqlite:
                connection.execute(sql("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_DECIDE})
            self._here.writing = connection
            try:
                yield connection
            finally:
                self._here.writing = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot to read from; within ``write`` on the same thread, what that transaction sees. Raises ``StoreError``."""
        writing: Connection | None = getattr(self._here, "writing", None)
        if writing is not None:
            yield writing
            return
        with self._translated(), self._begun("BEGIN") as connection:
            yield connection

    def close(self) -> None:
        while self._held:
            self._held.pop().close()
        self._engine.dispose()

    @contextmanager
    def _begun(self, begin: str) -> Iterator[Connection]:
        """A connection in a transaction. A thread keeps its connection to a file: to take one from the pool costs four times as much."""
        held: Connection | None = getattr(self._here, "held", None)
        if self.is_sqlite and (held is None or held.closed):
            held = self._here.held = self._engine.connect()
            self._held.append(held)
        self._here.begin = begin
        if held is None or held.in_transaction():
            with self._engine.begin() as connection:
                yield connection
        else:
            with held.begin():
                yield held

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, self._driver_error) as exc:
            raise StoreError(f"state {self.place}: {_explain(exc)}") from exc
        except (UnicodeError, OverflowError) as exc:
            raise StoreError(f"state {self.place}: a text or number that cannot be stored: {type(exc).__name__}") from exc


def read_revisions(folder: Path) -> tuple[set[str], set[str]]:
    """All revisions of the schema, and the newest, as the migrations' files say.

    Alembic reads the same; but it, Mako and Pygments take 8 MiB and half of a start's time, and most starts find nothing to migrate.
    """
    written = [dict(_REVISION.findall(path.read_text())) for path in sorted((folder / "versions").glob("*.py"))]
    known = {lines["revision"] for lines in written}
    return known, known - {lines.get("down_revision") for lines in written}


def _revisions_of(connection: Connection) -> set[str]:
    if not inspect(connection).has_table("alembic_version"):
        return set()
    return set(connection.execute(sql("SELECT version_num FROM alembic_version")).scalars())


def _migrate(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - see read_revisions
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def open_readable(path: Path) -> None:
    """Raise ``StoreError`` when a SQLite file does not exist, so that reading commands never create an empty state."""
    if not path.exists():
        raise StoreError(f"state {path} does not exist: the monitor has not run with this configuration yet")


def _make_folder(place: str) -> None:
    if place == ":memory:":
        return
    try:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"state {place}: its folder cannot be made: {exc.strerror}") from exc


def _configure_sqlite(engine: Engine, here: threading.local, pragmas: tuple[str, ...]) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.isolation_level = None  # transactions are begun below, explicitly
        cursor = dbapi_connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        assert connection.connection.driver_connection is not None
        connection.connection.driver_connection.execute(here.begin)


_CURES = (
    ("readonly database", "the file is read-only: give the monitor's account write access to it and to its folder"),
    ("unable to open", "the file cannot be opened: check the path and the account's rights on its folder"),
    ("locked", "another process holds the file locked: end it, or choose another state file"),
    ("disk is full", "the disk is full: free space; checking goes on, nothing can be recorded"),
    ("disk i/o error", "the disk cannot be read or written"),
    ("not a database", "the file is not a state database, or is damaged: move it away and restart"),
    ("malformed", "the file is damaged: move it away and restart"),
)


def _explain(exc: Exception) -> str:
    """One line for a person: the cure where the driver's message is a known one of SQLite's, else its first line."""
    cause = exc.orig if isinstance(exc, DatabaseError) and exc.orig is not None else exc
    first_line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    for words, cure in _CURES:
        if words in first_line.lower():
            return f"{cure} ({first_line})"
    return first_line
