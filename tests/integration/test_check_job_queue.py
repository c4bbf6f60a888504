"""``job_queue`` on the platform's tables, 15 and 18, as the monitor's role."""

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from checks.job_queue import job_queue
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import look, looking_at
from tests.support.platform_tables import add_job, add_mail_job, add_tenants, platform_database, run_sql


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    add_tenants(database, "shop")
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as found:
        yield found


def found(observed: Observed) -> list[tuple[str, str | None, dict[str, str]]]:
    return [(finding.kind.name, finding.kind.incident, dict(finding.labels)) for finding in observed.findings]


def measured(observed: Observed) -> dict[tuple[str, str], float]:
    return {(sample.metric.name.removeprefix("monitor_jobs_"), sample.labels[0]): round(sample.value) for sample in observed.samples}


async def test_empty_queues_are_well(ctx: CheckContext) -> None:
    observed = await look(job_queue, ctx)
    assert observed.findings == ()
    assert set(measured(observed).values()) == {0}
    assert len(observed.samples) == 4


async def test_old_jobs_are_found_in_the_queue_they_wait_in(database: str, ctx: CheckContext) -> None:
    add_job(database, "new", "shop", created_ago="5 min")
    add_job(database, "old\n1", "shop", created_ago="40 min")
    add_job(database, "done", "shop", created_ago="40 days", status="completed")
    add_mail_job(database, "m1", "shop", created_ago="31 min")
    add_mail_job(database, "m2", "shop", created_ago="50 min", started_ago="45 min", status="processing")
    observed = await look(job_queue, ctx)
    assert found(observed) == [
        ("JobsWaitTooLong", "INC-003", {"table": "processing_jobs"}),
        ("MailJobsWaitTooLong", "INC-004", {"table": "email_sending_jobs"}),
    ]
    jobs, mails = observed.findings
    assert jobs.summary == "2 jobs in processing_jobs wait, the oldest for 40 min, and none is in processing (postgres)"
    assert dict(jobs.facts)["oldest"] == "job old 1, for 40 min"
    assert dict(jobs.facts)["in processing"] == "none: is the service that works them off running?"
    assert jobs.value == pytest.approx(2400, abs=5)
    assert mails.summary == "1 job in email_sending_jobs waits, the oldest for 31 min (postgres)"
    assert (dict(mails.facts)["in processing"], dict(mails.facts)["last taken up"]) == ("1", "45 min ago")
    assert measured(observed)["queued", "processing_jobs"] == 2
    assert measured(observed)["queued_oldest_seconds", "email_sending_jobs"] == pytest.approx(1860, abs=5)


async def test_a_deep_queue_is_found(database: str, ctx: CheckContext) -> None:
    run_sql(
        database,
        """INSERT INTO processing_jobs (tenant_id, data_types, start_date, end_date)
           SELECT 'shop', '{events}', '2026-01-01', '2026-01-01' FROM generate_series(1, 101)""",
    )
    observed = await look(job_queue, ctx)
    assert found(observed) == [("JobQueueDeep", "INC-003", {"table": "processing_jobs"})]
    assert observed.findings[0].value == 101
    assert (await look(job_queue, ctx, max_depth=101)).findings == ()
    both = await look(job_queue, ctx, tables=[], mail_tables=["public.processing_jobs"], max_depth=5)
    assert found(both) == [("MailQueueDeep", "INC-004", {"table": "processing_jobs"})]


async def test_a_missing_table_and_a_missing_right_are_named(database: str, ctx: CheckContext) -> None:
    with pytest.raises(CannotLook, match=r"the table public\.jobs does not exist"):
        await look(job_queue, ctx, tables=["public.jobs"])
    run_sql(
        database, "REVOKE SELECT ON email_sending_jobs FROM monitor_ro", "GRANT SELECT (job_id, status) ON email_sending_jobs TO monitor_ro"
    )
    with pytest.raises(CannotLook, match=r"GRANT SELECT \(created_at, started_at\) ON public\.email_sending_jobs TO monitor_ro"):
        await look(job_queue, ctx)
