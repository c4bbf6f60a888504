"""Stretches of runs that saw the same: written in batches, read for replays."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from monitor.domain import Outcome, Severity
from monitor.store.database import Database
from monitor.store.schema import stretches
from monitor.stretches import Seen, Stretch

_SEEN = msgspec.json.Decoder(tuple[tuple[str, tuple[tuple[str, str], ...], int, int | None, float | None, str], ...])


class StretchStore:
    """A row is replaced whole by the same stretch, longer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, taken: Sequence[Stretch]) -> None:
        if not taken:
            return
        build: Any = sqlite.insert if self._database.is_sqlite else postgresql.insert
        new = build(stretches)
        longer = {name: new.excluded[name] for name in ("last_at", "runs", "early")}
        rows = {(one.instance, one.first_at): _row(one) for one in taken}
        with self._database.write() as connection:
            connection.execute(new.on_conflict_do_update(index_elements=["instance", "first_at"], set_=longer), list(rows.values()))

    def all(self) -> Iterator[Stretch]:
        """Every stretch that is kept, in the order of their begins."""
        query = select(stretches).order_by(stretches.c.first_at, stretches.c.instance)
        with self._database.read() as connection:
            for row in connection.execute(query).mappings():
                yield _of(row)

    def prune(self, before: datetime) -> None:
        """Forget what ended before that moment."""
        with self._database.write() as connection:
            connection.execute(delete(stretches).where(stretches.c.last_at < before))


def _row(one: Stretch) -> dict[str, Any]:
    found = [[s.kind, s.labels, int(s.severity), None if s.said is None else int(s.said), s.value, s.summary] for s in one.seen]
    return {
        "instance": one.instance,
        "first_at": one.first_at,
        "last_at": one.last_at,
        "runs": one.runs,
        "outcome": one.outcome.value,
        "findings": msgspec.json.encode(found).decode() if found else "",
        "error": one.error,
        "early": " ".join(map(str, one.early)),
        "shape": one.shape,
        "starts": one.starts,
    }


def _of(row: Any) -> Stretch:
    found = _SEEN.decode(row["findings"]) if row["findings"] else ()
    return Stretch(
        instance=row["instance"],
        first_at=row["first_at"],
        last_at=row["last_at"],
        runs=row["runs"],
        outcome=Outcome(row["outcome"]),
        seen=tuple(
            Seen(kind, labels, Severity(severity), None if said is None else Severity(said), value, summary)
            for kind, labels, severity, said, value, summary in found
        ),
        error=row["error"],
        early=tuple(map(int, row["early"].split())),
        shape=row["shape"],
        starts=row["starts"],
    )
