"""Every symptom that the runbook lists, provoked for real on the running platform, and found by the shipped configuration.

Within two intervals, which are shorter here than any that ships.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx2
import psycopg
import pytest
import pytest_asyncio
from fastapi import FastAPI, Response
from pydantic import SecretStr

from checks.login import login
from monitor.plugins import Service
from services.access import USERNAME
from services.database.seed import DEMO_TENANT
from services.faults import find_fault
from services.faults.fault import switch
from services.platform import Platform, Ports
from tests.conftest import require
from tests.platform_parts import serving
from tests.support.looking import look, looking_at
from tests.support.platform_tables import add_mail_job, run_sql
from tests.support.shipped import ShippedChecks, shipped_checks
from tests.support.world import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUSY = 24
"""Requests at once: three times as many as the pool of one service has connections."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with Platform(tmp_path_factory.mktemp("platform"), Ports.free()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def shipped(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ShippedChecks]:
    """As in the running monitor, the connection to PostgreSQL is held before anything breaks."""
    async with shipped_checks(platform, tmp_path_factory.mktemp("monitor")) as checks:
        await checks.is_well("pg_connections/postgres")
        yield checks


@asynccontextmanager
async def broken(platform: Platform, name: str) -> AsyncIterator[None]:
    fault = find_fault(name)
    await log_in(platform)
    try:
        await fault.provoke(platform)
        yield
    finally:
        await fault.heal(platform)


async def log_in(platform: Platform) -> dict[str, str]:
    """The headers of a user, once the services have recovered from what was broken before."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await platform.log_in()
            except httpx2.HTTPError:
                await asyncio.sleep(0.2)


async def ask(platform: Platform, url: str, headers: dict[str, str], *, timeout_s: float = 20) -> int:
    """Status of one request; 0 when it was not answered in time."""
    try:
        return (await platform.http.get(url, headers=headers, timeout=timeout_s)).status_code
    except httpx2.HTTPError:
        return 0


async def ask_often(platform: Platform, url: str, headers: dict[str, str], *, timeout_s: float = 20) -> list[int]:
    return list(await asyncio.gather(*(ask(platform, url, headers, timeout_s=timeout_s) for _ in range(BUSY))))


def in_background(work: Callable[[], Awaitable[object]]) -> "asyncio.Task[object]":
    async def run() -> object:
        return await work()

    return asyncio.create_task(run())


REPORT = "/api/v1/reports/revenue"


async def test_a_platform_where_nothing_was_broken_is_well(tmp_path: Path) -> None:
    async with Platform(tmp_path / "platform", Ports.free()) as whole, shipped_checks(whole, tmp_path / "monitor") as checks:
        for key in checks.instances:
            result = await checks.look(key)
            if key not in {"disk/host", "memory/host", "load/host"}:  # the machine of the tests may be anything
                assert (result.error, [finding.summary for finding in result.observed.findings]) == (None, []), key


# --- INC-001: Service Not Responding ---------------------------------------------------------------------------------


async def test_inc_001_health_check_returns_non_200(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "idp-down"):
        finding = await shipped.finds("idp_health/idp", "ServiceDown")
        assert "answers, but with status 503" in finding.summary


async def test_inc_001_connection_refused_errors(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "service-down"):
        finding = await shipped.finds("http_health/analytics", "ServiceDown")
        assert "connection refused" in finding.summary
        assert (await shipped.finds("processes/analytics", "ProcessMissing")).kind.incident == "INC-001"
        await shipped.finds("instances/analytics", "AllInstancesDown")


async def test_inc_001_timeout_errors(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "service-hang"):
        finding = await shipped.finds("http_health/data", "ServiceDown")
        assert "no answer in time" in finding.summary


# --- INC-002: Database Connection Exhausted --------------------------------------------------------------------------


async def test_inc_002_too_many_connections_errors(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "connections-exhausted"):
        finding = await shipped.finds("pg_connections/postgres", "ConnectionsExhausted")
        assert finding.kind.incident == "INC-002"
        assert "report-export" in dict(finding.facts)["by application"]


async def test_inc_002_slow_api_responses(platform: Platform, shipped: ShippedChecks) -> None:
    headers = await log_in(platform)
    url = f"{platform.urls['auth']}/api/v1/verify"
    async with broken(platform, "connections-exhausted"):
        platform.child("auth").kill()  # a pool that held its connections would still serve
        await platform.start_service("auth")
        requests = in_background(lambda: ask_often(platform, url, headers))
        finding = await shipped.finds_growing("service_requests/auth", "SlowRequests")
        assert finding.kind.incident == "INC-005"
        await requests


async def test_inc_002_connection_timeout_errors(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "handshakes-stuck"):
        finding = await shipped.finds("pg_connections/postgres", "HandshakesStuck")
        assert finding.kind.incident == "INC-002"


# --- INC-003: Ingestion Job Stuck ------------------------------------------------------------------------------------

AGED = "UPDATE processing_jobs SET started_at = now() - interval '31 min', heartbeat_at = now() - interval '31 min' WHERE job_id = %(job)s"


async def test_inc_003_job_in_processing_for_more_than_30_minutes(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "stuck-job"):
        run_sql(platform.services_dsn("test"), AGED, job=platform.stuck_job)
        finding = await shipped.finds("stuck_jobs/postgres", "StuckJob")
        assert platform.stuck_job in str(finding.facts)


async def test_inc_003_no_progress_in_logs(platform: Platform, shipped: ShippedChecks) -> None:
    """The worker's heart beats, so no job is stuck; what the job has done stands still."""
    beats = "UPDATE processing_jobs SET heartbeat_at = now() WHERE job_id = %(job)s"
    async with broken(platform, "stuck-job"):
        run_sql(platform.services_dsn("test"), beats, job=platform.stuck_job)
        assert (await shipped.look("job_progress/postgres")).observed.findings == ()
        shipped.clock.ahead = timedelta(minutes=16)
        run_sql(platform.services_dsn("test"), beats, job=platform.stuck_job)
        finding = await shipped.finds("job_progress/postgres", "JobNoProgress")
        assert platform.stuck_job in str(finding.facts)
        assert (await shipped.look("stuck_jobs/postgres")).observed.findings == ()


