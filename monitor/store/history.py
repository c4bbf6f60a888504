"""Run counts by hour, report periods and the audit journal: the parts of the state that only grow, and are bounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Dialect, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from monitor.domain import AuditEntry, Outcome
from monitor.store.bulk import Statement, untyped
from monitor.store.database import Database
from monitor.store.schema import audit, micros, reports, run_hours


@dataclass(frozen=True, slots=True)
class RunCount:
    """What one check instance saw in a period: runs by outcome, and seconds per run."""

    instance: str
    check: str
    service: str
    ok: int
    found: int
    blind: int
    mean_s: float
    max_s: float


_COLUMNS = tuple(one.name for one in run_hours.columns)


@dataclass(slots=True)
class RunHour:
    """Runs of one check instance in one hour, to be added to those that are stored. The names are those of the columns."""

    instance: str
    hour: datetime
    check_name: str
    service: str
    ok: int = 0
    found: int = 0
    blind: int = 0
    duration_sum_s: float = 0.0
    duration_max_s: float = 0.0

    def add(self, outcome: Outcome, duration_s: float) -> None:
        if outcome is Outcome.OK:
            self.ok += 1
        elif outcome is Outcome.FOUND:
            self.found += 1
        else:
            self.blind += 1
        self.duration_sum_s += duration_s
        self.duration_max_s = max(self.duration_max_s, duration_s)

    def merge(self, other: "RunHour") -> None:
        self.ok += other.ok
        self.found += other.found
        self.blind += other.blind
        self.duration_sum_s += other.duration_sum_s
        self.duration_max_s = max(self.duration_max_s, other.duration_max_s)


class History:
    """Hourly counts: one row per instance and hour."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._adding = _adding(database.dialect)

    def record(self, hours: Sequence[RunHour]) -> None:
        """Add them to what is stored, in one transaction."""
        if not hours:
            return
        with self._database.write() as connection:
            self._adding.run(connection, [_values(one) for one in hours])

    def counts(self, since: datetime, until: datetime) -> tuple[RunCount, ...]:
        """Per instance, over the whole hours that begin in ``[since, until)``."""
        runs = func.sum(run_hours.c.ok + run_hours.c.found + run_hours.c.blind)
        query = (
            select(
                run_hours.c.instance,
                func.max(run_hours.c.check_name).label("check"),
                func.max(run_hours.c.service).label("service"),
                func.sum(run_hours.c.ok).label("ok"),
                func.sum(run_hours.c.found).label("found"),
                func.sum(run_hours.c.blind).label("blind"),
                (func.sum(run_hours.c.duration_sum_s) / func.nullif(runs, 0)).label("mean_s"),
                func.max(run_hours.c.duration_max_s).label("max_s"),
            )
            .where(run_hours.c.hour >= since, run_hours.c.hour < until)
            .group_by(run_hours.c.instance)
            .order_by(run_hours.c.instance)
        )
        with self._database.read() as connection:
            return tuple(RunCount(**{**dict(row), "mean_s": row["mean_s"] or 0.0}) for row in connection.execute(query).mappings())

    def prune(self, before: datetime) -> None:
        with self._database.write() as connection:
            connection.execute(delete(run_hours).where(run_hours.c.hour < before))


def _adding(dialect: Dialect) -> Statement:
    is_sqlite = dialect.name == "sqlite"
    new: Any = (sqlite.insert if is_sqlite else postgresql.insert)(untyped(run_hours))
    known = run_hours.c
    largest = func.max if is_sqlite else func.greatest
    added = {name: known[name] + new.excluded[name] for name in ("ok", "found", "blind", "duration_sum_s")}
    added["duration_max_s"] = largest(known.duration_max_s, new.excluded.duration_max_s)
    return Statement(new.on_conflict_do_update(index_elements=["instance", "hour"], set_=added), _COLUMNS, dialect, _COLUMNS)


def _values(one: RunHour) -> tuple[Any, ...]:
    """In the order of ``_COLUMNS``."""
    return (
        one.instance,
        micros(one.hour),
        one.check_name,
        one.service,
        one.ok,
        one.found,
        one.blind,
        one.duration_sum_s,
        one.duration_max_s,
    )


class ReportLog:
    """Which report periods are due and which were sent: each period once, also over restarts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def want(self, period: str, now: datetime) -> None:
        """Note that a period's report is due. Does nothing when it is known already."""
        with self._database.write() as connection:
            if connection.execute(select(reports.c.period).where(reports.c.period == period)).first() is None:
                row = {"period": period, "state": "due", "attempts": 0, "next_attempt_at": now}
                connection.execute(insert(reports).values(row))

    def due(self, now: datetime) -> tuple[str, ...]:
        query = select(reports.c.period).where(reports.c.state == "due", reports.c.next_attempt_at <= now)
        with self._database.read() as connection:
            return tuple(connection.execute(query.order_by(reports.c.period)).scalars())

    def take(self, period: str, now: datetime, until: datetime) -> bool:
        """Take a due period for one attempt: nobody else tries before ``until``. False when it is not due any more."""
        due = (reports.c.period == period, reports.c.state == "due", reports.c.next_attempt_at <= now)
        with self._database.write() as connection:
            return connection.execute(update(reports).where(*due).values(next_attempt_at=until)).rowcount == 1

    def sent(self, period: str, now: datetime) -> None:
        with self._database.write() as connection:
            values = {"state": "sent", "sent_at": now, "attempts": reports.c.attempts + 1, "last_error": None}
            connection.execute(update(reports).where(reports.c.period == period).values(values))

    def failed(self, period: str, reason: str, retry_at: datetime) -> None:
        with self._database.write() as connection:
            values = {"attempts": reports.c.attempts + 1, "last_error": reason, "next_attempt_at": retry_at}
            connection.execute(update(reports).where(reports.c.period == period).values(values))

    def last(self, prefix: str) -> str | None:
        """The newest period known that begins with ``prefix``."""
        query = select(func.max(reports.c.period)).where(reports.c.period.startswith(prefix, autoescape=True))
        with self._database.read() as connection:
            newest: str | None = connection.execute(query).scalar()
            return newest


_AUDIT = tuple(audit.c[name] for name in ("at", "plan", "digest", "phase", "who", "why", "detail"))


class AuditJournal:
    """Append-only: there is no update and no delete here, and each entry is durable before ``append`` returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entry: AuditEntry) -> None:
        row = {
            "at": entry.at,
            "plan": entry.plan,
            "digest": entry.digest,
            "phase": entry.phase,
            "who": entry.who,
            "why": entry.why,
            "detail": entry.detail,
        }
        with self._database.write() as connection:
            connection.execute(insert(audit).values(row))

    def newest(self, limit: int = 200) -> tuple[AuditEntry, ...]:
        """The newest entries of all plans, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(*_AUDIT).order_by(audit.c.id.desc()).limit(limit)).mappings().all()
            return tuple(AuditEntry(**dict(row)) for row in reversed(rows))

    def entries(self, plan: str, since: datetime) -> tuple[AuditEntry, ...]:
        """Entries of a plan since a moment, oldest first."""
        query = select(*_AUDIT).where(audit.c.plan == plan, audit.c.at >= since).order_by(audit.c.id)
        with self._database.read() as connection:
            return tuple(AuditEntry(**dict(row)) for row in connection.execute(query).mappings())


def hour_of(moment: datetime) -> datetime:
    """The beginning of the hour that a moment lies in."""
    return moment - timedelta(minutes=moment.minute, seconds=moment.second, microseconds=moment.microsecond)
