"""INC-003: an ingestion job makes no progress, and no new data arrives."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx2
import psycopg

from services.faults.fault import Fault, FaultError, switch

if TYPE_CHECKING:
    from services.platform import Platform

STUCK_WITHIN_S = 15.0
ENDED_WITHIN_S = 30.0
MISSED_DAYS = 3
TABLES = ("purchase", "add_to_cart", "page_view")


async def _hang_a_job(platform: "Platform") -> None:
    try:
        headers = await platform.log_in()
        if platform.stuck_job and await _status(platform, platform.stuck_job, headers) == "processing":
            return
        await switch(platform, "bigquery", "hang")
        yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
        order = {"start_date": yesterday, "end_date": yesterday, "data_types": ["events"]}
        answer = await platform.http.post(f"{platform.urls['data']}/api/v1/ingest/start", json=order, headers=headers)
        answer.raise_for_status()
        platform.stuck_job = str(answer.json()["job_id"])
        deadline = time.monotonic() + STUCK_WITHIN_S
        while await _status(platform, platform.stuck_job, headers) != "processing":
            if time.monotonic() > deadline:
                raise FaultError(f"the job {platform.stuck_job} was not taken up within {STUCK_WITHIN_S:g} s: another one is in hand")
            await asyncio.sleep(0.1)
    except httpx2.HTTPError as exc:
        raise FaultError(f"the ingestion cannot be started: {str(exc) or type(exc).__name__}") from exc


async def _answer_bigquery(platform: "Platform") -> None:
    """BigQuery answers again, and the job that hung has come to its end: what it writes late is in nobody's way."""
    await switch(platform, "bigquery", "ok")
    if platform.stuck_job is None:
        return
    try:
        headers = await platform.log_in()
        deadline = time.monotonic() + ENDED_WITHIN_S
        while await _status(platform, platform.stuck_job, headers) == "processing":
            if time.monotonic() > deadline:
                raise FaultError(f"the job {platform.stuck_job} did not end within {ENDED_WITHIN_S:g} s although BigQuery answers again")
            await asyncio.sleep(0.1)
    except httpx2.HTTPError as exc:
        raise FaultError(f"the ingestion cannot be asked how it ended: {str(exc) or type(exc).__name__}") from exc
    platform.stuck_job = None


async def _status(platform: "Platform", job_id: str, headers: dict[str, str]) -> str:
    answer = await platform.http.get(f"{platform.urls['data']}/api/v1/jobs/{job_id}", headers=headers)
    answer.raise_for_status()
    return str(answer.json()["status"])


async def _lose_new_data(platform: "Platform") -> None:
    """As if the ingestion of the last days had never come: their rows are not there."""
    async with await psycopg.AsyncConnection.connect(platform.services_dsn("fault")) as connection:
        for table in TABLES:
            statement = psycopg.sql.SQL("DELETE FROM {} WHERE event_timestamp > now() - make_interval(days => %(days)s)")
            await connection.execute(statement.format(psycopg.sql.Identifier(table)), {"days": MISSED_DAYS})


async def _ingest_again(platform: "Platform") -> None:
    await platform.reseed()


FAULTS = (
    Fault(
        "stuck-job",
        "INC-003",
        "data",
        "BigQuery stops answering while an ingestion job is in hand, and the job sits in processing.",
        _hang_a_job,
        _answer_bigquery,
    ),
    Fault(
        "no-new-data",
        "INC-003",
        "data",
        f"The events of the last {MISSED_DAYS} days never arrived.",
        _lose_new_data,
        _ingest_again,
    ),
)
