"""What the rows of processing jobs mean."""

import pytest
from pydantic import ValidationError

from checks.stuck_jobs import Config, judge
from monitor.probes_contract import Row


def row(
    job: str,
    silent_s: float | None,
    *,
    processing: int,
    stuck: int,
    tenant: str | None = "t1",
    lease_over_s: float | None = None,
    expired: int = 0,
) -> Row:
    is_expired = lease_over_s is not None and lease_over_s > 60
    return {
        "job_id": job,
        "tenant_id": tenant,
        "worker": None,
        "silent_s": silent_s,
        "last_sign": "2026-11-23 10:00:00 UTC",
        "lease_over_s": lease_over_s,
        "is_expired": is_expired,
        "is_stuck": is_expired or (silent_s is not None and silent_s > 1800),
        "processing": processing,
        "stuck": stuck,
        "expired": expired,
        "oldest_s": silent_s,
    }


def test_no_job_and_no_stuck_job_find_nothing() -> None:
    empty = judge([], Config(), sign="heartbeat_at", service="postgres")
    assert empty.findings == ()
    assert [sample.value for sample in empty.samples] == [0, 0, 0, 0]
    fresh = judge(
        [row("a", 12.0, processing=2, stuck=0), row("b", None, processing=2, stuck=0)], Config(), sign="started_at", service="postgres"
    )
    assert fresh.findings == ()
    assert [sample.value for sample in fresh.samples] == [2, 0, 12.0, 0]


def test_a_job_without_any_time_is_counted_and_not_stuck() -> None:
    observed = judge([row("a", None, processing=1, stuck=0)], Config(), sign="started_at", service="postgres")
    assert [sample.value for sample in observed.samples] == [1, 0, 0, 0]


def test_one_finding_for_the_table_with_the_ids_as_facts_only() -> None:
    rows = [
        row("j\n1", 7300, processing=9, stuck=3, tenant="a\x1bb"),
        row("j2", 1900, processing=9, stuck=3, tenant=None),
        row("j3", 5, processing=9, stuck=3),
    ]
    observed = judge(rows, Config(max_listed=3), sign="heartbeat_at", service="postgres")
    (finding,) = observed.findings
    assert finding.labels == ()
    assert finding.value == 7300
    assert finding.summary.startswith("3 jobs have been in processing without a sign of life for 2.0 h, longer than 30 min")
    assert dict(finding.facts) == {
        "stuck": "3 of 9 in processing",
        "silent for": "2.0 h",
        "sign of life": "heartbeat_at",
        "job j 1": "silent for 2.0 h, tenant a b, last sign of life 2026-11-23 10:00:00 UTC",
        "job j2": "silent for 32 min, last sign of life 2026-11-23 10:00:00 UTC",
        "more": "1 not listed",
    }


def test_a_job_past_its_lease_is_stuck_before_it_is_silent_for_long() -> None:
    rows = [row("j1", 300, processing=2, stuck=1, lease_over_s=240.0, expired=1), row("j2", 900, processing=2, stuck=1, lease_over_s=-60.0)]
    (finding,) = judge(rows, Config(), sign="heartbeat_at", service="postgres").findings
    lease = "the lease has been over for 4 min, and no worker takes over"
    assert finding.summary == f"1 job has been left in processing: {lease} (postgres)"
    assert dict(finding.facts)["lease over"] == "1 job: no worker holds it, and none takes over"
    assert "lease over for 4 min" in dict(finding.facts)["job j1"]
    assert finding.value == 300


def test_silence_and_a_lease_that_is_over_are_one_finding() -> None:
    rows = [
        row("j1", 7300, processing=2, stuck=2, lease_over_s=-5.0, expired=1),
        row("j2", 300, processing=2, stuck=2, lease_over_s=240, expired=1),
    ]
    (finding,) = judge(rows, Config(), sign="heartbeat_at", service="postgres").findings
    assert finding.summary == (
        "2 jobs have been in processing without a sign of life for 2.0 h, longer than 30 min, 1 past the lease (postgres)"
    )


@pytest.mark.parametrize("table", ["", "a.b.c", "jobs; DROP TABLE x", 'pub"lic.jobs', "1jobs", "a."])
def test_a_table_is_a_name(table: str) -> None:
    with pytest.raises(ValidationError):
        Config(table=table)
