"""The data service's work: copies a tenant's events from BigQuery into ``purchase``, ``add_to_cart`` and ``page_view``.

One transaction a day of data. It replaces the day, so that a job run twice, or two jobs over one day, never count an event twice.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import date, timedelta

from psycopg import sql

from services.common import Connection, Service
from services.jobs import Job, JobFailed, JobQueue, work_forever
from services.warehouse import Event, Warehouse, WarehouseError

TABLE = "processing_jobs"
MONEY = ("value", "currency")
COLUMNS = ("tenant_id", "event_date", "event_timestamp", "user_id", "session_id", "page")
EVENT_TABLES = {"purchase": (*COLUMNS, *MONEY), "add_to_cart": (*COLUMNS, *MONEY), "page_view": COLUMNS}
"""The table of each kind of event, with its columns."""

log = logging.getLogger("services.ingestion")

LOCK_DAY = "SELECT pg_advisory_xact_lock(hashtextextended(%(tenant_id)s || ' ' || %(day)s::date, 0))"
CLEAR_DAY = sql.SQL("DELETE FROM {table} WHERE tenant_id = %(tenant_id)s AND event_date = %(day)s")


async def work(service: Service) -> None:
    """Work off ``processing_jobs`` until cancelled."""
    warehouse = Warehouse(service.settings)

    async def run(queue: JobQueue, job: Job) -> None:
        await ingest(service, warehouse, queue, job)

    await work_forever(JobQueue(service, TABLE, log), run)


async def ingest(service: Service, warehouse: Warehouse, queue: JobQueue, job: Job) -> None:
    """Ingest every day of the job. Raises ``JobFailed``, ``JobLost`` or ``DatabaseUnavailable``."""
    tables = tables_of(job.row["data_types"])
    days = list(days_between(job.row["start_date"], job.row["end_date"]))
    rows = 0
    log.info("job started", extra={"job_id": job.id, "tenant_id": job.tenant_id, "days": len(days), "tables": tables})
    for number, day in enumerate(days, 1):
        facts = {"job_id": job.id, "day": day.isoformat(), "progress": f"{number}/{len(days)}"}
        log.info("asking BigQuery", extra=facts)
        try:
            events = await warehouse.fetch_events(job.tenant_id, day, job.id)
        except WarehouseError as exc:
            raise JobFailed(f"{day}: {exc}") from exc
        async with service.database() as connection:
            rows += await replace_day(connection, job.tenant_id, day, tables, events)
            # Last, so that an operator who cancels never waits for our rows' locks. Raises JobLost: nothing of this day stays.
            await queue.advance(connection, job, rows_ingested=rows)
        log.info("day ingested", extra={**facts, "rows_ingested": rows})


async def replace_day(connection: Connection, tenant_id: str, day: date, tables: Sequence[str], events: Sequence[Event]) -> int:
    """Put a tenant's events of one day in the place of those that were there; returns the rows written."""
    values = {"tenant_id": tenant_id, "day": day}
    await connection.execute(LOCK_DAY, values)
    written = 0
    for table in tables:
        await connection.execute(CLEAR_DAY.format(table=sql.Identifier(table)), values)
        columns = EVENT_TABLES[table]
        copy_in = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns)))
        async with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
            for event in (event for event in events if event.name == table):
                row = (tenant_id, day, event.at, event.user_id, event.session_id, event.page, event.value, event.currency)
                await copy.write_row(row[: len(columns)])
                written += 1
    return written


def tables_of(data_types: Sequence[str]) -> tuple[str, ...]:
    """The event tables that a job's ``data_types`` mean: ``events`` is all of them."""
    return tuple(table for table in EVENT_TABLES if "events" in data_types or table in data_types)


def days_between(first: date, last: date) -> Iterator[date]:
    """Every day from ``first`` to ``last``, both included."""
    for offset in range((last - first).days + 1):
        yield first + timedelta(days=offset)
