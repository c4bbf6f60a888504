"""Runs plans: the only place of the runbook that changes anything. Dry run is a real transaction, rolled back.

To apply: lock, plan again, compare with what was shown, write down the intent, run each step, write down the outcome, verify.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from typing import Literal

import psycopg
from psycopg.pq import TransactionStatus

from monitor.clock import Clock
from monitor.domain import AuditEntry, Plan, Step
from monitor.errors import CannotLook, MonitorError, Refused, StoreError
from monitor.plugins import ConfigT, Operation, RunbookContext
from runbook.digest import canonical, sealed
from runbook.journal import REMEMBER, Journal, next_allowed, unfinished
from runbook.outcomes import Applied, StepOutcome, StepStatus, count
from runbook.steps import GRACE_S, Limits, run_step

LOOK_S = 30.0
"""How long an operation may take to plan or to verify."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What one run, and one hour, may do at most."""

    steps: int = 10
    """Steps per run of an operation whose parameters have no ``limit`` of their own."""
    runs: int = 2
    """Runs per lock within ``window``."""
    window: timedelta = timedelta(hours=1)
    limits: Limits = field(default_factory=Limits)


CAPS = Caps()

REVERSIBLE = ("UPDATE ", "INSERT ", "DELETE ", "MERGE ", "ALTER ", "ANALYZE ")
"""What a rolled-back transaction undoes. Anything else (a signal to a session, VACUUM) is shown by a dry run, not tried."""


async def prepare(operation: Operation[ConfigT], ctx: RunbookContext, params: ConfigT) -> Plan:
    """Make the plan, sealed: its ``digest`` is the one that :func:`apply` compares. Raises ``CannotLook``."""
    try:
        async with asyncio.timeout(LOOK_S):
            return sealed(await operation.plan(ctx, params))
    except TimeoutError as exc:
        raise CannotLook(f"planning {operation.name} took longer than {LOOK_S:g} s") from exc


async def dry_run(plan: Plan, connection: psycopg.AsyncConnection, *, limits: Limits = CAPS.limits) -> tuple[StepOutcome, ...]:
    """Run the plan's steps in one transaction that is always rolled back; stop at the first that fails.

    ``connection`` must be idle and direct (no transaction pooler), and is left idle. Raises ``Refused`` when no transaction can be opened.
    """
    await _ready(connection)
    outcomes: list[StepOutcome] = []
    try:
        async with asyncio.timeout(limits.step_s * max(1, len(plan.steps)) + GRACE_S), connection.transaction(force_rollback=True):
            for step in plan.steps:
                if not step.sql.lstrip().upper().startswith(REVERSIBLE):
                    outcomes.append(StepOutcome(step, StepStatus.NOT_RUN, "cannot be undone, so a dry run does not try it"))
                    continue
                outcomes.append(await run_step(connection, step, limits, success=StepStatus.WOULD))
                if outcomes[-1].status is StepStatus.FAILED:
                    break
    except (psycopg.Error, TimeoutError) as exc:
        if not outcomes:
            raise Refused(f"the dry run could not begin: {_one_line(exc)}; nothing was tried") from exc
    return _with_rest(plan, outcomes)


async def apply(
    operation: Operation[ConfigT],
    ctx: RunbookContext,
    params: ConfigT,
    *,
    shown_digest: str,
    who: str,
    why: str,
    connection: psycopg.AsyncConnection,
    journal: Journal,
    caps: Caps = CAPS,
) -> Applied:
    """Carry out the plan that was shown, and nothing else.

    ``connection`` comes from ``Service.fix_dsn``: idle, direct, used by this call alone. Raises, before anything is changed: ``Refused``
    (the journal says why), ``CannotLook`` when the plan cannot be made again, ``StoreError`` when the intent cannot be written.
    """
    who, why = _required(who, "who", "who applies it"), _required(why, "why", "the reason, such as the incident's id")
    await _ready(connection)
    run = _Run(journal, ctx.clock, await prepare(operation, ctx, params), who, why)
    try:
        async with _exclusive(connection, run.plan.lock, caps.limits):
            # Planned again under the lock: a parallel run may have changed the world before we got it.
            run = replace(run, plan=await prepare(operation, ctx, params))
            _refuse_unless_allowed(run, shown_digest, getattr(params, "limit", caps.steps), caps)
            if not run.plan.steps:
                return Applied(run.plan, (), verified=True, verification="Nothing had to be done.")
            return await _carry_out(operation, ctx, run, connection, caps.limits)
    except Refused as exc:
        with suppress(StoreError):  # the refusal is what the person must hear
            run.note("refused", str(exc))
        raise


