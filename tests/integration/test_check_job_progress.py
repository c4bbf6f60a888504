"""``job_progress`` on the platform's tables, 15 and 18, as the monitor's role: a beating heart that gets nowhere."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from checks.job_progress import job_progress
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import after, look, looking_at
from tests.support.platform_tables import add_job, add_mail_job, add_tenants, platform_database, run_sql


class SetClock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)  # noqa: TID251 - the database's own clock is compared with it

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    def advance(self, **time: float) -> None:
        self.at += timedelta(**time)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def ctx(database: str, clock: SetClock) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    add_tenants(database, "shop")
    async with looking_at(Service("postgres", dsn=SecretStr(dsn)), clock=clock) as found:
        yield found


def still(observed: Observed) -> tuple[float, float]:
    count, longest = (sample.value for sample in observed.samples)
    return count, longest


async def test_no_job_is_well(ctx: CheckContext) -> None:
    assert still(await look(job_progress, ctx)) == (0, 0)


async def test_a_job_that_beats_but_does_nothing_is_found_over_runs(database: str, ctx: CheckContext, clock: SetClock) -> None:
    add_job(database, "j1", "shop", status="processing", started_ago="1 min", heartbeat_ago="0 s", rows_ingested=100)
    add_job(database, "j2", "shop", status="processing", started_ago="1 min", heartbeat_ago="0 s", rows_ingested=0)
    observed = await look(job_progress, ctx)
    assert observed.findings == ()
    for minutes in (8, 8):
        clock.advance(minutes=minutes)
        run_sql(database, "UPDATE processing_jobs SET heartbeat_at = now(), rows_ingested = rows_ingested + 50 WHERE job_id = 'j2'")
        run_sql(database, "UPDATE processing_jobs SET heartbeat_at = now()")
        observed = await look(job_progress, after(ctx, observed))
    (finding,) = observed.findings
    assert (finding.kind.name, finding.kind.incident, finding.labels) == ("JobNoProgress", "INC-003", ())
    assert finding.summary == "1 job in processing has made no progress for 16 min, longer than 15 min (postgres)"
    assert finding.value == pytest.approx(960, abs=2)
    facts = dict(finding.facts)
    assert facts["without progress"] == "1 of 2 in processing"
    assert facts["progress is"] == "rows_ingested"
    assert facts["job j1"].startswith("at 100 for 16 min, tenant shop, last heartbeat 0 s ago")
    assert still(observed)[0] == 1

    run_sql(database, "UPDATE processing_jobs SET rows_ingested = rows_ingested + 1 WHERE job_id = 'j1'")
    assert (await look(job_progress, after(ctx, observed))).findings == ()


async def test_an_old_heartbeat_tells_at_the_first_look(database: str, ctx: CheckContext) -> None:
    add_job(database, "j1", "shop", status="processing", started_ago="1 h", heartbeat_ago="20 min", rows_ingested=7, worker="data@host:1")
    (finding,) = (await look(job_progress, ctx)).findings
    assert "worker data@host:1" in dict(finding.facts)["job j1"]
    assert finding.value == pytest.approx(1200, abs=5)


async def test_a_job_that_never_beats_is_judged_by_its_progress_alone(database: str, ctx: CheckContext, clock: SetClock) -> None:
    add_job(database, "j1", "shop", status="processing", started_ago="5 h")
    observed = await look(job_progress, ctx)
    assert observed.findings == ()  # nothing says that it did not move just now
    clock.advance(minutes=16)
    assert len((await look(job_progress, after(ctx, observed))).findings) == 1


async def test_a_job_that_begins_anew_gets_its_time_anew(database: str, ctx: CheckContext, clock: SetClock) -> None:
    add_job(database, "j1", "shop", status="processing", started_ago="5 min", heartbeat_ago="0 s")
    observed = await look(job_progress, ctx)
    clock.advance(minutes=16)
    run_sql(database, "UPDATE processing_jobs SET started_at = now(), heartbeat_at = now()")
    assert (await look(job_progress, after(ctx, observed))).findings == ()
    run_sql(database, "UPDATE processing_jobs SET status = 'completed'")
    observed = await look(job_progress, after(ctx, observed))
    assert observed.keep == {}


async def test_mail_jobs_move_with_what_was_sent_or_failed(database: str, ctx: CheckContext, clock: SetClock) -> None:
    add_mail_job(database, "m1", "shop", status="processing", started_ago="1 min", heartbeat_ago="0 s", emails_sent=1, emails_failed=2)
    observed = await look(job_progress, ctx, table="email_sending_jobs")
    clock.advance(minutes=16)
    (finding,) = (await look(job_progress, after(ctx, observed), table="email_sending_jobs")).findings
    assert dict(finding.facts)["progress is"] == "emails_sent, emails_failed"
    assert dict(finding.facts)["job m1"].startswith("at 1 / 2 for 16 min")
    run_sql(database, "UPDATE email_sending_jobs SET emails_failed = 3")
    assert (await look(job_progress, after(ctx, observed), table="email_sending_jobs")).findings == ()


async def test_another_column_and_hostile_names(database: str, ctx: CheckContext, clock: SetClock) -> None:
    add_tenants(database, "a\x1b[31m\nb")
    add_job(database, "j\u202e1\n", "a\x1b[31m\nb", status="processing", started_ago="1 min")
    observed = await look(job_progress, ctx, progress=["worker"])
    clock.advance(hours=1)
    (finding,) = (await look(job_progress, after(ctx, observed), progress=["worker"])).findings
    assert all(text.isprintable() for fact in finding.facts for text in fact)
    with pytest.raises(CannotLook, match=r"has no column pages"):
        await look(job_progress, ctx, progress=["pages"])


async def test_without_any_sign_it_is_blind(database: str, ctx: CheckContext) -> None:
    columns = "job_id text, status text, started_at timestamptz"
    run_sql(database, f"CREATE TABLE bare ({columns})", f"CREATE TABLE beating ({columns}, heartbeat_at timestamptz)")
    run_sql(database, "GRANT SELECT ON bare, beating TO monitor_ro")
    with pytest.raises(CannotLook, match=r"neither a heartbeat_at nor a column of progress"):
        await look(job_progress, ctx, table="bare")
    run_sql(database, "INSERT INTO beating VALUES ('b', 'processing', now(), now() - interval '30 min')")
    (finding,) = (await look(job_progress, ctx, table="beating")).findings
    assert dict(finding.facts)["progress is"] == "heartbeat_at"


async def test_what_may_not_be_read_is_named(database: str, ctx: CheckContext) -> None:
    run_sql(database, "REVOKE SELECT ON processing_jobs FROM monitor_ro")
    with pytest.raises(
        CannotLook,
        match=r"GRANT SELECT \(job_id, status, started_at, heartbeat_at, rows_ingested\) ON public\.processing_jobs TO monitor_ro",
    ):
        await look(job_progress, ctx)
