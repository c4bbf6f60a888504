"""INC-003's diagnosis on real PostgreSQL 15 and 18: each cause provoked for real, and what could not be seen always named."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from monitor.clock import SystemClock
from monitor.domain import Diagnosis, Evidence
from monitor.plugins import Service
from monitor.probes.outside import Outside
from runbook.inc_003_ingestion_stuck import INC_003
from tests.support.runbook import SHAPES, Ground, ground


@pytest.fixture(params=SHAPES)
def place(request: pytest.FixtureRequest, database: str) -> Iterator[Ground]:
    with ground(database, request.param) as made:
        yield made


@pytest.fixture
def platform(database: str) -> Iterator[Ground]:
    with ground(database, "platform") as made:
        made.run(f"GRANT SELECT ON purchase, add_to_cart, page_view TO {made.reader.split('user=')[1].split()[0]}")
        yield made


@pytest.fixture
def services(tmp_path: Path) -> Mapping[str, Service]:
    (tmp_path / "data-service.log").write_text("")
    return {"data": Service("data", log=str(tmp_path / "data-service.log"))}


async def diagnose(place: Ground, services: Mapping[str, Service]) -> Diagnosis:
    outside = Outside(SystemClock())
    assert INC_003.diagnose is not None
    try:
        return await INC_003.diagnose(outside.runbook_context(place.service, services))
    finally:
        await outside.close()


def named(diagnosis: Diagnosis, title: str) -> Evidence:
    (found,) = [evidence for evidence in diagnosis.evidence if evidence.title.startswith(title)]
    return found


def data_service(place: Ground) -> psycopg.Connection:
    return psycopg.connect(place.dsn, application_name="data-service")


async def test_nothing_stuck_is_said_with_what_is_in_processing(place: Ground, services: Mapping[str, Service]) -> None:
    empty = await diagnose(place, services)
    assert empty.cause.startswith("Nothing is stuck")
    assert empty.cause.endswith("No job is in processing.")
    job = place.add(1, silent="5 min")
    diagnosis = await diagnose(place, services)
    assert f"The longest silent is job {job}, for 5 min." in diagnosis.cause
    assert diagnosis.proposals == ()
    assert named(diagnosis, "Stuck jobs").text == "none"
    assert named(diagnosis, "Jobs in processing").rows[0][1] == job


async def test_a_stuck_job_is_shown_with_its_columns_and_its_last_log_lines(place: Ground, services: Mapping[str, Service]) -> None:
    older, younger = place.add(1, silent="3 hours"), place.add(2)
    log = Path(str(services["data"].log))
    log.write_text("".join(f"{number} asking BigQuery job_id={older}\n" for number in range(9)) + f"job_id={younger} \x1b[2Jstarted\n")
    diagnosis = await diagnose(place, services)
    assert diagnosis.cause.startswith(f"2 jobs are stuck, job {older} the longest (silent for 3 h 00 min).")
    assert ("no heartbeat" in diagnosis.cause) is (place.shape != "platform")
    assert diagnosis.proposals == ("cancel-stuck-jobs",)
    table = named(diagnosis, "Stuck jobs")
    assert set(table.columns) >= {"silent for", "job_id", "tenant_id", "status", "created_at", "started_at", "error_message"}
    assert [row[table.columns.index("job_id")] for row in table.rows] == [older, younger]
    assert named(diagnosis, f"Last log lines of job {older}").text.splitlines() == [
        f"{number} asking BigQuery job_id={older}" for number in range(4, 9)
    ]
    assert "\x1b" not in named(diagnosis, f"Last log lines of job {younger}").text


async def test_without_a_session_the_worker_is_gone(place: Ground, services: Mapping[str, Service]) -> None:
    place.add(1)
    assert "data-service has no session in the database" in (await diagnose(place, services)).cause


async def test_an_idle_session_means_that_nobody_works_for_the_job(place: Ground, services: Mapping[str, Service]) -> None:
    place.add(1)
    with data_service(place):
        diagnosis = await diagnose(place, services)
    assert "connected but no session works for it" in diagnosis.cause
    assert len(named(diagnosis, "Sessions of data-service").rows) == 1


@contextmanager
def blocked_worker(place: Ground, job: str) -> Iterator[int]:
    """A data service that waits for a row which a report holds; the value is the blocker's process id."""
    with psycopg.connect(place.dsn, application_name="report-export") as report, data_service(place) as worker:
        report.execute("SELECT 1 FROM processing_jobs WHERE job_id = %(job)s FOR UPDATE", {"job": job})
        update = "UPDATE processing_jobs SET error_message = NULL WHERE job_id = %(job)s"
        thread = threading.Thread(target=worker.execute, args=(update, {"job": job}))
        thread.start()
        try:
            yield report.info.backend_pid
        finally:
            report.rollback()
            thread.join(10)
            worker.rollback()


