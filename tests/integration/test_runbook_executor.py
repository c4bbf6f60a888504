"""The executor on real PostgreSQL 15 and 18: what it changes, what it refuses, and that nothing else ever happens."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.pq import TransactionStatus

from monitor.clock import SystemClock
from monitor.domain import AuditEntry, Observed, Plan, Step
from monitor.errors import Refused, StoreError
from monitor.plugins import AnyOperation, Operation, RunbookContext
from monitor.probes.outside import Outside
from monitor.store import Store
from runbook.cancel_stuck_jobs import CANCEL_STUCK_JOBS, CancelStuckJobs
from runbook.executor import CAPS, Caps, apply, dry_run, prepare
from runbook.outcomes import Applied, StepStatus
from runbook.steps import Limits
from tests.support.runbook import SHAPES, Ground, ground

CANCELLED = ("failed", "Manually cancelled - stuck")
RUNNING = ("processing", None)
LOCK = "cancel-stuck-jobs/postgres"
PATIENT = Caps(limits=Limits(lock_s=30, statement_s=30))


class SteppedClock(SystemClock):
    """The machine's clock, moved on by hand."""

    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@dataclass
class World:
    ground: Ground
    store: Store
    ctx: RunbookContext
    clock: SteppedClock

    async def plan(self, **params: Any) -> Plan:
        return await prepare(CANCEL_STUCK_JOBS, self.ctx, CancelStuckJobs(**params))

    async def apply(self, plan: Plan | str, operation: AnyOperation = CANCEL_STUCK_JOBS, dsn: str | None = None, **changes: Any) -> Applied:
        options = {"who": "anna", "why": "INC-003 at night", "journal": self.store.journal, **changes}
        params = options.pop("params", CancelStuckJobs())
        digest = plan if isinstance(plan, str) else plan.digest
        async with await self.ground.connect(dsn) as connection:
            return await apply(operation, self.ctx, params, shown_digest=digest, connection=connection, **options)

    def phases(self) -> list[str]:
        return [entry.phase for entry in self.entries()]

    def entries(self) -> tuple[AuditEntry, ...]:
        return self.store.journal.entries(LOCK, self.clock.now() - timedelta(days=1))


async def until(condition: Callable[[], bool], what: str, within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


def statuses(applied: Applied) -> list[StepStatus]:
    return [outcome.status for outcome in applied.outcomes]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path}/state.db", busy_timeout_s=0.2)
    yield opened
    opened.close()


async def _world(dsn: str, shape: str, store: Store) -> AsyncIterator[World]:
    clock = SteppedClock()
    outside = Outside(clock)
    with ground(dsn, shape) as made:
        try:
            yield World(made, store, outside.runbook_context(made.service, {}), clock)
        finally:
            await outside.close()


@pytest.fixture(params=SHAPES)
async def world(request: pytest.FixtureRequest, database: str, store: Store) -> AsyncIterator[World]:
    """Every shape of the table on both versions."""
    async for made in _world(database, request.param, store):
        yield made


@pytest.fixture
async def leased(database: str, store: Store) -> AsyncIterator[World]:
    """The platform's own table, with heartbeat and lease, on both versions."""
    async for made in _world(database, "platform", store):
        yield made


@pytest.fixture
async def platform(database18: str, store: Store) -> AsyncIterator[World]:
    """The platform's own table on PostgreSQL 18, for what does not depend on shape or version."""
    async for made in _world(database18, "platform", store):
        yield made


def racing(happens: Callable[[], object], on_call: int = 2) -> AnyOperation:
    """The real operation, and something that happens right after its n-th look: the second is the one under the lock."""
    calls = 0

    async def plan(ctx: RunbookContext, params: CancelStuckJobs) -> Plan:
        nonlocal calls
        calls += 1
        made = await CANCEL_STUCK_JOBS.plan(ctx, params)
        if calls == on_call:
            happens()
        return made

    return replace(CANCEL_STUCK_JOBS, plan=plan)


