"""Silences: durable the moment they are made."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from monitor.domain import Silence
from monitor.errors import UsageError
from monitor.store.bulk import Query, untyped
from monitor.store.database import Database
from monitor.store.plain_rows import silence_from
from monitor.store.rows import silence_of, silence_row
from monitor.store.schema import EPOCH, micros, silences

_PLAIN = untyped(silences)
_SINCE = select(_PLAIN).where(_PLAIN.c.ends_at > bindparam("since")).order_by(_PLAIN.c.ends_at, _PLAIN.c.id)


class SilenceStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._since = Query(_SINCE, ("since",), database.dialect)
        self._read: tuple[Sequence[Any], tuple[Silence, ...]] = ((), ())
        """The rows that were read last, and what they say: every decision asks, and they hardly ever change."""

    def list(self, *, since: datetime | None = None) -> tuple[Silence, ...]:
        """Silences in the order of their ends; ``since`` leaves out those that had ended by then."""
        with self._database.read() as connection:
            rows = self._since.rows(connection, micros(since or EPOCH))
        read, said = self._read
        if rows != read:
            said = tuple(map(silence_from, rows))
            self._read = rows, said
        return said

    def find(self, silence_id: str) -> Silence:
        """One silence by its id, or the unique beginning of it. Raises ``UsageError``."""
        query = select(silences).where(silences.c.id.startswith(silence_id, autoescape=True)).limit(3)
        with self._database.read() as connection:
            found = [silence_of(row) for row in connection.execute(query).mappings()] if silence_id else []
        if len(found) == 1:
            return found[0]
        several = f"{silence_id!r} is the beginning of several silences: {', '.join(silence.id for silence in found)}"
        raise UsageError(several if found else f"no silence {silence_id!r}: `monitor silence list` lists them")

    def save(self, *changed: Silence) -> None:
        """Write silences, new or changed, in one transaction."""
        with self._database.write() as connection:
            for silence in changed:
                row = silence_row(silence)
                if connection.execute(update(silences).where(silences.c.id == silence.id).values(row)).rowcount == 0:
                    connection.execute(insert(silences).values(row))

    def prune(self, before: datetime) -> None:
        """Forget what expired before that moment."""
        with self._database.write() as connection:
            connection.execute(delete(silences).where(silences.c.ends_at < before))
