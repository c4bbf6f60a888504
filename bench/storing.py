"""The state store under load, in a process of its own: history in batches, and decisions one commit each."""

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from alerts.decide import Policy, decide, groups_of
from bench.processes import answer_commands
from checks.http_health import DOWN
from monitor.domain import AlertPolicy, AlertState, CheckResult, EscalationStep, Observed, Outcome, Severity
from monitor.runhours import RunHours
from monitor.store import Store

BATCH = 1_000
"""Results a flush: 1,000 instances, one result of each, as after a second of 1,000 checks."""
START = datetime(2026, 1, 1, tzinfo=UTC)
CHAINS = {severity: (EscalationStep(0.0, "on-call", ("mail",)),) for severity in Severity}
POLICY = Policy(alert=AlertPolicy(fail_after=2, recover_after=2), chains=CHAINS)
STATES = (AlertState.PENDING, AlertState.FIRING, AlertState.FIRING, AlertState.RESOLVED)
"""What two bad runs and two good ones make of an alert."""


def result(number: int, *, bad: bool, now: datetime) -> CheckResult:
    service = f"svc{number:04}"
    findings = (DOWN(f"{service} does not answer: connection refused", facts={"reason": "refused"}),) if bad else ()
    outcome = Outcome.FOUND if bad else Outcome.OK
    return CheckResult(f"http_health/{service}", "http_health", service, outcome, now, 0.004, Observed((), findings))


def record(store: Store, count: int) -> int:
    """Record ``count`` results, rounded up to whole batches, each batch one durable commit. Returns how many."""
    batches = [[result(number, bad=False, now=START + timedelta(minutes=batch)) for number in range(BATCH)] for batch in range(10)]
    rounds = -(-count // BATCH)
    hours = RunHours()
    for number in range(rounds):
        for one in batches[number % len(batches)]:
            hours.see(one)
        store.history.record(hours.take())
    return rounds * BATCH


def decide_many(store: Store, count: int, now: datetime) -> tuple[int, datetime]:
    """Take services through pending, firing (an incident opens), still firing, resolved: four durable commits each."""
    cycles = -(-count // len(STATES))
    for cycle in range(cycles):
        for run, expected in enumerate(STATES):
            now += timedelta(seconds=15)
            seen = result(cycle % 200, bad=run < 2, now=now)
            judge = partial(decide, result=seen, policy=POLICY, now=now)
            decided = store.incidents.decide(seen.instance, groups_of(seen), judge, now)
            if [alert.state for alert in decided.alerts] != [expected]:
                raise RuntimeError(f"decided {decided.alerts} where {expected} was due")
    return cycles * len(STATES), now


async def main(folder: Path) -> None:
    store = Store(f"sqlite:///{folder}/store.db")
    now = START

    async def handle(command: dict[str, Any]) -> dict[str, Any]:
        nonlocal now
        before_s = time.process_time()
        if command["what"] == "record":
            done = record(store, command["count"])
        else:
            done, now = decide_many(store, command["count"], now)
        return {"cpu_s": time.process_time() - before_s, "done": done}

    try:
        await answer_commands(handle)
    finally:
        store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
