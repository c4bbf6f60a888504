"""A platform with stuck jobs, and the runbook's executor on it. As a program: one apply that is held at a point, to be killed there."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from monitor.clock import SystemClock
from monitor.domain import AuditEntry
from monitor.plugins import Service
from monitor.probes.outside import Outside
from monitor.store import Store
from runbook.cancel_stuck_jobs import CANCEL_STUCK_JOBS, CancelStuckJobs
from runbook.executor import Caps, apply, prepare
from runbook.journal import Journal
from runbook.steps import Limits
from services.database import migrate

COLUMNS = """
    tenant_id text, status text NOT NULL, data_types text[], start_date date, end_date date,
    created_at {time} NOT NULL DEFAULT now(), started_at {time}, completed_at {time}, error_message text
"""
TABLES = {
    "bare": "CREATE TABLE public.processing_jobs (job_id text PRIMARY KEY," + COLUMNS.format(time="timestamptz") + ")",
    "naive": "CREATE TABLE public.processing_jobs (job_id uuid PRIMARY KEY," + COLUMNS.format(time="timestamp") + ")",
}
"""The runbook's own columns; and once more as many a platform has them: uuid keys, and UTC times that do not say so."""
SHAPES = ("platform", *TABLES)

INSERT = """
INSERT INTO public.processing_jobs (job_id, tenant_id, status, data_types, start_date, end_date, created_at, started_at)
VALUES (%(job_id)s, 't1', 'processing', '{events}', '2025-12-01', '2025-12-01', now() - interval '1 day', now() - %(silent)s::interval)
"""


@dataclass(frozen=True)
class Ground:
    """One database with ``processing_jobs`` in one shape. ``dsn`` is the superuser's, ``reader`` the monitor's, ``fixer`` that of plans."""

    shape: str
    dsn: str
    reader: str
    fixer: str

    def run(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True, options="-c TimeZone=UTC") as admin:
            cursor = admin.execute(sql.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, number: int, silent: str = "45 min") -> str:
        """A job in processing, silent for that long."""
        job_id = f"00000000-0000-4000-8000-{number:012d}"
        self.run(INSERT, job_id=job_id, silent=silent)
        if self.shape == "platform":
            self.run(
                "UPDATE processing_jobs SET heartbeat_at = started_at, lease_token = gen_random_uuid(), lease_until = started_at"
                " WHERE job_id = %(job_id)s",
                job_id=job_id,
            )
        return job_id

    def change(self, job_id: str, assignments: str) -> None:
        self.run(f"UPDATE processing_jobs SET {assignments} WHERE job_id = %(job_id)s", job_id=job_id)

    def revive(self, job_id: str) -> None:
        """A sign of life, as a worker gives it."""
        self.change(job_id, "heartbeat_at = now()" if self.shape == "platform" else "started_at = now()")

    def jobs(self) -> dict[str, tuple[str, str | None]]:
        """Status and error message by job."""
        return {row[0]: (row[1], row[2]) for row in self.run("SELECT job_id::text, status, error_message FROM processing_jobs")}

    def waiting(self) -> int:
        """Sessions of this database that wait for a lock."""
        (row,) = self.run("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        return int(row[0])

    def advisory_locks(self) -> int:
        (row,) = self.run(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return int(row[0])

    @contextmanager
    def row_held(self, job_id: str) -> Iterator[None]:
        """Another session works on the job's row."""
        with psycopg.connect(self.dsn) as worker:
            worker.execute("SELECT 1 FROM processing_jobs WHERE job_id = %(job_id)s FOR UPDATE", {"job_id": job_id})
            yield

    @property
    def service(self) -> Service:
        return Service("postgres", dsn=SecretStr(self.reader), fix_dsn=SecretStr(self.fixer))

    async def connect(self, dsn: str | None = None) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(dsn or self.fixer, application_name="monitor-fix")


@contextmanager
def ground(dsn: str, shape: str) -> Iterator[Ground]:
    """The table, and two roles of its own with the rights the platform gives them."""
    tag = os.urandom(5).hex()
    made = Ground(shape, dsn, make_conninfo(dsn, user=f"reader_{tag}"), make_conninfo(dsn, user=f"fixer_{tag}"))
    if shape == "platform":
        migrate(dsn)
        made.run("INSERT INTO tenant_config (id, name) VALUES ('t1', 'Tenant')")
    else:
        made.run(TABLES[shape])
    made.run(f"CREATE ROLE reader_{tag} LOGIN IN ROLE pg_monitor")
    made.run(f"CREATE ROLE fixer_{tag} LOGIN")
    made.run(f"GRANT SELECT ON processing_jobs TO reader_{tag}")
    made.run(f"GRANT SELECT, UPDATE ON processing_jobs TO fixer_{tag}")
    try:
        yield made
    finally:
        made.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename IN (%(a)s, %(b)s)",
            a=f"reader_{tag}",
            b=f"fixer_{tag}",
        )
        made.run(f"DROP OWNED BY reader_{tag}, fixer_{tag}")
        made.run(f"DROP ROLE reader_{tag}, fixer_{tag}")


class HeldJournal:
    """The real journal, and a process that stops for ever around one of its entries: to be killed there."""

    def __init__(self, journal: Journal, hold: str) -> None:
        self._journal = journal
        self._hold = hold

    def append(self, entry: AuditEntry) -> None:
        if self._hold == f"before {entry.phase}":
            self._stop()
        self._journal.append(entry)
        if self._hold == f"after {entry.phase}":
            self._stop()

    def entries(self, plan: str, since: datetime) -> tuple[AuditEntry, ...]:
        return self._journal.entries(plan, since)

    def _stop(self) -> None:
        sys.stdout.write("held\n")
        sys.stdout.flush()
        threading.Event().wait()


async def _apply(dsn: str, reader: str, fixer: str, state: str, hold: str) -> None:
    clock = SystemClock()
    outside = Outside(clock)
    place = Ground("", dsn, reader, fixer)
    ctx = outside.runbook_context(place.service, {})
    params = CancelStuckJobs()
    plan = await prepare(CANCEL_STUCK_JOBS, ctx, params)
    async with await place.connect() as connection:
        await apply(
            CANCEL_STUCK_JOBS,
            ctx,
            params,
            shown_digest=plan.digest,
            who="anna",
            why="INC-003",
            connection=connection,
            journal=HeldJournal(Store(state).journal, hold),
            caps=Caps(limits=Limits(lock_s=60, statement_s=60)),
        )
    await outside.close()


if __name__ == "__main__":
    asyncio.run(_apply(*sys.argv[1:6]))
