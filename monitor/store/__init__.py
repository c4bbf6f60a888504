"""The monitor's own state, outside the watched database: one store over SQLite (WAL) and PostgreSQL."""

from monitor.errors import StoreError
from monitor.store.database import BUSY_TIMEOUT_S, Database, open_readable
from monitor.store.heartbeats import HeartbeatStore
from monitor.store.history import AuditJournal, History, ReportLog, RunCount, RunHour, hour_of
from monitor.store.incidents import IncidentStore
from monitor.store.kept import KeptStore
from monitor.store.knowing import Causes
from monitor.store.obeyed import ObeyedStore
from monitor.store.outbox import ChannelQueue, Outbox
from monitor.store.recorded import Recorded, Sent
from monitor.store.repeats import Repeat
from monitor.store.schema import micros
from monitor.store.silences import SilenceStore
from monitor.store.steps import StepStore
from monitor.store.stretches import StretchStore
from monitor.store.thread import StoreThread


class Store:
    """Everything remembered. Methods block; the running program calls them on one thread of its own.

    Opening creates or upgrades the schema. Raises ``StoreError`` with place, cause and cure.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._database = Database(url, busy_timeout_s)
        try:
            self._database.upgrade()
        except StoreError:
            self._database.close()
            raise
        self.place = self._database.place
        self.incidents = IncidentStore(self._database)
        self.outbox = Outbox(self._database)
        self.history = History(self._database)
        self.reports = ReportLog(self._database)
        self.kept = KeptStore(self._database)
        self.heartbeats = HeartbeatStore(self._database)
        self.silences = SilenceStore(self._database)
        self.obeyed = ObeyedStore(self._database)
        self.stretches = StretchStore(self._database)
        self.steps = StepStore(self._database)
        self.journal = AuditJournal(self._database)

    def probe(self) -> None:
        """Prove that the state can be written now. Raises ``StoreError``."""
        with self._database.write() as connection:
            connection.exec_driver_sql("UPDATE reports SET attempts = attempts WHERE period = ''")

    def close(self) -> None:
        self._database.close()


__all__ = [
    "AuditJournal",
    "Causes",
    "ChannelQueue",
    "Database",
    "HeartbeatStore",
    "History",
    "Outbox",
    "Recorded",
    "Repeat",
    "ReportLog",
    "RunCount",
    "RunHour",
    "Sent",
    "SilenceStore",
    "Store",
    "StoreThread",
    "StretchStore",
    "hour_of",
    "micros",
    "open_readable",
]