# --- what it does ----------------------------------------------------------------------------------------------------


async def test_the_stuck_jobs_and_no_others_are_cancelled_verified_and_written_down(world: World) -> None:
    stuck, alive = world.ground.add(1), world.ground.add(2, silent="5 min")
    plan = await world.plan()
    applied = await world.apply(plan)
    assert world.ground.jobs() == {stuck: CANCELLED, alive: RUNNING}
    assert world.ground.run("SELECT count(*) FROM processing_jobs WHERE completed_at BETWEEN now() - interval '1 min' AND now()") == [(1,)]
    assert applied.ok
    assert statuses(applied) == [StepStatus.DONE]
    intent, outcome, seen = world.entries()
    assert [entry.phase for entry in (intent, outcome, seen)] == ["intent", "applied", "verified"]
    assert {(entry.who, entry.why, entry.digest) for entry in (intent, outcome, seen)} == {("anna", "INC-003 at night", plan.digest)}
    assert stuck in intent.detail
    assert "UPDATE" in intent.detail
    assert world.ground.advisory_locks() == 0


async def test_nothing_to_do_is_no_error_and_no_run(world: World) -> None:
    alive = world.ground.add(1, silent="5 min")
    plan = await world.plan()
    assert plan.steps == ()
    assert (await world.apply(plan)).ok
    assert world.phases() == []
    assert f"job {alive} is processing and gave a sign of life" in (await world.plan(job_id=alive)).summary
    assert "no job nobody exists" in (await world.plan(job_id="nobody")).summary


async def test_one_job_may_be_chosen_and_the_limit_takes_the_oldest(world: World) -> None:
    ids = [world.ground.add(number, silent=f"{number} h") for number in range(1, 5)]
    chosen = await world.plan(job_id=ids[1])
    assert [dict(step.params)["job_id"] for step in chosen.steps] == [ids[1]]
    limited = await world.plan(limit=2, older_than="30m")
    assert [dict(step.params)["job_id"] for step in limited.steps] == [ids[3], ids[2]]
    assert "2 of 4 stuck jobs" in limited.summary


async def test_a_plan_made_twice_is_the_same_plan(world: World) -> None:
    world.ground.add(1)
    assert (await world.plan()).digest == (await world.plan()).digest


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
async def test_the_silence_is_measured_again_whatever_the_time_zone_of_the_session(world: World, zone: str) -> None:
    stuck, alive = world.ground.add(1), world.ground.add(2, silent="5 min")
    (name,) = world.ground.run("SELECT current_database()")[0]
    world.ground.run(f"ALTER DATABASE \"{name}\" SET TimeZone = '{zone}'")
    both = await world.plan(older_than="1s")
    patient = [replace(step, params=tuple({**dict(step.params), "older_than_s": 1800.0}.items())) for step in both.steps]
    async with await world.ground.connect() as connection:
        outcomes = await dry_run(replace(both, steps=tuple(patient)), connection)
    assert [outcome.status for outcome in outcomes] == [StepStatus.WOULD, StepStatus.SKIPPED]
    assert (await world.apply(await world.plan())).ok
    assert world.ground.jobs() == {stuck: CANCELLED, alive: RUNNING}


async def test_the_lock_is_freed_although_the_connection_stays(platform: World) -> None:
    platform.ground.add(1)
    plan = await platform.plan()
    async with await platform.ground.connect() as connection:
        options = {"who": "anna", "why": "INC-003", "connection": connection, "journal": platform.store.journal}
        await apply(CANCEL_STUCK_JOBS, platform.ctx, CancelStuckJobs(), shown_digest=plan.digest, **options)
        assert platform.ground.advisory_locks() == 0
        assert not connection.closed


# --- dry run ---------------------------------------------------------------------------------------------------------


