"""BigQuery, seen from the data service: one day of a tenant's events, and whether it answers.

google-cloud-bigquery blocks and cannot be interrupted, so each call gets a thread of its own that may be abandoned.

What is sent (``jobs.query``, one POST to ``BIGQUERY_URL/bigquery/v2/projects/PROJECT/queries``): ``EVENTS`` with the named
parameters ``day`` (DATE) and ``tenant_id`` (STRING), or ``SELECT 1``; rows come with useInt64Timestamp.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import GoogleAPIError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from requests.exceptions import RequestException

from services.settings import Settings

T = TypeVar("T")

EVENTS = """
SELECT event_name, event_timestamp, user_id, session_id, page, value, currency
FROM `{project}.analytics.events`
WHERE event_date = @day AND tenant_id = @tenant_id
ORDER BY event_timestamp
"""


class WarehouseError(Exception):
    """BigQuery refused, could not be reached, or answered what cannot be understood."""


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the table ``events``. ``value`` is money in ``currency``; page views have neither."""

    name: str
    at: datetime
    user_id: str
    session_id: str
    page: str
    value: Decimal | None
    currency: str | None


async def in_own_thread(work: Callable[[], T], name: str) -> T:
    """Run blocking ``work``; when the awaiting task is cancelled, the thread is left behind.

    A daemon thread rather than an executor's: the interpreter waits for an executor's threads at exit, and a call that
    BigQuery never answers would keep the service from stopping.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - carried over to the awaiting task, which raises it
            future.set_exception(exc)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)


class Warehouse:
    """The endpoint at ``BIGQUERY_URL``. Every method raises ``WarehouseError``."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.bigquery_url
        self._project = settings.bigquery_project
        self._timeout_s = settings.bigquery_timeout_s

    async def fetch_events(self, tenant_id: str, day: date, job_id: str) -> list[Event]:
        """All events of one day (UTC), in order of time."""
        parameters = [
            bigquery.ScalarQueryParameter("day", "DATE", day),
            bigquery.ScalarQueryParameter("tenant_id", "STRING", tenant_id),
        ]
        sql = EVENTS.format(project=self._project)
        rows = await in_own_thread(lambda: self._query(sql, parameters, self._timeout_s), f"bigquery-{job_id}")
        try:
            return [_event(row) for row in rows]
        except (KeyError, AttributeError, TypeError, InvalidOperation) as exc:
            raise WarehouseError(f"BigQuery answered rows that are not events: {type(exc).__name__}: {exc}") from exc

    async def ping(self, timeout_s: float) -> None:
        """Ask for ``SELECT 1``. Raises ``TimeoutError`` too."""
        async with asyncio.timeout(timeout_s):
            await in_own_thread(lambda: self._query("SELECT 1", [], timeout_s), "bigquery-ping")

    def _query(self, sql: str, parameters: list[Any], timeout_s: float) -> list[Any]:
        if not self._url:
            raise WarehouseError("BIGQUERY_URL is not set")
        try:
            with bigquery.Client(
                project=self._project,
                credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
                client_options=ClientOptions(api_endpoint=self._url),
            ) as client:
                config = bigquery.QueryJobConfig(query_parameters=parameters)
                # No retries inside: they would go on silently for ten minutes, and the job's heartbeat would not say why.
                rows = client.query_and_wait(
                    sql, job_config=config, retry=None, job_retry=None, api_timeout=timeout_s, wait_timeout=timeout_s
                )
                return list(rows)
        except (GoogleAPIError, GoogleAuthError, RequestException) as exc:
            raise WarehouseError(f"BigQuery: {type(exc).__name__}: {str(exc)[:500]}") from exc
        except (KeyError, TypeError, AttributeError, ValueError) as exc:  # what the client makes of garbage
            raise WarehouseError(f"BigQuery answered what cannot be understood: {type(exc).__name__}: {exc}") from exc


def _event(row: Any) -> Event:
    value = row["value"]
    return Event(
        name=row["event_name"],
        at=row["event_timestamp"],
        user_id=row["user_id"],
        session_id=row["session_id"],
        page=row["page"],
        value=None if value is None else Decimal(str(value)),
        currency=row["currency"],
    )