async def test_inc_003_no_new_data_appearing(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "no-new-data"):
        finding = await shipped.finds("data_freshness/postgres", "NoNewData")
        assert dict(finding.labels) == {"tenant": "demo"}


# --- INC-004: Email Sending Failure ----------------------------------------------------------------------------------


async def a_mail_job_failed(platform: Platform) -> bool:
    async with await psycopg.AsyncConnection.connect(platform.services_dsn("test")) as connection:
        cursor = await connection.execute("SELECT 1 FROM email_sending_jobs WHERE status = 'failed'")
        return await cursor.fetchone() is not None


async def test_inc_004_email_jobs_failing(platform: Platform, shipped: ShippedChecks) -> None:
    run_sql(platform.services_dsn("test"), "DELETE FROM email_sending_jobs")
    async with broken(platform, "smtp-refuses"):
        await until_async(partial(a_mail_job_failed, platform))  # the worker tries first
        finding = await shipped.finds("email_jobs/postgres", "EmailJobsFailing")
        assert finding.kind.incident == "INC-004"


async def test_inc_004_smtp_connection_errors(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "smtp-down"):
        finding = await shipped.finds("smtp_server/postgres", "MailServerDown")
        assert "connection refused" in finding.summary


async def test_inc_004_zero_emails_sent(platform: Platform, shipped: ShippedChecks) -> None:
    dsn = platform.services_dsn("test")
    run_sql(dsn, "DELETE FROM email_sending_jobs")
    async with broken(platform, "service-down"):  # the analytics service sends the mails
        add_mail_job(dsn, "waiting", "demo", created_ago="40 min")
        finding = await shipped.finds("email_jobs/postgres", "NoEmailSent")
        assert finding.kind.incident == "INC-004"


# --- INC-005: High API Latency ---------------------------------------------------------------------------------------


async def test_inc_005_x_process_time_above_2_seconds(platform: Platform, shipped: ShippedChecks) -> None:
    headers = await log_in(platform)
    async with broken(platform, "slow-queries"):
        requests = in_background(lambda: ask_often(platform, f"{platform.urls['analytics']}{REPORT}", headers))
        finding = await shipped.finds_growing("service_requests/analytics", "SlowRequests")
        assert finding.kind.incident == "INC-005"
    await requests


async def test_inc_005_dashboard_loading_slowly(platform: Platform, shipped: ShippedChecks) -> None:
    """The reports behind the dashboard wait; the queries that they wait for are seen in PostgreSQL."""
    headers = await log_in(platform)
    async with broken(platform, "slow-queries"):
        requests = in_background(lambda: ask_often(platform, f"{platform.urls['analytics']}{REPORT}", headers))
        finding = await shipped.finds_growing("pg_long_queries/postgres", "SlowQueries")
        assert finding.kind.incident == "INC-005"
    await requests