async def test_a_dry_run_does_everything_and_leaves_nothing(world: World) -> None:
    world.ground.add(1)
    world.ground.add(2)
    plan = await world.plan()
    before = world.ground.run("SELECT ctid, xmin, j.* FROM processing_jobs j ORDER BY job_id")
    async with await world.ground.connect() as connection:
        outcomes = await dry_run(plan, connection)
        assert [outcome.status for outcome in outcomes] == [StepStatus.WOULD] * 2
        assert connection.info.transaction_status is TransactionStatus.IDLE
        held = "SELECT locktype FROM pg_locks WHERE pid = %(pid)s AND locktype <> 'virtualxid' AND NOT fastpath"
        assert world.ground.run(held, pid=connection.info.backend_pid) == []
        (timeout,) = await (await connection.execute("SHOW lock_timeout")).fetchone() or ()
        assert timeout == "0"  # the limits were the transaction's own
    assert world.ground.run("SELECT ctid, xmin, j.* FROM processing_jobs j ORDER BY job_id") == before
    assert world.phases() == []


async def test_a_dry_run_shows_what_revived(world: World) -> None:
    first, second = world.ground.add(1), world.ground.add(2)
    plan = await world.plan()
    world.ground.revive(first)
    async with await world.ground.connect() as connection:
        outcomes = await dry_run(plan, connection)
    by_job = {dict(outcome.step.params)["job_id"]: outcome.status for outcome in outcomes}
    assert by_job == {first: StepStatus.SKIPPED, second: StepStatus.WOULD}


async def test_what_cannot_be_undone_is_not_tried(platform: World) -> None:
    async with await platform.ground.connect() as connection, await platform.ground.connect() as victim:
        kill = Step("End a session", "SELECT pg_terminate_backend(%(pid)s)", (("pid", victim.info.backend_pid),), 1)
        vacuum = Step("Vacuum", "/* UPDATE */ VACUUM processing_jobs")
        (first, second) = await dry_run(Plan("p", "s", "", (kill, vacuum)), connection)
        assert first.status is second.status is StepStatus.NOT_RUN
        assert (await (await victim.execute("SELECT 1")).fetchone()) == (1,)


@pytest.mark.parametrize("ending", ["COMMIT", "UPDATE processing_jobs SET tenant_id = 't1'; COMMIT"])
async def test_no_step_can_end_the_transaction_of_a_dry_run(platform: World, ending: str) -> None:
    job = platform.ground.add(1)
    change = Step("Change", "UPDATE processing_jobs SET status = 'failed'", expect_rows=1)
    async with await platform.ground.connect() as connection:
        await dry_run(Plan("p", "s", "", (change, Step("End", ending), change)), connection)
    assert platform.ground.jobs() == {job: RUNNING}


# --- jobs that come back to life -------------------------------------------------------------------------------------

SIGNS_OF_LIFE = {
    "finished": "status = 'completed'",
    "claimed again, and already silent again": "started_at = now() - interval '40 min'",
    "never started": "started_at = NULL",
}
LEASED = {
    "heartbeat": "heartbeat_at = now()",
    "heartbeat moved but old": "heartbeat_at = heartbeat_at + interval '1 second'",
    "another worker's lease": "lease_token = gen_random_uuid()",
    "lease prolonged": "lease_until = now() + interval '1 min'",
    "lease given back": "lease_token = NULL",
}


@pytest.mark.parametrize("sign", SIGNS_OF_LIFE)
async def test_a_job_that_came_back_between_plan_and_step_is_skipped(world: World, sign: str) -> None:
    await skips_the_revived(world, SIGNS_OF_LIFE[sign])


@pytest.mark.parametrize("sign", LEASED)
async def test_a_job_whose_lease_or_heartbeat_moved_is_skipped(leased: World, sign: str) -> None:
    await skips_the_revived(leased, LEASED[sign])


