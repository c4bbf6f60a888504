"""Alerts that are sent again with nothing new: their moments, written where the row is still what the writer thinks it is."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Dialect, bindparam, literal_column, update

from monitor.domain import AlertState
from monitor.store.bulk import Statement
from monitor.store.schema import alerts


class Repeat(NamedTuple):
    """Moments are microseconds since 1970."""

    fingerprint: str
    ends: int
    unsaid: bool
    updated: int
    generator_url: str
    was_updated: int
    """When the alert was sent before, as far as the writer knows: two writers never lose each other's word."""
    was_ends: int
    """Its end before, likewise: what ends is moved when the wall clock is set."""


class Repeating:
    """The statement, compiled once for one database."""

    def __init__(self, dialect: Dialect) -> None:
        changes = {"ends_at": "ends", "ends_unsaid": "unsaid", "updated_at": "updated", "generator_url": "url"}
        columns = {name: alerts.c[name] for name in (*changes, "fingerprint")}
        new = {name: bindparam(short, type_=columns[name].type) for name, short in changes.items()}
        same = alerts.c.fingerprint == bindparam("print", type_=columns["fingerprint"].type)
        fires = alerts.c.state == literal_column(f"'{AlertState.FIRING.value}'")
        unchanged = alerts.c.updated_at == bindparam("was", type_=columns["updated_at"].type)
        unmoved = alerts.c.ends_at == bindparam("was_ends", type_=columns["ends_at"].type)
        names = ("print", "ends", "unsaid", "updated", "url", "was", "was_ends")
        self._statement = Statement(update(alerts).where(same, fires, unchanged, unmoved).values(new), names, dialect)

    def run(self, connection: Connection, repeats: Sequence[Repeat]) -> bool:
        """Write them. False when one of the rows was not as expected; those that were are written."""
        return self._statement.run(connection, repeats) == len(repeats)
