"""A worker over a table of jobs: claim, lease, progress, fenced end. Owns every write to the jobs' shared columns.

A job belongs to whoever holds its lease token while its status is ``processing``. Whoever lost it (cancelled by an operator,
lease expired) matches no row any more: its open transaction is rolled back, and the worker turns to the next job.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from services.common import Connection, Service
from services.errors import DatabaseUnavailable, ServiceError

POLL_S = 0.5
"""Between two looks for a queued job, and between two looks whether the job in hand is still ours."""
RELEASE_TIMEOUT_S = 5.0

CLAIM = sql.SQL("""
UPDATE {table} SET status = 'processing', started_at = now(), completed_at = NULL, error_message = NULL, heartbeat_at = now(),
       lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => %(lease_s)s), worker = %(worker)s
WHERE job_id = (
    SELECT job_id FROM {table}
    WHERE status = 'queued' OR (status = 'processing' AND lease_until < now())
    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING *
""")
HELD = sql.SQL("job_id = %(job_id)s AND lease_token = %(token)s AND status = 'processing'")
STILL_HELD = sql.SQL("SELECT 1 FROM {table} WHERE {held} AND lease_until > now()")
ADVANCE = sql.SQL("UPDATE {table} SET heartbeat_at = now(), lease_until = now() + make_interval(secs => %(lease_s)s){counts} WHERE {held}")
FINISH = sql.SQL(
    "UPDATE {table} SET status = %(status)s, error_message = %(error)s, completed_at = now(), lease_token = NULL, lease_until = NULL"
    " WHERE {held}"
)
RELEASE = sql.SQL("UPDATE {table} SET status = 'queued', started_at = NULL, lease_token = NULL, lease_until = NULL WHERE {held}")


class JobLost(Exception):
    """The job is no longer ours; what is not committed yet must not be."""


class JobFailed(Exception):
    """The job cannot be done; the message becomes its ``error_message``."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job: its row as it was claimed, and the token that proves the claim."""

    id: str
    tenant_id: str
    token: object
    row: dict[str, Any]


class JobQueue:
    """The jobs of one table (``processing_jobs`` or ``email_sending_jobs``), as one worker of one service sees them."""

    def __init__(self, service: Service, table: str, log: logging.Logger) -> None:
        self.log = log
        self._service = service
        self._table = sql.Identifier(table)
        self._worker = f"{service.name}@{socket.gethostname()}:{os.getpid()}"

    async def claim(self) -> Job | None:
        """The oldest job that waits, or whose lease expired; None when there is none. Raises ``DatabaseUnavailable``."""
        values = {"lease_s": self._service.settings.lease_s, "worker": self._worker}
        async with self._service.database() as connection:
            row = await (await connection.execute(CLAIM.format(table=self._table), values)).fetchone()
        return Job(row["job_id"], row["tenant_id"], row["lease_token"], row) if row else None

    async def advance(self, connection: Connection, job: Job, **counts: int) -> None:
        """Tell of progress, in the transaction that holds it. Raises ``JobLost``."""
        assignments = sql.SQL("").join(sql.SQL(", {} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in counts)
        values = {"lease_s": self._service.settings.lease_s, **counts}
        await self._write(connection, ADVANCE, job, values, counts=assignments)

    async def finish(self, job: Job, error: str | None = None) -> None:
        """Completed, or failed with ``error``. Raises ``JobLost`` or ``DatabaseUnavailable``."""
        async with self._service.database() as connection:
            await self._write(connection, FINISH, job, {"status": "failed" if error else "completed", "error": error})

    async def release(self, job: Job) -> None:
        """Give the job back, for another worker. Raises ``JobLost`` or ``DatabaseUnavailable``."""
        async with self._service.database() as connection:
            await self._write(connection, RELEASE, job, {})

    async def holds(self, job: Job) -> bool:
        """Whether the job is still ours. Raises ``DatabaseUnavailable``."""
        async with self._service.database() as connection:
            query = STILL_HELD.format(table=self._table, held=HELD)
            return bool(await (await connection.execute(query, {"job_id": job.id, "token": job.token})).fetchone())

    async def _write(
        self, connection: Connection, query: sql.SQL, job: Job, values: dict[str, Any], counts: sql.Composable | None = None
    ) -> None:
        parts = {"table": self._table, "held": HELD, **({"counts": counts} if counts is not None else {})}
        cursor = await connection.execute(query.format(**parts), {"job_id": job.id, "token": job.token, **values})
        if cursor.rowcount == 0:
            raise JobLost(job.id)


Run = Callable[[JobQueue, Job], Awaitable[None]]


async def work_forever(queue: JobQueue, run: Run) -> None:
    """Claim one job after the other and ``run`` it, until cancelled; the job in hand is then given back."""
    while True:
        try:
            job = await queue.claim()
        except DatabaseUnavailable as exc:
            queue.log.error("cannot look for jobs", extra={"detail": str(exc)})
            job = None
        if job is None:
            await asyncio.sleep(POLL_S)
        else:
            await _work(queue, job, run)


async def _work(queue: JobQueue, job: Job, run: Run) -> None:
    """Run one job to its end, or until it is no longer ours."""
    facts = {"job_id": job.id, "tenant_id": job.tenant_id}
    task = asyncio.ensure_future(_attempt(queue, job, run))
    try:
        while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
            await _check_held(queue, job)
        await task
    except JobLost:
        queue.log.warning("job abandoned: it was cancelled, or its lease expired", extra=facts)
    except DatabaseUnavailable as exc:
        queue.log.error("job interrupted; it goes back into the queue", extra={**facts, "detail": str(exc)})
        await _give_back(queue, job)
    except asyncio.CancelledError:
        await _stop(task)
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await _give_back(queue, job)
        except TimeoutError:
            queue.log.warning("job not given back; its lease will expire", extra=facts)
        raise
    finally:
        await _stop(task)


async def _attempt(queue: JobQueue, job: Job, run: Run) -> None:
    error: str | None = None
    try:
        await run(queue, job)
    except (JobLost, DatabaseUnavailable):
        raise
    except (JobFailed, ServiceError) as exc:
        error = str(exc)
    except psycopg.Error as exc:
        error = f"the database refused: {str(exc).strip()}"
    except Exception as exc:  # the runner: whatever a job runs into is that job's failure, and the next one goes on
        queue.log.exception("a job ran into a bug", extra={"job_id": job.id})
        error = f"{type(exc).__name__}: {exc}"
    await queue.finish(job, error)
    if error:
        queue.log.error("job failed", extra={"job_id": job.id, "tenant_id": job.tenant_id, "detail": error})
    else:
        queue.log.info("job completed", extra={"job_id": job.id, "tenant_id": job.tenant_id})


async def _check_held(queue: JobQueue, job: Job) -> None:
    """Raises ``JobLost``. Not being able to look is no reason to stop: the fence holds without this, it only frees the worker sooner."""
    try:
        if not await queue.holds(job):
            raise JobLost(job.id)
    except DatabaseUnavailable as exc:
        queue.log.error("cannot see whether the job is still ours", extra={"job_id": job.id, "detail": str(exc)})


async def _stop(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told already, or of a job that is lost


async def _give_back(queue: JobQueue, job: Job) -> None:
    """Release the job as soon as the database answers: without it there is no other work either."""
    while True:
        try:
            await queue.release(job)
        except JobLost:
            return
        except DatabaseUnavailable:
            await asyncio.sleep(POLL_S)
        else:
            return
