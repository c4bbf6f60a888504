"""One step of a plan on one connection: its transaction, its time limits, its promised row count.

Used by the executor only: for real, and inside a transaction that is rolled back.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import errors

from monitor.domain import Step
from runbook.outcomes import StepOutcome, StepStatus

GRACE_S = 2.0
"""How much longer than the server's own limits we wait for its answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a step may wait for a lock, and how long its statement may take, in seconds."""

    lock_s: float = 2.0
    statement_s: float = 15.0

    @property
    def step_s(self) -> float:
        """One whole step, with its transaction."""
        return self.statement_s + GRACE_S


# UTC as in the session that planned: a column without a time zone must mean the same moment here.
GUARD = """
SELECT set_config('lock_timeout', %(lock)s, true), set_config('statement_timeout', %(statement)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle)s, true), set_config('TimeZone', 'UTC', true)
"""


async def run_step(
    connection: psycopg.AsyncConnection, step: Step, limits: Limits, *, success: Literal[StepStatus.DONE, StepStatus.WOULD]
) -> StepOutcome:
    """Run one step in its own transaction (a savepoint inside another one); it is rolled back unless it keeps its promise.

    Failures of the server are outcomes, never exceptions.
    """
    committing = False
    try:
        async with asyncio.timeout(limits.step_s), connection.transaction():
            await connection.execute(GUARD, _settings(limits))
            # binary=True selects the extended protocol, which takes one statement only: no step can end its own transaction.
            cursor = await connection.execute(step.sql.encode(), dict(step.params), binary=True)
            outcome = judge(step, cursor.rowcount, success)
            if outcome.status is not success:
                raise psycopg.Rollback
            committing = True
    except (psycopg.Error, TimeoutError) as exc:
        if committing and (connection.broken or isinstance(exc, TimeoutError)):
            return StepOutcome(step, StepStatus.UNKNOWN, "the connection was lost while committing: look whether it happened")
        return StepOutcome(step, StepStatus.FAILED, explain(exc, connection, limits))
    return outcome


def judge(step: Step, rows: int, success: StepStatus) -> StepOutcome:
    """Compare the server's row count with the promised one."""
    expected = step.expect_rows
    if expected is None or rows == expected:
        return StepOutcome(step, success, _rows(rows), rows)
    if rows == 0:
        return StepOutcome(step, StepStatus.SKIPPED, "nothing matched any more: it changed since the plan was made", rows)
    return StepOutcome(step, StepStatus.FAILED, f"would have changed {_rows(rows)} instead of {expected}; rolled back", rows)


def explain(exc: BaseException, connection: psycopg.AsyncConnection, limits: Limits) -> str:
    """What went wrong and what to do about it, on one line, without credentials."""
    said = _server_words(exc)
    match exc:
        case TimeoutError():
            return f"the server did not answer within {limits.step_s:g} s; rolled back"
        case errors.LockNotAvailable():
            return f"another session holds the row (waited {limits.lock_s:g} s): something is still at work on it; rolled back"
        case errors.QueryCanceled():
            return f"took longer than {limits.statement_s:g} s; rolled back"
        case errors.InsufficientPrivilege():
            return f"{said}: grant it to the role {_user(connection)}, or give fix_dsn a role that has it; rolled back"
        case errors.ReadOnlySqlTransaction():
            return f"{said}: fix_dsn leads to a standby or a read-only role ({_user(connection)}); rolled back"
        case _:
            return f"{said}; rolled back"


def _server_words(exc: BaseException) -> str:
    primary = exc.diag.message_primary if isinstance(exc, psycopg.Error) else None
    return " ".join((primary or str(exc) or type(exc).__name__).split())


def _user(connection: psycopg.AsyncConnection) -> str:
    return "of fix_dsn" if connection.broken or connection.closed else repr(connection.info.user)


def _settings(limits: Limits) -> dict[str, str]:
    return {
        "lock": f"{limits.lock_s * 1000:.0f}ms",
        "statement": f"{limits.statement_s * 1000:.0f}ms",
        "idle": f"{limits.step_s * 1000:.0f}ms",  # should this process freeze, the server frees the rows by itself
    }


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
