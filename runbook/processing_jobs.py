"""The table ``processing_jobs`` as the runbook reads it: which jobs are stuck, and what was seen of each.

Works on the runbook's own columns and, where the table has them, on a heartbeat and a lease: one statement for every shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monitor.plugins import RunbookContext
from monitor.probes_contract import Postgres

STUCK_AFTER_S = 30 * 60.0
"""The runbook's limit, where the configuration has no check ``stuck_jobs`` for the service."""
"""The runbook's threshold."""

FENCES = ("started_at", "heartbeat_at", "lease_token", "lease_until", "worker")
"""Columns that change when a job comes back to life. Those the table has are compared, value by value, before a job is cancelled."""


def stuck_after_s(ctx: RunbookContext) -> float:
    """Silent for how long a job counts as stuck: as the check ``stuck_jobs`` on this service is configured."""
    return float(getattr(ctx.checks.get("stuck_jobs"), "older_than", STUCK_AFTER_S))


@dataclass(frozen=True, slots=True)
class StuckJob:
    """A job in ``processing`` that has been silent for too long, as it was seen."""

    job_id: str
    silent_s: float
    """Seconds since its last sign of life: heartbeat, else start, else creation."""
    columns: tuple[tuple[str, str | None], ...]
    """The runbook's columns, for people."""
    seen: tuple[tuple[str, str | None], ...]
    """The fence columns that the table has, with the values seen, as PostgreSQL reads them back."""

    @property
    def has_heartbeat(self) -> bool:
        return any(name == "heartbeat_at" for name, _ in self.seen)


@dataclass(frozen=True, slots=True)
class StuckJobs:
    """The oldest stuck jobs, oldest first, and how many there are in all."""

    jobs: tuple[StuckJob, ...]
    total: int


COLUMNS = ("job_id", "tenant_id", "status", "created_at", "started_at", "heartbeat_at", "worker", "error_message")

# A column that the table may not have is read through the row's JSON; times come out in ISO 8601 whatever the session's settings.
STUCK = """
SELECT to_jsonb(j) - 'error_message' AS job, left(j.error_message, 300) AS error_message,
       extract(epoch FROM now() - s.alive_at)::float8 AS silent_s, count(*) OVER () AS total
FROM public.processing_jobs AS j
CROSS JOIN LATERAL (
    SELECT coalesce((to_jsonb(j) ->> 'heartbeat_at')::timestamptz, j.started_at, j.created_at) AS alive_at
) AS s
WHERE j.status = 'processing'
  AND s.alive_at < now() - make_interval(secs => %(older_than_s)s)
  AND (%(job_id)s::text IS NULL OR j.job_id::text = %(job_id)s)
ORDER BY s.alive_at, j.job_id
LIMIT %(limit)s
"""


async def find_stuck(pg: Postgres, *, older_than_s: float, limit: int, job_id: str | None = None) -> StuckJobs:
    """The jobs in ``processing`` without a sign of life for ``older_than_s`` seconds. Raises ``CannotLook``."""
    rows = await pg.fetch(STUCK, {"older_than_s": older_than_s, "job_id": job_id, "limit": limit})
    return StuckJobs(tuple(_job(row) for row in rows), int(rows[0]["total"]) if rows else 0)


def _job(row: dict[str, Any]) -> StuckJob:
    raw = {**row["job"], "error_message": row["error_message"]}
    return StuckJob(
        job_id=str(raw["job_id"]),
        silent_s=float(row["silent_s"]),
        columns=tuple((name, _readable(name, _text(raw[name]))) for name in COLUMNS if name in raw),
        seen=tuple((name, _text(raw[name])) for name in FENCES if name in raw),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _readable(name: str, value: str | None) -> str | None:
    """A time to the second, as people write it; the monitor's session speaks UTC."""
    return f"{value[:19].replace('T', ' ')} UTC" if value and name.endswith("_at") else value


STATE = """
SELECT j.status::text AS status,
       extract(epoch FROM now() - coalesce((to_jsonb(j) ->> 'heartbeat_at')::timestamptz, j.started_at, j.created_at))::float8 AS silent_s
FROM public.processing_jobs AS j WHERE j.job_id::text = %(job_id)s
"""


async def describe_job(pg: Postgres, job_id: str) -> str:
    """One sentence on a job that is not stuck: gone, finished, or alive. Raises ``CannotLook``."""
    rows = await pg.fetch(STATE, {"job_id": job_id})
    if not rows:
        return f"no job {job_id} exists"
    status, silent_s = rows[0]["status"], rows[0]["silent_s"]
    if status != "processing":
        return f"job {job_id} is {status}, not processing"
    return f"job {job_id} is processing and gave a sign of life {age(silent_s or 0.0)} ago"


PROCESSING = """
SELECT job_id::text AS job_id FROM public.processing_jobs WHERE status = 'processing' AND job_id::text = ANY(%(job_ids)s::text[])
"""


async def still_processing(pg: Postgres, job_ids: Sequence[str]) -> frozenset[str]:
    """Which of these jobs are in ``processing`` now. Raises ``CannotLook``."""
    rows = await pg.fetch(PROCESSING, {"job_ids": list(job_ids)})
    return frozenset(str(row["job_id"]) for row in rows)


def age(seconds: float) -> str:
    """A duration as people say it: ``40 s``, ``42 min``, ``3 h 05 min``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    if whole < 90 * 60:
        return f"{whole // 60} min"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
