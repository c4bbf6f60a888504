"""Signed requests that have been obeyed, for as long as their signatures would be accepted again."""

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from monitor.store.database import Database
from monitor.store.schema import obeyed


class ObeyedStore:
    """Only what was signed rightly gets here, so whoever may fill it is trusted; what has expired goes with the next one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def knows(self, key: str) -> bool:
        with self._database.read() as connection:
            return connection.execute(select(obeyed.c.key).where(obeyed.c.key == _digest(key))).first() is not None

    def add(self, key: str, now: datetime, until: datetime) -> None:
        build: Any = sqlite.insert if self._database.is_sqlite else postgresql.insert
        with self._database.write() as connection:
            connection.execute(delete(obeyed).where(obeyed.c.until <= now))
            connection.execute(build(obeyed).values(key=_digest(key), until=until).on_conflict_do_nothing())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
