"""``failed_jobs`` on the platform's tables, 15 and 18, as the monitor's role."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from pydantic import SecretStr

from checks.failed_jobs import failed_jobs
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import after, look, looking_at
from tests.support.platform_tables import add_job, add_tenants, platform_database, run_sql


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    add_tenants(database, "shop", "other")
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as found:
        yield found


def fail(dsn: str, job: str, message: str | None, *, ago: str = "1 h", tenant: str = "shop") -> None:
    add_job(dsn, job, tenant, status="failed", error_message=message, completed_ago=ago)


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


async def test_no_failed_job_is_well(database: str, ctx: CheckContext) -> None:
    add_job(database, "fine", "shop", status="completed", completed_ago="1 h")
    fail(database, "long ago", "old", ago="25 h")
    observed = await look(failed_jobs, ctx)
    assert observed.findings == ()
    assert [sample.value for sample in observed.samples] == [0, 0, 0]


async def test_failures_are_grouped_by_what_their_messages_share(database: str, ctx: CheckContext) -> None:
    for number in range(5):
        fail(database, f"j{number}", f"BigQuery: 503 for job 48213{number}", ago=f"{number + 1} h")
    fail(database, "lost", "connection to 10.0.0.7 port 5432 failed", tenant="other")
    fail(database, "mute", None)
    observed = await look(failed_jobs, ctx)
    assert kinds(observed) == ["JobsFailed"]  # at the first look, no cause is new
    (finding,) = observed.findings
    assert (finding.kind.severity, finding.kind.incident, finding.value) == (4, "INC-003", 7)
    assert finding.summary.startswith("7 jobs failed in the last 24.0 h of 3 causes, most often: BigQuery: <n> for job <n>")
    (shape, first), *others = finding.facts
    assert shape == "BigQuery: <n> for job <n>"
    assert first == "5 jobs, the last 60 min ago, job j0: BigQuery: 503 for job 482130"
    assert "(no message)" in dict(others)
    assert [sample.value for sample in observed.samples] == [7, 3, 0]


async def test_a_new_cause_is_found_first_and_is_new_for_a_while(database: str, ctx: CheckContext) -> None:
    for number in range(3):
        fail(database, f"j{number}", f"timeout after {number} s")
    observed = await look(failed_jobs, ctx)
    fail(database, "n1", "disk\x1b is\nfull at 'x'")
    fail(database, "j9", "timeout after 9 s")
    observed = await look(failed_jobs, after(ctx, observed))
    assert kinds(observed) == ["NewFailureCause", "JobsFailed"]
    new, all_of_them = observed.findings
    assert new.summary == "jobs fail of a cause not seen before: disk is full at <text> (postgres)"
    assert new.value == 1
    assert all_of_them.facts[0][0] == "disk is full at <text>"
    assert dict(all_of_them.facts)["disk is full at <text>"].startswith("new, 1 job")
    assert kinds(await look(failed_jobs, after(ctx, observed))) == ["NewFailureCause", "JobsFailed"]
    assert kinds(await look(failed_jobs, after(ctx, observed), new_for=0.001, max_failed=5)) == []
    run_sql(database, "DELETE FROM processing_jobs")
    observed = await look(failed_jobs, after(ctx, observed))
    fail(database, "n2", "disk is full at 'y'")
    assert kinds(await look(failed_jobs, after(ctx, observed), new_for=0.001)) == ["JobsFailed"]  # known since


async def test_many_different_messages_stay_bounded_and_the_count_whole(database: str, ctx: CheckContext) -> None:
    words = "INSERT INTO processing_jobs (tenant_id, data_types, start_date, end_date, status, completed_at, error_message) "
    run_sql(
        database,
        words + "SELECT 'shop', '{events}', '2026-01-01', '2026-01-01', 'failed', now(),"
        " 'cause ' || translate(n::text, '0123456789', 'abcdefghij') || repeat('x', 5000) FROM generate_series(1, 700) n",
    )
    observed = await look(failed_jobs, ctx)
    (finding,) = observed.findings
    assert finding.value == 700
    facts = dict(finding.facts)
    assert len(facts) <= 10
    assert facts["(more)"] == "492 other causes and 200 jobs not told apart"
    assert max(len(value) for value in facts.values()) < 400


async def test_the_index_is_used(database: str, ctx: CheckContext) -> None:
    words = "INSERT INTO processing_jobs (tenant_id, data_types, start_date, end_date, status, completed_at) "
    run_sql(database, words + "SELECT 'shop', '{events}', '2026-01-01', '2026-01-01', 'completed', now() FROM generate_series(1, 20000) n")
    run_sql(database, "ANALYZE processing_jobs")
    with psycopg.connect(database) as connection:
        where = "status = 'failed' AND completed_at > now() - make_interval(secs => 86400)"
        plan = connection.execute(f"EXPLAIN SELECT error_message FROM processing_jobs WHERE {where}".encode()).fetchall()
    assert "processing_jobs_failed" in str(plan)
    assert (await look(failed_jobs, ctx)).findings == ()


async def test_what_may_not_be_read_is_named(database: str, ctx: CheckContext) -> None:
    run_sql(database, "REVOKE SELECT ON processing_jobs FROM monitor_ro")
    with pytest.raises(
        CannotLook, match=r"GRANT SELECT \(job_id, status, error_message, completed_at\) ON public\.processing_jobs TO monitor_ro"
    ):
        await look(failed_jobs, ctx)
    with pytest.raises(CannotLook, match="does not exist"):
        await look(failed_jobs, ctx, table="jobs")