async def skips_the_revived(world: World, sign: str) -> None:
    revived, dead = world.ground.add(1, silent="50 min"), world.ground.add(2)
    plan = await world.plan()
    applied = await world.apply(plan, racing(lambda: world.ground.change(revived, sign)))
    assert statuses(applied) == [StepStatus.SKIPPED, StepStatus.DONE]
    assert "changed since the plan" in applied.outcomes[0].detail
    assert world.ground.jobs()[revived][1] is None
    assert world.ground.jobs()[dead] == CANCELLED
    assert applied.ok  # the revived job is in processing, and that is right
    assert world.phases() == ["intent", "applied", "verified"]
    assert "skipped: " in world.entries()[1].detail


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_a_plan_that_changed_since_it_was_shown_is_refused(world: World) -> None:
    job = world.ground.add(1)
    plan = await world.plan()
    later = world.ground.add(2)
    with pytest.raises(Refused, match="changed since it was shown"):
        await world.apply(plan)
    assert world.ground.jobs() == {job: RUNNING, later: RUNNING}
    assert world.phases() == ["refused"]


@pytest.mark.parametrize(("who", "why"), [("", "INC-003"), ("anna", ""), ("anna", " \n\t")])
async def test_who_and_why_are_required(platform: World, who: str, why: str) -> None:
    platform.ground.add(1)
    with pytest.raises(Refused, match="is required"):
        await platform.apply(await platform.plan(), who=who, why=why)
    assert platform.phases() == []


async def test_a_second_run_at_the_same_time_is_refused_and_names_the_first(world: World) -> None:
    job = world.ground.add(1)
    plan = await world.plan()
    with world.ground.row_held(job):
        first = asyncio.create_task(world.apply(plan, caps=PATIENT))
        await until(lambda: world.ground.waiting() == 1, "the first run waits for the row")
        with pytest.raises(Refused, match=r"another run of cancel-stuck-jobs/postgres is at work \(pid \d+, monitor-fix"):
            await world.apply(plan)
        assert not first.done()
    assert (await first).ok
    assert world.ground.jobs() == {job: CANCELLED}
    assert world.phases() == ["intent", "refused", "applied", "verified"]


async def test_of_many_at_once_one_applies_and_each_job_is_cancelled_once(world: World) -> None:
    ids = {world.ground.add(number) for number in range(5)}
    plan = await world.plan()
    ended = await asyncio.gather(*(world.apply(plan) for _ in range(6)), return_exceptions=True)
    applied = [result for result in ended if isinstance(result, Applied)]
    assert len(applied) == 1
    assert all(isinstance(result, Refused) for result in ended if result is not applied[0])
    assert statuses(applied[0]) == [StepStatus.DONE] * 5
    assert world.ground.jobs() == dict.fromkeys(ids, CANCELLED)
    assert world.phases().count("intent") == 1
    assert world.ground.advisory_locks() == 0


async def test_two_runs_an_hour_and_the_third_must_wait(platform: World) -> None:
    for number in range(3):
        platform.ground.add(number)
        plan = await platform.plan()
        if number < 2:
            assert (await platform.apply(plan)).ok
    with pytest.raises(Refused, match="ran 2 times within 1:00:00"):
        await platform.apply(plan)
    platform.clock.ahead = timedelta(minutes=61)
    assert (await platform.apply(plan)).ok


async def test_more_steps_than_the_limit_are_refused(platform: World) -> None:
    for number in range(3):
        platform.ground.add(number)

    async def greedy(ctx: RunbookContext, params: CancelStuckJobs) -> Plan:
        return await CANCEL_STUCK_JOBS.plan(ctx, params.model_copy(update={"limit": 100}))

    operation = replace(CANCEL_STUCK_JOBS, plan=greedy)
    params = CancelStuckJobs(limit=2)
    plan = await prepare(operation, platform.ctx, params)
    with pytest.raises(Refused, match="3 steps, and one run may have 2"):
        await platform.apply(plan, operation, params=params)
    assert set(platform.ground.jobs().values()) == {RUNNING}


async def test_a_connection_in_use_or_closed_is_refused(platform: World) -> None:
    plan = await platform.plan()
    async with await platform.ground.connect() as connection:
        await connection.execute("SELECT 1")
        with pytest.raises(Refused, match="inside a transaction"):
            await dry_run(plan, connection)
    with pytest.raises(Refused, match="closed"):
        await dry_run(plan, connection)


