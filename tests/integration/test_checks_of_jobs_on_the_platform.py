"""The checks of jobs, mail and tenants on the running platform, as the monitor's role: what is broken for real is found, and no more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from pydantic import SecretStr

from checks.data_freshness import data_freshness
from checks.email_jobs import email_jobs
from checks.failed_jobs import failed_jobs
from checks.job_progress import job_progress
from checks.job_queue import job_queue
from checks.smtp_server import smtp_server
from checks.stuck_jobs import stuck_jobs
from checks.tenants import tenants
from monitor.domain import Observed
from monitor.plugins import AnyCheck, CheckContext, Service
from services.faults import find_fault
from services.platform import Platform, Ports
from tests.support.looking import after, look, looking_at
from tests.support.platform_tables import add_mail_job, run_sql

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with Platform(tmp_path_factory.mktemp("platform"), Ports.free()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ctx(platform: Platform) -> AsyncIterator[CheckContext]:
    dsn = platform.environment["MONITOR_POSTGRES_DSN"]
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as found:
        yield found


@asynccontextmanager
async def broken(platform: Platform, name: str) -> AsyncIterator[None]:
    fault = find_fault(name)
    try:
        await fault.provoke(platform)
        yield
    finally:
        await fault.heal(platform)


def kinds(observed: Observed) -> set[str]:
    return {finding.kind.name for finding in observed.findings}


async def until(seen: Callable[[set[str]], bool], check: AnyCheck, ctx: CheckContext, **config: object) -> Observed:
    """Look again and again, each look knowing the one before, until what is found is as wanted."""
    async with asyncio.timeout(20):
        observed = await look(check, ctx, **config)
        while not seen(kinds(observed)):
            await asyncio.sleep(0.1)
            observed = await look(check, after(ctx, observed), **config)
        return observed


async def test_a_platform_that_works_is_well(ctx: CheckContext) -> None:
    for check in (stuck_jobs, job_progress, data_freshness, job_queue, tenants, smtp_server):
        assert kinds(await look(check, ctx)) == set(), check.name


async def test_inc_003_no_progress(platform: Platform, ctx: CheckContext) -> None:
    async with broken(platform, "stuck-job"):
        observed = await until({"JobNoProgress"}.__eq__, job_progress, ctx, no_progress_after="1s")
        assert f"job {platform.stuck_job}" in dict(observed.findings[0].facts)
        assert kinds(await until({"StuckJob"}.__eq__, stuck_jobs, ctx, older_than="1s")) == {"StuckJob"}


async def test_inc_003_no_new_data(platform: Platform, ctx: CheckContext) -> None:
    async with broken(platform, "no-new-data"):
        (finding,) = (await look(data_freshness, ctx)).findings
        assert (finding.kind.name, dict(finding.labels)) == ("NoNewData", {"tenant": "demo"})
    assert (await look(data_freshness, ctx)).findings == ()


async def test_inc_004_smtp_connection_errors_failing_jobs_and_zero_sent(platform: Platform, ctx: CheckContext) -> None:
    run_sql(platform.services_dsn("test"), "DELETE FROM email_sending_jobs")  # what other tests sent
    async with broken(platform, "smtp-down"):
        (finding,) = (await look(smtp_server, ctx)).findings
        assert (finding.kind.name, dict(finding.facts)["used by"]) == ("MailServerDown", "1 tenant: demo")
        observed = await until({"EmailJobsFailing", "NoEmailSent"}.__eq__, email_jobs, ctx, due_after=0)
        assert "connection" in str(observed.findings).lower()
        assert kinds(await look(failed_jobs, ctx, table="email_sending_jobs")) == {"JobsFailed"}
    assert (await look(smtp_server, ctx)).findings == ()
    await until(set().__eq__, email_jobs, ctx, due_after=0)


async def test_inc_004_a_server_that_refuses_mails_is_reachable(platform: Platform, ctx: CheckContext) -> None:
    async with broken(platform, "smtp-refuses"):
        assert (await look(smtp_server, ctx)).findings == ()
        await until(lambda found: "EmailJobsFailing" in found, email_jobs, ctx)
        await until(lambda found: "EmailFailureRatio" in found, email_jobs, ctx, min_mails=1)
    await until(lambda found: "EmailJobsFailing" not in found, email_jobs, ctx)


async def test_inc_006_every_tenant_is_switched_off(platform: Platform, ctx: CheckContext) -> None:
    async with broken(platform, "tenant-disabled"):
        (finding,) = (await look(tenants, ctx)).findings
        assert (finding.kind.name, dict(finding.labels)) == ("TenantDisabled", {"tenant": "demo"})
    assert (await look(tenants, ctx)).findings == ()


async def test_a_queue_that_nobody_works_off(platform: Platform, ctx: CheckContext) -> None:
    async with broken(platform, "service-down"):  # the analytics service sends the mails
        add_mail_job(platform.services_dsn("test"), "waiting", "demo", created_ago="40 min")
        (finding,) = (await look(job_queue, ctx)).findings
        assert finding.kind.name == "MailJobsWaitTooLong"
        assert "none is in processing" in finding.summary
    await until(set().__eq__, job_queue, ctx)
