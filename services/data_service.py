"""The data service (8002): ingestion jobs, and whether the sources of data can be reached."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import date
from typing import Annotated, Any, Literal

import asyncssh
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, model_validator

from services import ingestion
from services.common import Running, Tenant, build_app
from services.errors import NotFound
from services.settings import Settings, settings_or_exit
from services.warehouse import Warehouse, WarehouseError

PROBE_TIMEOUT_S = 5.0
DAYS_MAX = 400

router = APIRouter(tags=["data"])

START = """
INSERT INTO processing_jobs (tenant_id, data_types, start_date, end_date)
VALUES (%(tenant_id)s, %(data_types)s, %(start_date)s, %(end_date)s)
RETURNING job_id, status, created_at
"""

FIND = """
SELECT job_id, tenant_id, status, data_types, start_date, end_date, created_at, started_at, completed_at, heartbeat_at,
       rows_ingested, error_message
FROM processing_jobs WHERE job_id = %(job_id)s AND tenant_id = %(tenant_id)s
"""


class StartIngestion(BaseModel):
    """Which days (both included) of which data to ingest; ``events`` is all three kinds."""

    start_date: date
    end_date: date
    data_types: Annotated[list[Literal["events", "purchase", "add_to_cart", "page_view"]], Field(min_length=1, max_length=4)]

    @model_validator(mode="after")
    def _is_a_range(self) -> "StartIngestion":
        days = (self.end_date - self.start_date).days + 1
        if not 1 <= days <= DAYS_MAX:
            raise ValueError(f"expected start_date to be at or before end_date, and at most {DAYS_MAX} days")
        return self


@router.post("/ingest/start", status_code=202)
async def start_ingestion(service: Running, identity: Tenant, body: StartIngestion) -> dict[str, Any]:
    """Queue a job; a worker takes it up within a second unless another job is in hand."""
    async with service.database() as connection:
        row = await (await connection.execute(START, {"tenant_id": identity.tenant_id, **body.model_dump()})).fetchone()
    assert row is not None
    ingestion.log.info("job queued", extra={"job_id": row["job_id"], "tenant_id": identity.tenant_id, **body.model_dump(mode="json")})
    return row


@router.get("/jobs/{job_id}")
async def get_job(service: Running, identity: Tenant, job_id: str) -> dict[str, Any]:
    """One ingestion job of the tenant."""
    async with service.database() as connection:
        row = await (await connection.execute(FIND, {"job_id": job_id, "tenant_id": identity.tenant_id})).fetchone()
    if row is None:
        raise NotFound(f"no job {job_id} of this tenant")
    return row


@router.get("/availability")
async def availability(service: Running, identity: Tenant) -> JSONResponse:
    """Whether BigQuery and SFTP can be used now; 503 names those that cannot."""
    bigquery, sftp = await asyncio.gather(
        _look("BigQuery", Warehouse(service.settings).ping(PROBE_TIMEOUT_S)), _look("SFTP", _list_sftp(service.settings))
    )
    missing = [name for name, seen in (("bigquery", bigquery), ("sftp", sftp)) if not seen["available"]]
    body = {"bigquery": bigquery, "sftp": sftp}
    if not missing:
        return JSONResponse(body)
    reasons = {name: body[name]["error"] for name in missing}
    service.log.error("sources unavailable", extra={"tenant_id": identity.tenant_id, "unavailable": reasons})
    return JSONResponse({**body, "error": "source_unavailable", "detail": f"unavailable: {', '.join(missing)}"}, 503)


async def _look(what: str, probe: Awaitable[None]) -> dict[str, Any]:
    started = time.perf_counter()
    error = None
    try:
        await probe
    except TimeoutError:
        error = f"{what} did not answer within {PROBE_TIMEOUT_S:g} s"
    except (WarehouseError, asyncssh.Error, OSError) as exc:
        error = str(exc) or type(exc).__name__
    return {"available": error is None, "duration_s": round(time.perf_counter() - started, 6), "error": error}


async def _list_sftp(settings: Settings) -> None:
    """Log in and list the folder; the host key must be a known one. Raises ``asyncssh.Error``, ``OSError`` or ``TimeoutError``."""
    if not settings.sftp_host:
        raise OSError("SFTP_HOST is not set")
    async with (
        asyncio.timeout(PROBE_TIMEOUT_S),
        asyncssh.connect(
            settings.sftp_host,
            settings.sftp_port,
            username=settings.sftp_user,
            password=settings.sftp_password,
            known_hosts=settings.sftp_known_hosts or (),
            client_keys=None,
            agent_path=None,
            config=None,
        ) as connection,
        connection.start_sftp_client() as sftp,
    ):
        await sftp.listdir(".")


app = build_app("data-service", router, settings_or_exit(), works=(ingestion.work,))