async def test_inc_005_timeout_errors(platform: Platform, shipped: ShippedChecks) -> None:
    require("nginx", platform.has_nginx)
    headers = await log_in(platform)
    async with broken(platform, "slow-queries"):
        url = f"{platform.urls['nginx']}/analytics{REPORT}"
        requests = in_background(lambda: ask_often(platform, url, headers))
        finding = await shipped.finds_growing("access_log/nginx", "TimeoutErrors")
        assert finding.kind.incident == "INC-005"
        assert "503" in dict(finding.facts)["latest"]
    await requests


# --- INC-006: Authentication Failures --------------------------------------------------------------------------------


async def test_inc_006_users_cannot_log_in(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "idp-down"):
        finding = await shipped.finds("login/auth", "CannotLogIn")
        assert "the identity provider does not answer" in finding.summary


async def test_inc_006_token_validation_failing(platform: Platform, shipped: ShippedChecks) -> None:
    async with broken(platform, "tokens-rejected"):
        finding = await shipped.finds("login/auth", "AllRequestsRefused")
        assert "with a token that auth just gave" in finding.summary


async def test_inc_006_token_validation_failing_because_nobody_can_be_asked(platform: Platform, shipped: ShippedChecks) -> None:
    """The provider gives tokens and fails their introspection: the services answer 503, and none calls a token bad."""
    await log_in(platform)
    await switch(platform, "idp", "no-introspection")
    try:
        finding = await shipped.finds("login/auth", "TokenRejected")
        assert finding.summary == "no address takes a token that auth just gave: 3 of 3 addresses fail with 503"
        assert finding.kind.incident == "INC-006"
        assert sorted(name.rpartition("/api")[2] for name in dict(finding.facts)) == [
            "/v1/email/jobs/none",
            "/v1/jobs/none",
            "/v1/verify",
            "first",
        ]
    finally:
        await switch(platform, "idp", "ok")
    await shipped.is_well("login/auth")


async def test_one_address_that_refuses_the_token_and_one_that_asks_for_none(platform: Platform) -> None:
    """The auth service's own /health stands for an address that was to be protected and is not."""
    await log_in(platform)
    stranger = FastAPI()

    @stranger.get("/orders")
    async def orders() -> Response:
        return Response("", 401)

    user = {"username": USERNAME, "password": SecretStr(platform.environment["SYNTHETIC_USER_PASSWORD"]), "tenant": DEMO_TENANT}
    with serving(stranger) as url:
        async with looking_at(Service("auth", url=platform.urls["auth"])) as ctx:
            observed = await look(login, ctx, within_s=10, **user, protected=["/api/v1/verify", f"{url}/orders", "/health"])
    assert [(finding.kind.name, finding.kind.incident) for finding in observed.findings] == [
        ("TokenRejected", "INC-006"),
        ("OpenWithoutToken", "INC-006"),
    ]
    assert dict(observed.findings[0].facts)[f"{url}/orders"] == "401 with a token just given"
    assert dict(observed.findings[1].facts)["open"] == "/health"


async def test_inc_006_401_errors_on_all_requests(platform: Platform, shipped: ShippedChecks) -> None:
    headers = await log_in(platform)
    async with broken(platform, "tenant-disabled"):
        assert set(await ask_often(platform, f"{platform.urls['auth']}/api/v1/verify", headers)) == {401}
        # Requests of the last five minutes count, those of other tests too.
        more = partial(ask_often, platform, f"{platform.urls['auth']}/api/v1/verify", headers)
        finding = await shipped.finds_growing("service_requests/auth", "UnauthorizedRequests", meanwhile=more)
        assert finding.kind.incident == "INC-006"
        assert (await shipped.finds("tenants/postgres", "TenantDisabled")).kind.incident == "INC-006"
        assert "the tenant is disabled" in (await shipped.finds("login/auth", "CannotLogIn")).summary


# --- beside the runbook's own words ----------------------------------------------------------------------------------


async def test_a_source_of_data_that_is_away(platform: Platform, shipped: ShippedChecks) -> None:
    await switch(platform, "bigquery", "error")
    try:
        finding = await shipped.finds("sources/data", "SourceUnavailable")
        assert dict(finding.labels) == {"source": "bigquery"}
    finally:
        await switch(platform, "bigquery", "ok")
    await shipped.is_well("sources/data")