async def test_a_blocked_worker_is_told_with_who_blocks_it(place: Ground, services: Mapping[str, Service]) -> None:
    job = place.add(1)
    with blocked_worker(place, job) as blocker:
        await until(lambda: place.waiting() == 1, "the worker waits")
        diagnosis = await diagnose(place, services)
    assert f"held by pid {blocker} (report-export, idle in transaction" in diagnosis.cause
    assert diagnosis.cause.count("end that first") == 1
    assert named(diagnosis, "Who blocks them").rows[0][:2] == (str(blocker), "report-export")


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


# --- blind spots -----------------------------------------------------------------------------------------------------


async def test_the_arriving_rows_of_the_platform(platform: Ground, services: Mapping[str, Service]) -> None:
    platform.add(1)
    platform.run("INSERT INTO purchase (tenant_id, event_date, event_timestamp) VALUES ('t1', current_date, now() - interval '3 hours')")
    diagnosis = await diagnose(platform, services)
    assert diagnosis.blind == ()
    assert "The newest event, in purchase, is 3 h 00 min old." in diagnosis.cause
    assert [row[0] for row in named(diagnosis, "Newest rows").rows] == ["purchase", "add_to_cart", "page_view"]


async def test_each_table_of_arriving_rows_that_cannot_be_seen_is_named(place: Ground, services: Mapping[str, Service]) -> None:
    place.add(1)
    blind = (await diagnose(place, services)).blind
    assert [spot.split(":")[0] for spot in blind] == ["new rows in purchase", "new rows in add_to_cart", "new rows in page_view"]
    assert all(("lacks a privilege" if place.shape == "platform" else "no such table") in spot for spot in blind)


async def test_a_table_without_a_time_and_one_that_is_locked_are_blind_spots(platform: Ground, services: Mapping[str, Service]) -> None:
    platform.run("ALTER TABLE page_view RENAME event_timestamp TO t; ALTER TABLE page_view RENAME event_date TO d")
    with psycopg.connect(platform.dsn) as migration:
        migration.execute("LOCK TABLE purchase IN ACCESS EXCLUSIVE MODE")
        blind = (await diagnose(platform, services)).blind
    assert len(blind) == 2
    assert "purchase" in blind[0]
    assert "locked by another session" in blind[0]
    assert blind[1] == "new rows in page_view: it has no column that tells when a row arrived"


async def test_jobs_that_cannot_be_read_prove_nothing(place: Ground, services: Mapping[str, Service]) -> None:
    place.add(1)
    place.run(f"REVOKE SELECT ON processing_jobs FROM {place.reader.split('user=')[1].split()[0]}")
    diagnosis = await diagnose(place, services)
    assert diagnosis.cause.startswith("The jobs could not be looked at")
    assert diagnosis.proposals == ()
    assert diagnosis.blind[0].startswith("the jobs: ")
    assert "lacks a privilege" in diagnosis.blind[0]


async def test_sessions_that_may_not_be_seen_are_not_idle(place: Ground, services: Mapping[str, Service]) -> None:
    place.add(1)
    place.run(f"REVOKE pg_monitor FROM {place.reader.split('user=')[1].split()[0]}")
    with data_service(place):
        diagnosis = await diagnose(place, services)
    assert "could not be seen" in diagnosis.cause
    assert any(spot.startswith("the sessions of data-service: the monitor's role may not see") for spot in diagnosis.blind)


async def test_a_log_that_is_missing_or_not_configured_is_a_blind_spot(place: Ground, tmp_path: Path) -> None:
    place.add(1)
    missing = await diagnose(place, {"data": Service("data", log=str(tmp_path / "gone.log"))})
    assert any("gone.log cannot be read" in spot for spot in missing.blind)
    unknown = await diagnose(place, {"auth": Service("auth", log=str(tmp_path / "auth.log"))})
    assert any('set log = "…" under [services.data]' in spot for spot in unknown.blind)


async def test_a_database_that_does_not_answer_leaves_only_blind_spots(services: Mapping[str, Service]) -> None:
    nowhere = "host=127.0.0.1 port=1 dbname=none user=nobody"
    diagnosis = await diagnose(Ground("", nowhere, nowhere, nowhere), services)
    assert diagnosis.cause.startswith("The jobs could not be looked at")
    assert diagnosis.evidence == ()
    assert [spot.split(":")[0] for spot in diagnosis.blind] == ["the jobs", "the sessions of data-service", "the arriving rows"]
