"""``kill -9`` of a real apply at each point that matters: what it changed is known or called unknown, and never repeated silently."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from monitor.clock import SystemClock
from monitor.errors import Refused
from monitor.probes.outside import Outside
from monitor.store import Store
from runbook.cancel_stuck_jobs import CANCEL_STUCK_JOBS, CancelStuckJobs
from runbook.executor import apply, prepare
from runbook.journal import unfinished
from runbook.outcomes import Applied
from tests.support.runbook import Ground, ground

ROOT = Path(__file__).resolve().parents[2]
LOCK = "cancel-stuck-jobs/postgres"


def until(condition: Callable[[], bool], what: str, within_s: float = 30) -> None:
    waiting, deadline = threading.Event(), time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        waiting.wait(0.05)


@contextmanager
def applying(place: Ground, state: str, hold: str) -> Iterator["subprocess.Popen[str]"]:
    """The program, which stops for ever at ``hold``; killed with -9 at the end at the latest."""
    arguments = [sys.executable, "-m", "tests.support.runbook", place.dsn, place.reader, place.fixer, state, hold]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def apply_again(place: Ground, store: Store) -> Applied:
    """Look, then apply what was seen."""

    async def run() -> Applied:
        clock = SystemClock()
        outside = Outside(clock)
        ctx = outside.runbook_context(place.service, {})
        try:
            plan = await prepare(CANCEL_STUCK_JOBS, ctx, CancelStuckJobs())
            async with await place.connect() as connection:
                named = {"who": "ben", "why": "INC-003 again", "connection": connection, "journal": store.journal}
                return await apply(CANCEL_STUCK_JOBS, ctx, CancelStuckJobs(), shown_digest=plan.digest, **named)
        finally:
            await outside.close()

    return asyncio.run(run())


@pytest.mark.parametrize("shape", ["platform", "naive"])
@pytest.mark.parametrize("moment", ["intent written, no step begun", "within a step", "steps committed, outcome not written"])
def test_a_killed_run_is_unknown_to_the_next_and_not_repeated_silently(database: str, shape: str, moment: str, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/state.db"
    store = Store(state)
    with ground(database, shape) as place:
        first, second = place.add(1), place.add(2)
        running, cancelled = ("processing", None), ("failed", "Manually cancelled - stuck")
        if moment == "within a step":
            with place.row_held(second), applying(place, state, "never") as process:
                until(lambda: place.waiting() == 1, "the second step waits for its row")
                process.kill()
        else:
            with applying(place, state, "after intent" if moment.startswith("intent") else "before applied") as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "held\n"
                process.kill()
        until(lambda: place.advisory_locks() == 0, "the server noticed that the client died")
        done = {"intent written, no step begun": 0, "within a step": 1, "steps committed, outcome not written": 2}[moment]
        after_crash = {first: cancelled if done > 0 else running, second: cancelled if done > 1 else running}
        assert place.jobs() == after_crash

        lost = unfinished(store.journal.entries(LOCK, SystemClock().now() - timedelta(hours=1)))
        assert lost is not None
        assert (lost.who, lost.why) == ("anna", "INC-003")
        with pytest.raises(Refused, match=r"the run by anna at .* never reported its outcome: what it changed is unknown"):
            apply_again(place, store)
        assert place.jobs() == after_crash

        again = apply_again(place, store)  # now a person has been told, and has looked again
        assert again.ok
        assert len(again.outcomes) == 2 - done
        assert place.jobs() == {first: cancelled, second: cancelled}
    phases = [entry.phase for entry in store.journal.entries(LOCK, SystemClock().now() - timedelta(hours=1))]
    assert phases == ["intent", "failed", "refused", *(["intent", "applied", "verified"] if done < 2 else [])]
    store.close()
