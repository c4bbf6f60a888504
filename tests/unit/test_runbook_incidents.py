"""What the runbook says first, and the sentence that INC-003 chooses from what was seen."""

import pytest
from pydantic import ValidationError

from monitor.plugins import RUNBOOK, RunbookEntry, Service, collect
from runbook import BUILTINS, GUIDES
from runbook.cancel_stuck_jobs import CancelStuckJobs
from runbook.inc_003_ingestion_stuck import Arrival, Jobs, Session, Sessions, cause_of, data_service
from runbook.processing_jobs import StuckJob, StuckJobs, age

TITLES = {
    "INC-001": "Service Not Responding",
    "INC-002": "Database Connection Exhausted",
    "INC-003": "Ingestion Job Stuck",
    "INC-004": "Email Sending Failure",
    "INC-005": "High API Latency",
    "INC-006": "Authentication Failures",
}


def test_every_incident_of_the_runbook_has_its_guide_by_its_own_title() -> None:
    assert {code: guide.title for code, guide in GUIDES.items()} == TITLES
    for code, guide in GUIDES.items():
        assert guide.code == code
        assert guide.first_step
        assert len(guide.first_step.splitlines()) == 1
        assert len(guide.first_step) <= 200


def test_the_entries_register_and_what_they_propose_exists() -> None:
    entries, _ = collect(RUNBOOK, BUILTINS, RunbookEntry)
    assert set(TITLES) <= set(entries)
    assert [operation.name for operation in entries["INC-003"].operations] == ["cancel-stuck-jobs"]
    assert all(operation.help for entry in BUILTINS for operation in entry.operations)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"older_than": "0s"}, "older_than"),
        ({"older_than": "soon"}, "older_than"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"job_id": ""}, "job_id"),
        ({"job_id": "a\0b"}, "job_id"),
        ({"jobid": "a"}, "jobid"),
    ],
)
def test_wrong_parameters_are_named(given: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        CancelStuckJobs.model_validate(given)
    assert [error["loc"][0] for error in raised.value.errors()] == [field]


def test_without_a_threshold_the_checks_own_is_taken() -> None:
    assert CancelStuckJobs().older_than is None
    assert CancelStuckJobs.model_validate({"older_than": "30m"}).older_than == 1800


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-3, "0 s"), (0, "0 s"), (89, "89 s"), (90, "1 min"), (2520, "42 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert age(seconds) == said


# --- the sentence ----------------------------------------------------------------------------------------------------


def stuck(*, heartbeat: bool = True, total: int = 1) -> Jobs:
    seen = (("started_at", "t"), ("heartbeat_at", "t")) if heartbeat else (("started_at", "t"),)
    return Jobs(StuckJobs((StuckJob("j1", 2700, (), seen),), total))


IDLE = Session(7, "idle", 900, "Client ClientRead", "COMMIT")
ACTIVE = Session(8, "active", 2400, "IO DataFileRead", "COPY purchase")
LEFT_OPEN = Session(9, "idle in transaction", 2400, "Client ClientRead", "INSERT")
BLOCKED = Session(10, "active", 1800, "Lock transactionid", "UPDATE", (42, 0))
BRIEF = Session(11, "active", 0.2, "", "SELECT 1")


@pytest.mark.parametrize(
    ("jobs", "sessions", "arrivals", "words"),
    [
        (None, None, (), ["could not be looked at"]),
        (Jobs(StuckJobs((), 0)), Sessions(()), (), ["Nothing is stuck"]),
        (stuck(), None, (), ["1 job is stuck, job j1 the longest (silent for 45 min)", "could not be seen"]),
        (stuck(total=3), Sessions(()), (), ["3 jobs are stuck", "no session in the database"]),
        (stuck(), Sessions((IDLE, BRIEF)), (), ["no session works for it"]),
        (stuck(), Sessions((IDLE, ACTIVE)), (), ["running one statement for 40 min", "may still be at work"]),
        (stuck(), Sessions((LEFT_OPEN, IDLE)), (), ["left a transaction open for 40 min"]),
        (
            stuck(),
            Sessions((ACTIVE, BLOCKED), ((0, "a prepared transaction"), (42, "pid 42 (report)"))),
            (),
            ["waiting for a lock for 30 min, held by pid 42 (report) and a prepared transaction: end that first"],
        ),
        (stuck(heartbeat=False), Sessions((IDLE,)), (), ["no heartbeat", "read its log lines before cancelling"]),
        (stuck(), Sessions((IDLE,)), (Arrival("page_view", "created_at", "x", 60),), ["New rows do arrive", "page_view, 60 s ago"]),
        (stuck(), Sessions((IDLE,)), (Arrival("page_view", "created_at", "x", 7200),), ["No new row for 2 h 00 min"]),
        (stuck(), Sessions((IDLE,)), (Arrival("purchase", "event_date", "x", 7200),), ["The newest event, in purchase, is 2 h 00 min old"]),
        (stuck(), Sessions((IDLE,)), (Arrival("purchase", "event_date", "(empty)", None),), ["no session works for it"]),
    ],
)
def test_the_cause_is_what_was_seen(jobs: Jobs | None, sessions: Sessions | None, arrivals: tuple[Arrival, ...], words: list[str]) -> None:
    cause = cause_of(jobs, sessions, arrivals)
    assert [word for word in words if word not in cause] == []
    assert "healthy" not in cause


@pytest.mark.parametrize(
    ("services", "found"),
    [
        ({"data": Service("data", log="d.log"), "database": Service("database", log="pg.log")}, "data"),
        ({"data-service": Service("data-service", error_log="e.log")}, "data-service"),
        ({"data": Service("data"), "worker": Service("worker", log="logs/data-ingestion-service.log")}, "worker"),
        ({"database": Service("database", log="pg.log")}, None),
        ({}, None),
    ],
)
def test_the_data_service_is_found_by_its_name_or_its_log(services: dict[str, Service], found: str | None) -> None:
    service = data_service(services)
    assert (service.name if service else None) == found