@dataclass(frozen=True, slots=True)
class _Run:
    """What every audit entry of one run has in common."""

    journal: Journal
    clock: Clock
    plan: Plan
    who: str
    why: str

    def note(self, phase: Literal["intent", "applied", "failed", "refused", "verified", "not-verified"], detail: str) -> None:
        """Append one entry, durable on return. Raises ``StoreError``."""
        self.journal.append(AuditEntry(self.clock.now(), self.plan.lock, self.plan.digest, phase, self.who, self.why, detail))


def _refuse_unless_allowed(run: _Run, shown_digest: str, limit: int, caps: Caps) -> None:
    """Raise ``Refused`` unless this very plan was shown, fits the caps, and no earlier run is unaccounted for."""
    now = run.clock.now()
    entries = run.journal.entries(run.plan.lock, now - REMEMBER)
    if lost := unfinished(entries):
        run.journal.append(replace(lost, at=now, phase="failed", detail=f"unknown: this run began at {lost.at:%F %T} UTC and never ended"))
        raise Refused(
            f"the run by {lost.who} at {lost.at:%F %T} UTC ({lost.why}) never reported its outcome: what it changed is unknown, "
            "and that is recorded now. Look at the plan again, then apply it again"
        )
    if run.plan.digest != shown_digest:
        raise Refused(
            f"the plan changed since it was shown (shown {shown_digest[:12]}, now {run.plan.digest[:12]}): {run.plan.summary} "
            "Look at it again, then apply it again"
        )
    if len(run.plan.steps) > limit:
        raise Refused(f"the plan has {len(run.plan.steps)} steps, and one run may have {limit}: narrow it")
    free_at = next_allowed(entries, now=now, runs=caps.runs, window=caps.window)
    if run.plan.steps and free_at:
        raise Refused(
            f"{run.plan.lock} ran {caps.runs} times within {caps.window}: what comes back needs its cause removed, not another run. "
            f"The next is allowed at {free_at:%T} UTC"
        )


async def _carry_out(
    operation: Operation[ConfigT], ctx: RunbookContext, run: _Run, connection: psycopg.AsyncConnection, limits: Limits
) -> Applied:
    """Intent, steps, outcome, verification. From here on nothing raises but cancellation and a journal that refuses the intent."""
    run.note("intent", canonical(run.plan))
    ran: list[StepOutcome] = []
    for step in run.plan.steps:
        ran.append(await run_step(connection, step, limits, success=StepStatus.DONE))
        if ran[-1].status in (StepStatus.FAILED, StepStatus.UNKNOWN):
            break
    outcomes = _with_rest(run.plan, ran)
    applied = Applied(run.plan, outcomes, verified=True, verification="Nothing was changed, so there was nothing to verify.")
    notes = _try_note(run, "failed" if applied.failed else "applied", _account(outcomes))
    changed = tuple(outcome.step for outcome in outcomes if outcome.status in (StepStatus.DONE, StepStatus.UNKNOWN))
    if changed:
        applied = await _verify(operation, ctx, applied, changed)
        notes += _try_note(run, "verified" if applied.verified else "not-verified", applied.verification)
    return replace(applied, notes=notes)