# --- bad days --------------------------------------------------------------------------------------------------------


async def test_a_role_without_the_right_changes_nothing_and_is_told_what_it_lacks(world: World) -> None:
    jobs = {world.ground.add(1): RUNNING, world.ground.add(2): RUNNING}
    plan = await world.plan()
    async with await world.ground.connect(world.ground.reader) as connection:
        tried = await dry_run(plan, connection)
    applied = await world.apply(plan, dsn=world.ground.reader)
    for outcomes in (tried, applied.outcomes):
        assert [outcome.status for outcome in outcomes] == [StepStatus.FAILED, StepStatus.NOT_RUN]
        assert "permission denied for table processing_jobs: grant it to the role 'reader_" in outcomes[0].detail
    assert not applied.ok
    assert world.ground.jobs() == jobs
    assert world.phases() == ["intent", "failed"]


async def test_a_role_that_cannot_write_is_told_so(world: World) -> None:
    job = world.ground.add(1)
    plan = await world.plan()
    applied = await world.apply(plan, dsn=world.ground.fixer + " options='-c default_transaction_read_only=on'")
    assert statuses(applied) == [StepStatus.FAILED]
    assert "a standby or a read-only role" in applied.outcomes[0].detail
    assert world.ground.jobs() == {job: RUNNING}


async def test_a_row_that_another_session_works_on_fails_the_step(world: World) -> None:
    job = world.ground.add(1)
    plan = await world.plan()
    with world.ground.row_held(job):
        applied = await world.apply(plan, caps=Caps(limits=Limits(lock_s=0.1)))
    assert statuses(applied) == [StepStatus.FAILED]
    assert "another session holds the row" in applied.outcomes[0].detail
    assert world.ground.jobs() == {job: RUNNING}


async def test_a_connection_lost_within_a_step_is_an_outcome(world: World) -> None:
    job = world.ground.add(1)
    world.ground.add(2)
    plan = await world.plan()
    with world.ground.row_held(job):
        run = asyncio.create_task(world.apply(plan, caps=PATIENT))
        await until(lambda: world.ground.waiting() == 1, "the step waits for the row")
        world.ground.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'monitor-fix' AND wait_event_type = 'Lock'"
        )
        applied = await run
    assert statuses(applied) == [StepStatus.FAILED, StepStatus.NOT_RUN]
    assert set(world.ground.jobs().values()) == {RUNNING}
    assert world.phases() == ["intent", "failed"]


async def test_a_step_that_hits_more_rows_than_promised_is_rolled_back(platform: World) -> None:
    jobs = {platform.ground.add(number): RUNNING for number in range(2)}

    async def wide(ctx: RunbookContext, params: CancelStuckJobs) -> Plan:
        step = Step("All of them", "UPDATE public.processing_jobs SET status = 'failed'", expect_rows=1)
        return Plan("wide", "postgres", "", (step, step))

    async def verify(ctx: RunbookContext, plan: Plan) -> Observed:
        raise AssertionError("nothing was changed")

    operation = Operation("wide", "", CancelStuckJobs, wide, verify)
    plan = await prepare(operation, platform.ctx, CancelStuckJobs())
    applied = await platform.apply(plan, operation)
    assert statuses(applied) == [StepStatus.FAILED, StepStatus.NOT_RUN]
    assert "2 rows instead of 1; rolled back" in applied.outcomes[0].detail
    assert platform.ground.jobs() == jobs


async def test_a_cancelled_job_that_is_processing_again_is_not_verified(world: World) -> None:
    world.ground.add(1)
    world.ground.run(
        "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.status := 'processing'; RETURN NEW; END $$;"
        "CREATE TRIGGER back BEFORE UPDATE ON processing_jobs FOR EACH ROW EXECUTE FUNCTION back()"
    )
    applied = await world.apply(await world.plan())
    assert statuses(applied) == [StepStatus.DONE]
    assert not applied.ok
    assert [finding.kind.name for finding in applied.findings] == ["CancelledJobStillProcessing"]
    assert world.phases() == ["intent", "applied", "not-verified"]


