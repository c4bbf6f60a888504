"""Ingestion jobs on the real service: rows arrive once, hung jobs age, cancelled ones commit nothing, dead workers are replaced."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.cluster import Cluster, free_port
from services.common import open_service
from services.externals.events import events_of
from services.jobs import JobLost, JobQueue
from services.settings import load_settings
from tests.conftest import fresh_database
from tests.platform_parts import OTHER, TENANT, Platform, Running, platform, until

FIRST = date(2026, 3, 1)
KINDS = ("purchase", "add_to_cart", "page_view")


@pytest.fixture
def shop(pg18: Cluster, tmp_path: Path) -> Iterator[Platform]:
    databases = fresh_database(pg18)
    with platform(next(databases), tmp_path) as made:
        yield made
    next(databases, None)


@pytest.fixture
def data(shop: Platform) -> Running:
    return shop.start("data")


def expected(days: int, tenant: str = TENANT) -> dict[str, int]:
    names = [event.event_name for offset in range(days) for event in events_of(tenant, FIRST + timedelta(days=offset))]
    return {kind: names.count(kind) for kind in KINDS}


def stored(shop: Platform, tenant: str = TENANT) -> dict[str, int]:
    return {kind: shop.one(f"SELECT count(*) FROM {kind} WHERE tenant_id = %(tenant)s", tenant=tenant) for kind in KINDS}


def start(shop: Platform, data: Running, days: int = 1, data_types: tuple[str, ...] = ("events",), tenant: str = TENANT) -> str:
    body = {"start_date": str(FIRST), "end_date": str(FIRST + timedelta(days=days - 1)), "data_types": list(data_types)}
    answer = data.post("/api/v1/ingest/start", json=body, headers=shop.headers(tenant))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def job(shop: Platform, job_id: str) -> dict[str, Any]:
    (row,) = shop.query("SELECT * FROM processing_jobs WHERE job_id = %(job_id)s", job_id=job_id)
    return row


def reaches(shop: Platform, job_id: str, status: str) -> dict[str, Any]:
    until(lambda: job(shop, job_id)["status"] == status, f"{job_id} is {status}")
    return job(shop, job_id)


def test_a_job_brings_every_event_once_even_when_it_is_repeated(shop: Platform, data: Running) -> None:
    for _ in range(2):
        done = reaches(shop, start(shop, data, days=3), "completed")
        assert stored(shop) == expected(3)
        assert done["rows_ingested"] == sum(expected(3).values())
        assert done["created_at"] <= done["started_at"] <= done["heartbeat_at"] <= done["completed_at"]
        assert (done["lease_token"], done["lease_until"], done["error_message"]) == (None, None, None)
    shown = data.get(f"/api/v1/jobs/{done['job_id']}", headers=shop.headers()).json()
    assert (shown["status"], shown["data_types"], shown["end_date"]) == ("completed", ["events"], "2026-03-03")
    assert data.get(f"/api/v1/jobs/{done['job_id']}", headers=shop.headers(OTHER)).status_code == 404
    progress = [line for line in (shop.logs / "data-ingestion-service.log").read_text().splitlines() if done["job_id"] in line]
    assert [f'"{day}/3"' in progress[place] for day, place in ((1, 3), (2, 5), (3, 7))] == [True] * 3


def test_values_arrive_exactly(shop: Platform, data: Running) -> None:
    reaches(shop, start(shop, data, data_types=("purchase",)), "completed")
    bought = [event for event in events_of(TENANT, FIRST) if event.event_name == "purchase"]
    row = shop.query("SELECT event_timestamp, value::float8, user_id, page, currency FROM purchase ORDER BY event_timestamp LIMIT 1")[0]
    first = min(bought, key=lambda event: event.event_timestamp)
    assert str(row["event_timestamp"]) == first.event_timestamp
    assert (row["value"], row["user_id"], row["page"], row["currency"]) == (first.value, first.user_id, first.page, first.currency)
    assert stored(shop) == {"purchase": len(bought), "add_to_cart": 0, "page_view": 0}


def test_a_bad_order_is_refused(shop: Platform, data: Running) -> None:
    good = {"start_date": "2026-03-01", "end_date": "2026-03-02", "data_types": ["events"]}
    wrongs = ({"end_date": "2026-02-28"}, {"end_date": "2036-03-01"}, {"data_types": []}, {"data_types": ["users"]}, {"start_date": "soon"})
    for wrong in wrongs:
        answer = data.post("/api/v1/ingest/start", json=good | wrong, headers=shop.headers())
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid_request"), wrong
    assert shop.one("SELECT count(*) FROM processing_jobs") == 0


async def test_only_the_holder_of_the_lease_may_write(shop: Platform) -> None:
    async with AsyncExitStack() as stack:
        service = await open_service("data-service", load_settings({**shop.environ, "LEASE_S": "60"}), stack)
        queue = JobQueue(service, "processing_jobs", logging.getLogger("services.ingestion"))
        new = (
            "INSERT INTO processing_jobs (tenant_id, data_types, start_date, end_date)"
            " VALUES ('acme', '{events}', '2026-03-01', '2026-03-01')"
        )
        for _ in range(5):
            shop.query(new)
        claimed = await asyncio.gather(*(queue.claim() for _ in range(8)))
        jobs = [job for job in claimed if job]
        assert len({job.id for job in jobs}) == len(jobs) == 5

        cancelled, expired, *_ = jobs
        shop.query("UPDATE processing_jobs SET status = 'failed' WHERE job_id = %(id)s", id=cancelled.id)

        async def write_late() -> None:
            async with service.database() as connection:
                await connection.execute("INSERT INTO page_view (tenant_id, event_date, event_timestamp) VALUES ('acme', now(), now())")
                await queue.advance(connection, cancelled, rows_ingested=1)

        with pytest.raises(JobLost):
            await write_late()
        assert stored(shop)["page_view"] == 0
        for late in (queue.finish(cancelled), queue.finish(cancelled, "late"), queue.release(cancelled)):
            with pytest.raises(JobLost):
                await late

        shop.query("UPDATE processing_jobs SET lease_until = now() - interval '1 s' WHERE job_id = %(id)s", id=expired.id)
        assert not await queue.holds(expired)
        heir = await queue.claim()
        assert heir
        assert (heir.id, heir.token != expired.token) == (expired.id, True)
        with pytest.raises(JobLost):
            await queue.finish(expired)
        await queue.finish(heir)
        assert job(shop, heir.id)["status"] == "completed"


def test_a_hung_jobs_heartbeat_ages_and_cancelling_it_frees_the_worker(shop: Platform, data: Running) -> None:
    shop.externals.bigquery("hang")
    stuck, waiting = start(shop, data), start(shop, data, tenant=OTHER)
    claimed = reaches(shop, stuck, "processing")
    assert job(shop, waiting)["status"] == "queued"

    assert "nothing to cancel" in shop.script("cancel_running_jobs.py").stdout
    shop.query(
        "UPDATE processing_jobs SET started_at = now() - interval '1 hour', heartbeat_at = now() - interval '31 min' WHERE job_id = %(id)s",
        id=stuck,
    )
    assert f"would cancel {stuck}" in shop.script("cancel_running_jobs.py", "--dry-run").stdout
    before = job(shop, stuck)
    assert (before["status"], before["lease_token"]) == ("processing", claimed["lease_token"])
    assert f"cancelled {stuck}" in shop.script("cancel_running_jobs.py").stdout
    cancelled = job(shop, stuck)
    assert (cancelled["status"], cancelled["error_message"]) == ("failed", "Manually cancelled - stuck")

    reaches(shop, waiting, "processing")  # BigQuery still hangs: the worker left the first job
    shop.externals.bigquery("ok")
    reaches(shop, waiting, "completed")
    assert job(shop, stuck) == cancelled
    assert (stored(shop), stored(shop, OTHER)) == (dict.fromkeys(KINDS, 0), expected(1, OTHER))
    assert f'"job_id": "{stuck}"' in (shop.logs / "data-ingestion-service.log").read_text()


def test_the_runbooks_own_update_cancels_too(shop: Platform, data: Running) -> None:
    shop.externals.bigquery("hang")
    stuck = start(shop, data)
    reaches(shop, stuck, "processing")
    shop.query(
        "UPDATE processing_jobs SET status = 'failed', error_message = 'Manually cancelled', completed_at = now() WHERE job_id = %(id)s",
        id=stuck,
    )
    following = start(shop, data, tenant=OTHER)
    reaches(shop, following, "processing")
    shop.externals.bigquery("ok")
    reaches(shop, following, "completed")
    assert job(shop, stuck)["status"] == "failed"
    assert stored(shop) == dict.fromkeys(KINDS, 0)


def test_a_job_cancelled_in_the_middle_of_a_day_commits_nothing_of_it(shop: Platform, data: Running) -> None:
    with psycopg.connect(shop.dsn) as blocker:
        blocker.execute("LOCK TABLE page_view IN EXCLUSIVE MODE")  # the day's purchases are written, its page views wait
        stuck = start(shop, data, days=2)
        held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'data-service' AND wait_event_type = 'Lock'"
        until(lambda: shop.one(held), "the worker waits in the middle of its transaction")
        done = shop.script("cancel_running_jobs.py", "--job-id", stuck)
        assert f"cancelled {stuck}" in done.stdout, done.stderr
        until(lambda: not shop.one(held), "the worker let go")
    assert stored(shop) == dict.fromkeys(KINDS, 0)
    assert job(shop, stuck)["error_message"] == "Manually cancelled"
    reaches(shop, start(shop, data, days=2), "completed")
    assert stored(shop) == expected(2)


def test_cancelling_all_and_by_id(shop: Platform, data: Running) -> None:
    shop.externals.bigquery("hang")
    lively, queued = start(shop, data), start(shop, data)
    reaches(shop, lively, "processing")
    assert "nothing to cancel" in shop.script("cancel_running_jobs.py", "--job-id", "no-such-job").stdout
    assert f"cancelled {queued}" in shop.script("cancel_running_jobs.py", "--job-id", queued).stdout
    done = shop.script("cancel_running_jobs.py", "--all")
    assert done.stdout.count("cancelled") == 1
    assert job(shop, lively)["error_message"] == "Manually cancelled"
    assert shop.script("cancel_running_jobs.py", "--older-than", "-1").returncode == 2


def test_a_refusal_of_bigquery_fails_the_job_with_its_reason(shop: Platform, data: Running) -> None:
    shop.externals.bigquery("error")
    failed = reaches(shop, start(shop, data), "failed")
    assert "2026-03-01: BigQuery: Forbidden" in failed["error_message"]
    assert "Access Denied" in failed["error_message"]
    assert failed["job_id"] in (shop.logs / "data-service-error.log").read_text()


def test_bigquery_gone_fails_the_job_within_its_deadline(shop: Platform) -> None:
    data = shop.start("data", BIGQUERY_URL=f"http://127.0.0.1:{free_port()}")
    failed = reaches(shop, start(shop, data), "failed")
    assert "BigQuery: ConnectionError" in failed["error_message"]


def test_a_query_that_is_never_answered_fails_at_its_timeout(shop: Platform) -> None:
    shop.externals.bigquery("hang")
    data = shop.start("data", BIGQUERY_TIMEOUT_S="1")
    assert "Timeout" in reaches(shop, start(shop, data), "failed")["error_message"]


def test_a_killed_workers_job_is_taken_over_when_its_lease_expires(shop: Platform) -> None:
    shop.externals.bigquery("hang")
    data = shop.start("data", LEASE_S="3")
    taken = start(shop, data, days=2)
    first = reaches(shop, taken, "processing")
    data.end(signal.SIGKILL)
    shop.externals.bigquery("ok")
    shop.start("data", LEASE_S="3")
    second = reaches(shop, taken, "completed")
    assert second["worker"] != first["worker"]
    assert second["started_at"] >= first["lease_until"]
    assert stored(shop) == expected(2)


def test_a_service_that_stops_gives_its_job_back_at_once(shop: Platform, data: Running) -> None:
    shop.externals.bigquery("hang")
    given_back = start(shop, data)
    reaches(shop, given_back, "processing")
    data.end(signal.SIGTERM)
    row = job(shop, given_back)
    assert (row["status"], row["lease_token"]) == ("queued", None)
    shop.externals.bigquery("ok")
    shop.start("data")
    reaches(shop, given_back, "completed")


def test_a_job_survives_a_lost_database_connection(shop: Platform, data: Running) -> None:
    with psycopg.connect(shop.dsn) as blocker:
        blocker.execute("LOCK TABLE page_view IN EXCLUSIVE MODE")
        interrupted = start(shop, data)
        busy = "SELECT pid FROM pg_stat_activity WHERE application_name = 'data-service' AND wait_event_type = 'Lock'"
        (found,) = until(lambda: shop.query(busy), "the worker waits for the lock")
        shop.query("SELECT pg_terminate_backend(%(pid)s)", pid=found["pid"])
        until(lambda: "job interrupted" in (shop.logs / "data-service-error.log").read_text(), "the worker tells")
    reaches(shop, interrupted, "completed")
    assert stored(shop) == expected(1)


def test_several_workers_share_the_jobs_and_each_runs_once(shop: Platform) -> None:
    with ThreadPoolExecutor() as pool:
        workers = list(pool.map(lambda _: shop.start("data"), range(3)))
    jobs = [start(shop, workers[0], days=4) for _ in range(9)]
    for job_id in jobs:
        reaches(shop, job_id, "completed")
    lines = (shop.logs / "data-ingestion-service.log").read_text().splitlines()
    assert all(sum(job_id in line and '"job started"' in line for line in lines) == 1 for job_id in jobs)
    assert stored(shop) == expected(4)  # nine jobs over the same days, at the same time


def test_two_jobs_over_one_day_at_the_same_time_do_not_count_it_twice(shop: Platform, data: Running) -> None:
    shop.start("data")
    with psycopg.connect(shop.dsn) as blocker:
        blocker.execute("LOCK TABLE page_view IN EXCLUSIVE MODE")
        jobs = [start(shop, data), start(shop, data)]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'data-service' AND wait_event_type = 'Lock'"
        until(lambda: shop.one(waiting) == 2, "both workers are in the middle of the day")
    for job_id in jobs:
        reaches(shop, job_id, "completed")
    assert stored(shop) == expected(1)


def test_availability_asks_both_and_names_what_is_missing(shop: Platform, data: Running) -> None:
    def ask(service: Running) -> Any:
        return service.get("/api/v1/availability", headers=shop.headers())

    good = ask(data)
    assert good.status_code == 200, good.text
    assert {name: seen["available"] for name, seen in good.json().items()} == {"bigquery": True, "sftp": True}
    shop.externals.bigquery("error")
    bad = ask(data)
    assert (bad.status_code, bad.json()["detail"]) == (503, "unavailable: bigquery")
    assert "Access Denied" in bad.json()["bigquery"]["error"]
    shop.externals.bigquery("hang")
    known_hosts = shop.folder / "other_hosts"
    known_hosts.write_text("")
    stranger = ask(shop.start("data", SFTP_KNOWN_HOSTS=str(known_hosts)))
    assert stranger.json()["detail"] == "unavailable: bigquery, sftp"
    assert "Host key is not trusted" in stranger.json()["sftp"]["error"]
    assert 4.5 < stranger.json()["bigquery"]["duration_s"] < 6
    shop.externals.bigquery("ok")
    wrong = ask(shop.start("data", SFTP_PASSWORD="wrong", SFTP_PORT=str(shop.externals.sftp_port)))
    assert (wrong.status_code, wrong.json()["detail"]) == (503, "unavailable: sftp")
    closed = ask(shop.start("data", SFTP_PORT=str(free_port()), BIGQUERY_URL=""))
    assert (closed.status_code, closed.json()["bigquery"]["error"]) == (503, "BIGQUERY_URL is not set")