async def _verify(operation: Operation[ConfigT], ctx: RunbookContext, applied: Applied, changed: tuple[Step, ...]) -> Applied:
    """Look again at what was changed. Whoever cannot look has not verified."""
    try:
        async with asyncio.timeout(LOOK_S):
            observed = await operation.verify(ctx, replace(applied.plan, steps=changed))
    except (MonitorError, TimeoutError) as exc:
        return replace(applied, verified=False, verification=f"Could not look again: {_one_line(exc)}")
    if observed.findings:
        seen = "; ".join(finding.summary for finding in observed.findings)
        return replace(applied, verified=False, verification=f"Looked again: {seen}.", findings=observed.findings)
    return replace(applied, verification="Looked again: it is as planned.")


def _try_note(run: _Run, phase: Literal["applied", "failed", "verified", "not-verified"], detail: str) -> tuple[str, ...]:
    """Append what already happened; a journal that fails now must not hide it from the person."""
    try:
        run.note(phase, detail)
    except StoreError as exc:
        return (f"The audit entry '{phase}' could not be written: {_one_line(exc)}. The next run will call this one unknown.",)
    return ()


def _account(outcomes: tuple[StepOutcome, ...]) -> str:
    lines = [f"{outcome.status.value}: {outcome.step.title}: {outcome.detail}" for outcome in outcomes]
    return "\n".join([count(outcomes), *lines])


def _with_rest(plan: Plan, outcomes: list[StepOutcome]) -> tuple[StepOutcome, ...]:
    """The outcomes, and for each step after the last of them that it did not run."""
    rest = plan.steps[len(outcomes) :]
    return (*outcomes, *(StepOutcome(step, StepStatus.NOT_RUN, "an earlier step failed") for step in rest))


def _required(text: str, name: str, meaning: str) -> str:
    said = " ".join(text.split())
    if not said:
        raise Refused(f"{name} is required: say {meaning}")
    return said[:500]


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or "no answer in time"


async def _ready(connection: psycopg.AsyncConnection) -> None:
    """Every statement from here on is its own transaction unless one is opened. Raises ``Refused`` on a connection that is not idle."""
    if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
        raise Refused("the connection of fix_dsn is closed or inside a transaction: open a fresh one")
    await connection.set_autocommit(True)


# --- one run at a time -----------------------------------------------------------------------------------------------

TRY_LOCK = "SELECT pg_try_advisory_lock(%(key)s)"
UNLOCK = "SELECT pg_advisory_unlock(%(key)s)"
HOLDER = """
SELECT format('pid %%s, %%s, since %%s', a.pid, coalesce(nullif(a.application_name, ''), 'no application name'), a.backend_start)
FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database()
  AND (l.classid::bigint << 32) | l.objid::bigint = %(key)s
"""


@asynccontextmanager
async def _exclusive(connection: psycopg.AsyncConnection, lock: str, limits: Limits) -> AsyncIterator[None]:
    """Hold the session advisory lock of that name; PostgreSQL frees it when the connection dies. Raises ``Refused`` when it is held."""
    key = {"key": int.from_bytes(sha256(lock.encode()).digest()[:8], signed=True)}
    try:
        async with asyncio.timeout(limits.step_s):
            (taken,) = await (await connection.execute(TRY_LOCK, key)).fetchone() or (False,)
            holder = None if taken else await (await connection.execute(HOLDER, key)).fetchone()
    except (psycopg.Error, TimeoutError) as exc:
        raise Refused(f"the lock {lock} could not be taken: {_one_line(exc)}") from exc
    if not taken:
        raise Refused(f"another run of {lock} is at work ({holder[0] if holder else 'just ended'}): wait until it has ended")
    try:
        yield
    finally:
        with suppress(psycopg.Error, TimeoutError):  # a dead connection has freed it already; a stuck one is closed by its owner
            async with asyncio.timeout(GRACE_S):
                await connection.execute(UNLOCK, key)