async def test_who_cannot_look_again_has_not_verified(platform: World) -> None:
    job = platform.ground.add(1)
    (reader,) = platform.ground.run(
        "SELECT grantee FROM information_schema.table_privileges WHERE grantee LIKE 'reader!_%%' ESCAPE '!'"
        " AND table_name = 'processing_jobs'".replace("%%", "%")
    )[0]

    async def verify(ctx: RunbookContext, plan: Plan) -> Observed:
        platform.ground.run(f"REVOKE SELECT ON processing_jobs FROM {reader}")
        return await CANCEL_STUCK_JOBS.verify(ctx, plan)

    applied = await platform.apply(await platform.plan(), replace(CANCEL_STUCK_JOBS, verify=verify))
    assert not applied.verified
    assert applied.verification.startswith("Could not look again")
    assert platform.ground.jobs() == {job: CANCELLED}
    assert platform.phases() == ["intent", "applied", "not-verified"]


# --- a journal that fails --------------------------------------------------------------------------------------------


@pytest.fixture
def locked_state(tmp_path: Path) -> Iterator[Callable[[], Callable[[], None]]]:
    """Call it to lock the state file as another process would; call what it returns to unlock it."""
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)

    def lock() -> Callable[[], None]:
        other.execute("BEGIN IMMEDIATE")
        return lambda: other.execute("ROLLBACK") and None

    yield lock
    other.close()


async def test_without_a_written_intent_nothing_happens(platform: World, locked_state: Callable[[], Callable[[], None]]) -> None:
    job = platform.ground.add(1)
    plan = await platform.plan()
    unlock = locked_state()
    with pytest.raises(StoreError):
        await platform.apply(plan)
    unlock()
    assert platform.ground.jobs() == {job: RUNNING}
    assert platform.ground.advisory_locks() == 0


async def test_an_outcome_that_cannot_be_written_is_told_and_the_run_is_unknown_to_the_next(
    platform: World, locked_state: Callable[[], Callable[[], None]]
) -> None:
    job = platform.ground.add(1)

    class Fragile:
        """The real journal, whose file another process locks once the intent is in it."""

        unlock: Callable[[], None] | None = None

        def append(self, entry: AuditEntry) -> None:
            platform.store.journal.append(entry)
            if entry.phase == "intent":
                self.unlock = locked_state()

        def entries(self, plan: str, since: datetime) -> tuple[AuditEntry, ...]:
            return platform.store.journal.entries(plan, since)

    fragile = Fragile()
    applied = await platform.apply(await platform.plan(), journal=fragile)
    assert fragile.unlock
    fragile.unlock()
    assert statuses(applied) == [StepStatus.DONE]
    assert "could not be written" in applied.notes[0]
    assert platform.ground.jobs() == {job: CANCELLED}
    platform.ground.add(2)
    with pytest.raises(Refused, match="never reported its outcome"):
        await platform.apply(await platform.plan())


async def test_an_interrupted_run_frees_its_lock_and_is_unknown_to_the_next(platform: World) -> None:
    job = platform.ground.add(1)
    plan = await platform.plan()
    with platform.ground.row_held(job):
        run = asyncio.create_task(platform.apply(plan, caps=PATIENT))
        await until(lambda: platform.ground.waiting() == 1, "the step waits for the row")
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert platform.ground.jobs() == {job: RUNNING}
    await until(lambda: platform.ground.advisory_locks() == 0, "the lock is free")
    with pytest.raises(Refused, match="never reported its outcome"):
        await platform.apply(plan)
    assert (await platform.apply(plan)).ok


def test_the_shipped_caps_are_the_promised_ones() -> None:
    assert (CAPS.steps, CAPS.runs, CAPS.window) == (10, 2, timedelta(hours=1))
