"""Every fault on a running platform: it really breaks, may be repeated, and heals."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import psycopg
import pytest
import pytest_asyncio

from services.control import ControlError, ask
from services.faults import FAULTS, Fault, FaultError, find_fault
from services.platform import Platform, Ports

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with Platform(tmp_path_factory.mktemp("platform"), Ports.free()) as running:
        yield running


@asynccontextmanager
async def provoked(platform: Platform, name: str) -> AsyncIterator[Fault]:
    """Twice each way: repeating changes nothing."""
    fault = find_fault(name)
    try:
        await fault.provoke(platform)
        await fault.provoke(platform)
        yield fault
    finally:
        await fault.heal(platform)
        await fault.heal(platform)


async def until(seen: Callable[[], Awaitable[bool]], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not await seen():
            await asyncio.sleep(0.05)


async def health(platform: Platform, name: str) -> int:
    return (await platform.http.get(f"{platform.urls[name]}/health", timeout=1)).status_code


async def job_row(platform: Platform, job_id: str) -> tuple[object, ...]:
    async with await psycopg.AsyncConnection.connect(platform.environment["MONITOR_POSTGRES_DSN"]) as connection:
        sql = "SELECT status, heartbeat_at, rows_ingested, error_message FROM processing_jobs WHERE job_id = %(id)s"
        row = await (await connection.execute(sql, {"id": job_id})).fetchone()
    assert row is not None
    return tuple(row)


async def test_service_down_is_a_killed_process(platform: Platform) -> None:
    before = platform.pids["analytics"]
    async with provoked(platform, "service-down") as fault:
        assert fault.service == "analytics"
        assert "analytics" not in platform.pids
        with pytest.raises(httpx2.ConnectError):
            await health(platform, "analytics")
    assert platform.pids["analytics"] != before
    assert await health(platform, "analytics") == 200


async def test_service_hang_accepts_and_never_answers(platform: Platform) -> None:
    before = platform.pids["data"]
    async with provoked(platform, "service-hang"):
        with pytest.raises(httpx2.ReadTimeout):
            await health(platform, "data")
    assert platform.pids["data"] == before
    assert await health(platform, "data") == 200


async def test_connections_exhausted_refuses_everybody_and_takes_what_is_freed(platform: Platform) -> None:
    canary = platform.environment["MONITOR_POSTGRES_CANARY_DSN"]

    async def refused() -> bool:
        try:
            await (await psycopg.AsyncConnection.connect(canary)).close()
        except psycopg.OperationalError:
            return True
        return False

    assert not await refused()
    admin = f"host=127.0.0.1 port={platform.ports.postgres} dbname=postgres user=postgres"
    async with (
        await psycopg.AsyncConnection.connect(admin, autocommit=True) as superuser,
        provoked(platform, "connections-exhausted"),
    ):
        assert await refused()
        kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'report-export'"
        row = await (await superuser.execute(kill)).fetchone()
        assert row is not None
        assert row[0] > 20
        await until(refused)
    await until(lambda: _not(refused()))
    await platform.log_in()  # the services' pools recover


async def _not(answer: Awaitable[bool]) -> bool:
    return not await answer


async def test_stuck_job_sits_in_processing_until_bigquery_answers(platform: Platform) -> None:
    async with provoked(platform, "stuck-job"):
        job_id = platform.stuck_job
        assert job_id is not None
        status, heartbeat, rows, _ = await job_row(platform, job_id)
        assert (status, rows) == ("processing", 0)
        with pytest.raises(httpx2.ReadTimeout):
            await platform.http.get(f"{platform.urls['bigquery']}/bigquery/v2/projects/x/jobs/y", timeout=0.5)
        assert (await job_row(platform, job_id))[:2] == ("processing", heartbeat)

    async def completed() -> bool:
        return (await job_row(platform, job_id))[0] == "completed"

    await until(completed)
    assert int(str((await job_row(platform, job_id))[2])) > 0


async def test_a_stuck_job_that_the_runbook_cancels_stays_cancelled(platform: Platform) -> None:
    async with provoked(platform, "stuck-job"):
        cancelled = platform.stuck_job
        assert cancelled is not None
        async with await psycopg.AsyncConnection.connect(platform.environment["MONITOR_POSTGRES_FIX_DSN"]) as connection:
            sql = "UPDATE processing_jobs SET status = 'failed', error_message = 'cancelled', completed_at = now() WHERE job_id = %(id)s"
            await connection.execute(sql, {"id": cancelled})
        # The worker is free again: the next job is taken up, and hangs in its turn.
        await find_fault("stuck-job").provoke(platform)
        following = platform.stuck_job
        assert following not in (None, cancelled)

    async def completed() -> bool:
        return (await job_row(platform, str(following)))[0] == "completed"

    await until(completed)
    assert (await job_row(platform, cancelled))[0] == "failed"


async def test_an_ingestion_that_cannot_start_is_told(platform: Platform) -> None:
    platform.child("auth").kill()
    try:
        with pytest.raises(FaultError, match="cannot be started"):
            await find_fault("stuck-job").provoke(platform)
    finally:
        await platform.start_service("auth")
        await find_fault("stuck-job").heal(platform)


async def test_stuck_handshakes_let_nobody_in_until_they_go(platform: Platform) -> None:
    canary = platform.environment["MONITOR_POSTGRES_CANARY_DSN"] + " connect_timeout=2"

    async def is_out() -> bool:
        try:
            await (await psycopg.AsyncConnection.connect(canary)).close()
        except psycopg.OperationalError:
            return True
        return False

    async with provoked(platform, "handshakes-stuck"):
        await until(is_out)
    await until(lambda: _not(is_out()))


async def test_slow_queries_make_a_report_wait(platform: Platform) -> None:
    headers = await platform.log_in()
    report = f"{platform.urls['analytics']}/api/v1/reports/revenue"
    async with provoked(platform, "slow-queries"):
        with pytest.raises(httpx2.ReadTimeout):
            await platform.http.get(report, headers=headers, timeout=1)
    answer = await platform.http.get(report, headers=headers)
    assert answer.status_code == 200


async def newest_event(platform: Platform) -> float:
    async with await psycopg.AsyncConnection.connect(platform.services_dsn("test")) as connection:
        age = "SELECT extract(epoch FROM now() - max(event_timestamp)) FROM purchase"
        row = await (await connection.execute(age)).fetchone()
    assert row is not None
    return float(row[0])


async def test_no_new_data_is_days_without_rows(platform: Platform) -> None:
    assert await newest_event(platform) < 2 * 86_400
    async with provoked(platform, "no-new-data"):
        assert await newest_event(platform) > 3 * 86_400
    assert await newest_event(platform) < 2 * 86_400


@pytest.mark.parametrize(("name", "words"), [("smtp-down", "connect"), ("smtp-refuses", "takes no mail")])
async def test_a_mail_server_that_takes_no_mail_fails_the_report(platform: Platform, name: str, words: str) -> None:
    newest = "SELECT j.status, j.emails_failed, h.error_message FROM email_sending_jobs j JOIN email_send_history h USING (job_id)"
    newest += " ORDER BY j.created_at DESC LIMIT 1"

    async def row() -> tuple[object, ...]:
        async with await psycopg.AsyncConnection.connect(platform.services_dsn("test")) as connection:
            return tuple(await (await connection.execute(newest)).fetchone() or ("none", 0, ""))

    async def is_failed() -> bool:
        status, _, error = await row()  # of one look: the next report may be the newest by the next
        return status == "failed" and words in str(error)

    async def is_sent() -> bool:
        return (await row())[0] == "completed"

    async with provoked(platform, name):
        await until(is_failed, within_s=30)
    await until(is_sent, within_s=30)


@pytest.mark.parametrize(
    ("name", "login", "verify"), [("idp-down", 503, 503), ("tokens-rejected", 200, 401), ("tenant-disabled", 401, 401)]
)
async def test_logins_and_tokens_fail_as_each_fault_says(platform: Platform, name: str, login: int, verify: int) -> None:
    headers = await platform.log_in()
    form = {"tenant_id": headers["X-Tenant-Id"], "username": "ops@shop.example", "password": platform._access.user_password}
    async with provoked(platform, name):
        assert (await platform.http.post(f"{platform.urls['auth']}/api/v1/login", json=form)).status_code == login
        assert (await platform.http.get(f"{platform.urls['auth']}/api/v1/verify", headers=headers)).status_code == verify
    assert (await platform.http.get(f"{platform.urls['auth']}/api/v1/verify", headers=await platform.log_in())).status_code == 200


# --- by hand ---------------------------------------------------------------------------------------------------------


async def by_hand(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.faults", *arguments]
    return await asyncio.to_thread(lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False))


async def test_faults_can_be_provoked_and_healed_from_another_process(platform: Platform) -> None:
    root = ("--root", str(platform.root))
    done = await by_hand(*root, "provoke", "service-down")
    assert done.stdout.startswith("provoked service-down"), done.stderr
    with pytest.raises(httpx2.ConnectError):
        await health(platform, "analytics")
    done = await by_hand(*root, "heal", "service-down")
    assert done.stdout == "healed service-down\n", done.stderr
    assert await health(platform, "analytics") == 200


async def test_says_which_faults_there_are_and_refuses_others(platform: Platform, tmp_path: Path) -> None:
    listed = await by_hand("list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [fault.name for fault in FAULTS]
    unknown = await by_hand("--root", str(platform.root), "provoke", "sharks")
    assert unknown.returncode == 1
    assert "expected one of service-down" in unknown.stderr
    nowhere = await by_hand("--root", str(tmp_path), "heal", "service-down")
    assert nowhere.returncode == 1
    assert "no platform runs" in nowhere.stderr
    assert "Traceback" not in unknown.stderr + nowhere.stderr


async def test_only_who_reads_the_state_file_may_ask(platform: Platform, tmp_path: Path) -> None:
    state = (platform.root / "platform.json").read_text()
    (tmp_path / "platform.json").write_text(state.replace('"token": "', '"token": "x'))
    with pytest.raises(ControlError, match="wrong token"):
        await ask(tmp_path, "provoke", "service-down")
    (tmp_path / "platform.json").write_text("{}")
    with pytest.raises(ControlError, match="cannot be read"):
        await ask(tmp_path, "provoke", "service-down")
