"""``stuck_jobs`` on real tables, 15 and 18: with heartbeat, on the runbook's bare columns, missing, forbidden, locked."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from checks.stuck_jobs import Config, stuck_jobs
from monitor.clock import SystemClock
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from monitor.probes.http import CurlProbe
from monitor.probes.postgres import PgSentinel
from tests.support.looking import with_parts

RUNBOOK = """
CREATE TABLE public.processing_jobs (
    job_id text PRIMARY KEY, tenant_id text, status text, data_types text[], start_date date, end_date date,
    created_at timestamptz DEFAULT now(), started_at timestamptz, completed_at timestamptz, error_message text)
"""
HEARTBEAT = "ALTER TABLE public.processing_jobs ADD heartbeat_at timestamptz"
INSERT = """
INSERT INTO public.processing_jobs (job_id, tenant_id, status, started_at)
SELECT 'job-' || n, 't1', status, now() - make_interval(mins => minutes)
FROM (VALUES
    (1, 'processing', 31), (2, 'processing', 29), (3, 'failed', 500), (4, 'queued', NULL), (5, 'processing', 90)) AS v (n, status, minutes)
"""


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    clock = SystemClock()
    http = CurlProbe(clock)
    sentinel = PgSentinel(SecretStr(database), None, clock)
    yield with_parts(Service("postgres", dsn=SecretStr(database)), clock=clock, http=http, pg=sentinel)
    await sentinel.close()
    await http.close()


def run_sql(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


async def look(ctx: CheckContext, config: Config | None = None, *, within_s: float = 4) -> Observed:
    async with asyncio.timeout(within_s):
        return await stuck_jobs.run(ctx, config or Config())


async def test_on_the_runbooks_own_columns_the_start_counts(database: str, ctx: CheckContext) -> None:
    run_sql(database, RUNBOOK, INSERT)
    observed = await look(ctx)
    assert [(sample.metric.name, round(sample.value / 60)) for sample in observed.samples][2] == (
        "monitor_jobs_oldest_heartbeat_seconds",
        90,
    )
    assert [sample.value for sample in observed.samples][:2] == [3, 2]
    (finding,) = observed.findings
    facts = dict(finding.facts)
    assert finding.labels == ()
    assert finding.kind.incident == "INC-003"
    assert facts["sign of life"] == "started_at"
    assert [name for name in facts if name.startswith("job ")] == ["job job-5", "job job-1"]
    assert "tenant t1" in facts["job job-5"]


async def test_where_the_table_has_a_heartbeat_a_living_job_is_not_stuck(database: str, ctx: CheckContext) -> None:
    run_sql(database, RUNBOOK, INSERT, HEARTBEAT)
    assert len((await look(ctx)).findings) == 1  # no heartbeat yet: the start counts
    run_sql(database, "UPDATE public.processing_jobs SET heartbeat_at = now() - interval '1 min' WHERE job_id IN ('job-1', 'job-5')")
    observed = await look(ctx)
    assert observed.findings == ()
    assert [round(sample.value) for sample in observed.samples][:2] == [3, 0]


async def test_a_job_whose_lease_is_over_is_stuck_at_once(database: str, ctx: CheckContext) -> None:
    lease = "ALTER TABLE public.processing_jobs ADD lease_until timestamptz, ADD worker text"
    run_sql(database, RUNBOOK, INSERT, HEARTBEAT, lease, "UPDATE public.processing_jobs SET heartbeat_at = now(), worker = E'data@a\\n:7'")
    assert (await look(ctx)).findings == ()
    run_sql(database, "UPDATE public.processing_jobs SET lease_until = now() - interval '40 s' WHERE job_id = 'job-2'")
    assert (await look(ctx)).findings == ()  # another worker has a minute to take over
    observed = await look(ctx, Config(lease_grace=30))
    (finding,) = observed.findings
    assert [sample.value for sample in observed.samples if sample.metric.name == "monitor_jobs_lease_expired"] == [1]
    assert "1 job has been left in processing: the lease has been over for 40 s" in finding.summary
    assert "worker data@a :7" in dict(finding.facts)["job job-2"]
    assert finding.value is not None
    assert finding.value < 30


async def test_hidden_columns_that_matter_are_named(database: str, ctx: CheckContext) -> None:
    role = f"half_{conninfo_to_dict(database)['dbname']}"
    some = f"GRANT SELECT (job_id, status, started_at) ON public.processing_jobs TO {role}"
    run_sql(database, RUNBOOK, HEARTBEAT, INSERT, f"CREATE ROLE {role} LOGIN", some)
    sentinel = PgSentinel(SecretStr(f"{database} user={role}"), None, SystemClock())
    half = with_parts(ctx.service, clock=ctx.clock, http=ctx.http, pg=sentinel)
    try:
        with pytest.raises(CannotLook, match=rf"GRANT SELECT \(heartbeat_at\) ON public\.processing_jobs TO {role}"):
            await look(half)
        run_sql(database, f"GRANT SELECT (heartbeat_at) ON public.processing_jobs TO {role}")
        assert len((await look(half)).findings) == 1
    finally:
        await sentinel.close()
        run_sql(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_the_list_is_short_and_the_count_is_whole(database: str, ctx: CheckContext) -> None:
    many = """INSERT INTO public.processing_jobs (job_id, status, started_at)
              SELECT 'j' || n, 'processing', now() - interval '2 h' FROM generate_series(1, 500) n"""
    run_sql(database, RUNBOOK, many)
    (finding,) = (await look(ctx, Config(max_listed=3))).findings
    facts = dict(finding.facts)
    assert facts["stuck"] == "500 of 500 in processing"
    assert facts["more"] == "497 not listed"
    assert len([name for name in facts if name.startswith("job ")]) == 3


async def test_another_table_and_another_limit_of_age(database: str, ctx: CheckContext) -> None:
    run_sql(
        database,
        RUNBOOK,
        INSERT,
        "CREATE SCHEMA app",
        "ALTER TABLE public.processing_jobs SET SCHEMA app",
        'ALTER TABLE app.processing_jobs RENAME TO "Jobs"',
    )
    run_sql(database, 'ALTER TABLE app."Jobs" DROP COLUMN tenant_id')
    config = Config.model_validate({"table": "app.Jobs", "older_than": "1h"})
    (finding,) = (await look(ctx, config)).findings
    assert dict(finding.facts)["stuck"] == "1 of 3 in processing"
    assert "tenant" not in dict(finding.facts)["job job-5"]


async def test_times_without_zone_are_read_as_utc(database: str, ctx: CheckContext) -> None:
    run_sql(database, RUNBOOK, "ALTER TABLE public.processing_jobs ALTER started_at TYPE timestamp", "SET TimeZone = 'UTC'", INSERT)
    observed = await look(ctx)
    assert [sample.value for sample in observed.samples][:2] == [3, 2]


async def test_an_empty_table_is_ok(database: str, ctx: CheckContext) -> None:
    run_sql(database, RUNBOOK)
    assert [sample.value for sample in (await look(ctx)).samples] == [0, 0, 0, 0]


async def test_a_missing_table_and_missing_columns_are_named(database: str, ctx: CheckContext) -> None:
    with pytest.raises(CannotLook, match=r"table public\.processing_jobs does not exist"):
        await look(ctx)
    run_sql(database, "CREATE TABLE public.processing_jobs (job_id text, state text)")
    with pytest.raises(CannotLook, match="no column started_at, status"):
        await look(ctx)


async def test_missing_rights_are_named_with_the_grant(database: str, ctx: CheckContext) -> None:
    role = f"poor_{conninfo_to_dict(database)['dbname']}"
    run_sql(database, RUNBOOK, f"CREATE ROLE {role} LOGIN IN ROLE pg_monitor", "CREATE SCHEMA closed", "CREATE TABLE closed.jobs (a int)")
    sentinel = PgSentinel(SecretStr(f"{database} user={role}"), None, SystemClock())
    poor = with_parts(ctx.service, clock=ctx.clock, http=ctx.http, pg=sentinel)
    try:
        with pytest.raises(CannotLook, match=rf"GRANT SELECT \(job_id, status, started_at\) ON public\.processing_jobs TO {role}"):
            await look(poor)
        with pytest.raises(CannotLook, match=f"GRANT USAGE ON SCHEMA closed TO {role}"):
            await look(poor, Config(table="closed.jobs"))
        run_sql(database, f"GRANT SELECT ON public.processing_jobs TO {role}")
        assert (await look(poor)).findings == ()
    finally:
        await sentinel.close()
        run_sql(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_a_locked_table_is_blind_within_a_second(database: str, ctx: CheckContext) -> None:
    run_sql(database, RUNBOOK, INSERT)
    await look(ctx)
    with psycopg.connect(database) as migration:
        migration.execute("LOCK TABLE public.processing_jobs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CannotLook, match="locked by another session"):
            await look(ctx, within_s=1)
    assert len((await look(ctx)).findings) == 1
