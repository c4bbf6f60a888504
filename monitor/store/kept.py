"""What checks keep from one run to the next, one row per check instance."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from monitor.memory import Entry
from monitor.store.database import Database
from monitor.store.schema import kept


class KeptStore:
    """Rows are replaced whole; losing the newest ones costs a check one comparison."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        build: Any = sqlite.insert if self._database.is_sqlite else postgresql.insert
        new = build(kept)
        changed = {name: new.excluded[name] for name in ("shape", "at", "content")}
        rows = [{"instance": e.instance, "shape": e.shape, "at": e.at, "content": e.content.decode()} for e in entries]
        with self._database.write() as connection:
            connection.execute(new.on_conflict_do_update(index_elements=["instance"], set_=changed), rows)

    def all(self) -> tuple[Entry, ...]:
        query = select(kept.c.instance, kept.c.shape, kept.c.at, kept.c.content)
        with self._database.read() as connection:
            return tuple(Entry(row.instance, row.shape, row.at, row.content.encode()) for row in connection.execute(query))

    def retain(self, instances: Iterable[str]) -> None:
        """Forget what belongs to other instances than these."""
        with self._database.write() as connection:
            known = set(connection.execute(select(kept.c.instance)).scalars())
            gone = sorted(known - set(instances))
            for start in range(0, len(gone), 500):
                connection.execute(delete(kept).where(kept.c.instance.in_(gone[start : start + 500])))
