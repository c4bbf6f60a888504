"""The analytics service (8001): reports over the ingested events, and the jobs that mail them."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field, model_validator

from services import mailing, reports
from services.common import Running, Tenant, build_app
from services.errors import InvalidValue, NotFound
from services.reports import Period
from services.settings import settings_or_exit

DEFAULT_DAYS = 30
DAYS_MAX = 400
RECIPIENTS_MAX = 500

router = APIRouter(tags=["analytics"])

QUEUE = """
INSERT INTO email_sending_jobs (tenant_id, recipients, total_emails, subject, report, start_date, end_date)
VALUES (%(tenant_id)s, %(recipients)s, %(total)s, %(subject)s, %(report)s, %(start_date)s, %(end_date)s)
RETURNING job_id, status, total_emails, created_at
"""

FIND = """
SELECT job_id, tenant_id, status, total_emails, emails_sent, emails_failed, created_at, started_at, completed_at, error_message
FROM email_sending_jobs WHERE job_id = %(job_id)s AND tenant_id = %(tenant_id)s
"""


def period_of(start_date: date | None = None, end_date: date | None = None) -> Period:
    """The days asked for; the last ``DEFAULT_DAYS`` when nothing is. Raises ``InvalidValue``."""
    try:
        last = end_date or (datetime.now(UTC).date() if start_date is None else start_date + timedelta(days=DEFAULT_DAYS - 1))
        first = start_date or last - timedelta(days=DEFAULT_DAYS - 1)
    except OverflowError as exc:
        raise InvalidValue("start_date and end_date: expected days of this era") from exc
    if not 0 <= (last - first).days < DAYS_MAX:
        raise InvalidValue(f"expected start_date to be at or before end_date, and at most {DAYS_MAX} days")
    return Period(first, last)


Days = Annotated[Period, Depends(period_of)]


@router.get("/reports/revenue")
async def revenue(service: Running, identity: Tenant, period: Days) -> dict[str, Any]:
    """Purchases and revenue per day and currency."""
    return _report(period, await reports.revenue(service, identity.tenant_id, period))


@router.get("/reports/top-pages")
async def top_pages(
    service: Running, identity: Tenant, period: Days, limit: Annotated[int, Query(ge=1, le=100)] = reports.TOP_PAGES_LIMIT
) -> dict[str, Any]:
    """The pages looked at most, with their views and distinct visitors."""
    return _report(period, await reports.top_pages(service, identity.tenant_id, period, limit))


def _report(period: Period, rows: reports.Rows) -> dict[str, Any]:
    return {"start_date": period.start_date, "end_date": period.end_date, "rows": rows}


Address = Annotated[str, Field(pattern=r"^[^@\s<>,;:\"()\[\]\\\x00-\x1f\x7f]+@[A-Za-z0-9.-]+$", max_length=254)]


class SendEmail(BaseModel):
    """A report and whom to send it to. A recipient named twice gets one mail."""

    recipients: Annotated[list[Address], Field(min_length=1, max_length=RECIPIENTS_MAX)]
    subject: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    report: Literal["revenue", "top-pages"]
    start_date: date | None = None
    end_date: date | None = None

    @model_validator(mode="after")
    def _once_each(self) -> "SendEmail":
        self.recipients = list(dict.fromkeys(self.recipients))
        return self


@router.post("/email/send", status_code=202)
async def send_email(service: Running, identity: Tenant, body: SendEmail) -> dict[str, Any]:
    """Queue a report for mailing; the worker takes it up within a second unless another job is in hand."""
    period = period_of(body.start_date, body.end_date)
    values = {
        "tenant_id": identity.tenant_id,
        "recipients": body.recipients,
        "total": len(body.recipients),
        "subject": body.subject,
        "report": body.report,
        "start_date": period.start_date,
        "end_date": period.end_date,
    }
    async with service.database() as connection:
        row = await (await connection.execute(QUEUE, values)).fetchone()
    assert row is not None
    return row


@router.get("/email/jobs/{job_id}")
async def get_email_job(service: Running, identity: Tenant, job_id: str) -> dict[str, Any]:
    """One e-mail job of the tenant."""
    async with service.database() as connection:
        row = await (await connection.execute(FIND, {"job_id": job_id, "tenant_id": identity.tenant_id})).fetchone()
    if row is None:
        raise NotFound(f"no e-mail job {job_id} of this tenant")
    return row


app = build_app("analytics-service", router, settings_or_exit(), works=(mailing.work,))
