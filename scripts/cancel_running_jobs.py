"""Cancel ingestion jobs that are stuck in processing (INC-003): those without a sign of life for 30 minutes.

    python scripts/cancel_running_jobs.py [--older-than MINUTES | --all | --job-id ID] [--dry-run]

A job's sign of life is its heartbeat, else its start. Connects as the services do (POSTGRES_* in the environment or in .env).
The worker of a cancelled job notices within a second, commits nothing more, and turns to the next job.
"""

import argparse
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg.rows import class_row

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python scripts/cancel_running_jobs.py` works from a bare checkout

from services.settings import SettingsError, load_settings

STUCK_AFTER_MIN = 30.0
LIMITS = "-c statement_timeout=30s -c lock_timeout=5s"

# The whole condition stands in both statements: a job that came back to life in between is left alone.
CONDITION = """
    (status = 'processing' OR (status = 'queued' AND %(job_id)s::text IS NOT NULL))
    AND (%(job_id)s::text IS NULL OR job_id = %(job_id)s)
    AND (%(older_than_min)s::float8 IS NULL
         OR coalesce(heartbeat_at, started_at, created_at) < now() - make_interval(secs => %(older_than_min)s::float8 * 60))
"""

FIND = f"""
SELECT job_id, tenant_id, status, started_at, heartbeat_at, worker FROM processing_jobs WHERE {CONDITION}
ORDER BY coalesce(heartbeat_at, started_at, created_at)
"""  # noqa: S608 - our own constant

CANCEL = f"""
UPDATE processing_jobs SET status = 'failed', error_message = %(message)s, completed_at = now(), lease_token = NULL, lease_until = NULL
WHERE job_id = %(this)s AND {CONDITION}
"""  # noqa: S608 - our own constant


@dataclass(frozen=True, slots=True)
class RunningJob:
    job_id: str
    tenant_id: str
    status: str
    started_at: datetime | None
    heartbeat_at: datetime | None
    worker: str | None

    def __str__(self) -> str:
        seen = f"{self.heartbeat_at:%Y-%m-%d %H:%M:%S %Z}" if self.heartbeat_at else "never"
        return f"{self.job_id} (tenant {self.tenant_id}, {self.status}, last progress {seen}, worker {self.worker or '-'})"


def minutes(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError("expected minutes, 0 or more")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cancel ingestion jobs that are stuck in processing.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--older-than", type=minutes, default=STUCK_AFTER_MIN, metavar="MINUTES", help="without progress for so long (30)")
    which.add_argument("--all", action="store_true", help="every job in processing, however lively")
    which.add_argument("--job-id", metavar="ID", help="this job, in processing or queued, however lively")
    parser.add_argument("--dry-run", action="store_true", help="only say which jobs it would cancel")
    return parser.parse_args()


def cancel(dsn: str, options: argparse.Namespace) -> None:
    """Find, tell, cancel one by one. Each cancellation commits on its own."""
    by_age = not (options.all or options.job_id)
    values = {
        "job_id": options.job_id,
        "older_than_min": options.older_than if by_age else None,
        "message": "Manually cancelled - stuck" if by_age else "Manually cancelled",
    }
    with psycopg.connect(dsn, autocommit=True, options=LIMITS) as connection:
        with connection.cursor(row_factory=class_row(RunningJob)) as cursor:
            jobs = cursor.execute(FIND, values).fetchall()
        if not jobs:
            print("nothing to cancel" + (f": no job in processing is without progress for {options.older_than:g} min" if by_age else ""))
        for job in jobs:
            if options.dry_run:
                print(f"would cancel {job}")
            elif connection.execute(CANCEL, {**values, "this": job.job_id}).rowcount:
                print(f"cancelled {job}")
            else:
                print(f"left alone {job}: it moved on meanwhile")


def main() -> None:
    options = parse()
    try:
        cancel(load_settings().dsn("cancel-running-jobs"), options)
    except SettingsError as exc:
        sys.exit(f"cancel_running_jobs: {exc}")
    except psycopg.errors.UndefinedTable:
        sys.exit("cancel_running_jobs: the database has no table processing_jobs: run scripts/init_db.py, or check POSTGRES_DB")
    except psycopg.errors.LockNotAvailable:
        sys.exit("cancel_running_jobs: a job's row is locked for more than 5 s: see who holds it (pg_blocking_pids), then try again")
    except psycopg.OperationalError as exc:
        sys.exit(
            f"cancel_running_jobs: cannot use the database: {str(exc).strip()}\n"
            "Check POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD, and that PostgreSQL is running."
        )
    except psycopg.Error as exc:
        sys.exit(f"cancel_running_jobs: {str(exc).strip()}")


if __name__ == "__main__":
    main()
