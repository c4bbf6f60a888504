"""When checks run: spread, drift-free, never overlapping, whatever the wall clock does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.clock import SystemClock
from monitor.config.settings import CheckInstance
from monitor.domain import Observed
from monitor.plugins import CheckContext
from monitor.scheduler import TICK_S, Scheduler, begins, first_runs_within_s, spread
from tests.support.world import instance, until


async def nothing(_: CheckContext) -> Observed:
    return Observed()


@asynccontextmanager
async def serving(run: Callable[[CheckInstance], Awaitable[float | None]], *instances: CheckInstance) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(SystemClock(), run)
    scheduler.replace(instances)
    task = asyncio.create_task(scheduler.serve())
    try:
        yield scheduler
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_runs_keep_to_the_grid_although_each_takes_time() -> None:
    clock = SystemClock()
    starts: list[float] = []

    async def run(_: CheckInstance) -> float | None:
        starts.append(clock.monotonic())
        await asyncio.sleep(0.08)
        return None

    async with serving(run, instance(nothing, every_s=0.12)):
        await until(lambda: len(starts) >= 11)
    elapsed = starts[10] - starts[0]
    assert 1.15 <= elapsed <= 1.8  # 10 intervals; a loop that sleeps after each run would need 2 s


async def test_runs_that_are_due_soon_after_one_another_start_together() -> None:
    turn = 0
    turns: dict[str, int] = {}

    async def run(one: CheckInstance) -> float | None:
        nonlocal turn
        turns.setdefault(one.key, turn)
        await asyncio.sleep(0)  # whoever was started together is still in this turn
        turn += 1
        return None

    many = [instance(nothing, name=f"check{number}", every_s=1.0) for number in range(300)]
    async with serving(run, *many):
        await until(lambda: len(turns) == 300)
    assert len(set(turns.values())) <= 1.0 / TICK_S + 2  # the first runs take one interval


async def test_checks_of_one_database_look_at_the_same_moment_whatever_their_intervals() -> None:
    moments: dict[str, list[int]] = {"fast": [], "slow": [], "other": []}
    turn = 0

    async def run(one: CheckInstance) -> float | None:
        nonlocal turn
        moments[one.name].append(turn)
        await asyncio.sleep(0)  # whoever was started together is still in this turn
        turn += 1
        return None

    fast, slow = (instance(nothing, name=name, service="postgres", every_s=every_s) for name, every_s in (("fast", 0.05), ("slow", 0.1)))
    asking = [replace(one, check=replace(one.check, needs=("dsn",))) for one in (fast, slow)]
    async with serving(run, *asking):
        await until(lambda: len(moments["slow"]) >= 5)
    assert set(moments["slow"][:5]) <= set(moments["fast"])


async def test_a_slow_run_is_never_doubled_and_what_was_left_out_is_counted() -> None:
    under_way, most = 0, 0
    release = asyncio.Event()

    async def run(_: CheckInstance) -> float | None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await release.wait()
        under_way -= 1
        return None

    async with serving(run, instance(nothing, every_s=0.02)) as scheduler:
        await until(lambda: scheduler.stats.skipped >= 3)
        release.set()
    assert most == 1


async def test_a_failing_check_is_looked_at_again_soon() -> None:
    starts: Counter[str] = Counter()

    async def run(subject: CheckInstance) -> float | None:
        starts[subject.key] += 1
        return 0.05 if starts[subject.key] == 1 and subject.name == "bad" else None

    async with serving(run, *(instance(nothing, name=name, every_s=60.0) for name in ("bad", "good"))):
        await until(lambda: starts["bad/auth"] == 2 and starts["good/auth"] == 1)


async def test_replacing_keeps_the_unchanged_drops_the_gone_and_takes_the_new() -> None:
    starts: Counter[str] = Counter()

    async def run(subject: CheckInstance) -> float | None:
        starts[subject.key] += 1
        return None

    kept, gone, new = (instance(nothing, name=name, every_s=0.02) for name in ("kept", "gone", "new"))
    async with serving(run, kept, gone) as scheduler:
        await until(lambda: starts["gone/auth"] >= 2)
        scheduler.replace((kept, new))
        before = starts["gone/auth"]
        await until(lambda: starts["new/auth"] >= 5)
        assert starts["gone/auth"] <= before + 1
        assert starts["kept/auth"] >= 5


async def test_an_unexpected_error_ends_the_scheduler() -> None:
    async def run(_: CheckInstance) -> float | None:
        raise RuntimeError("a bug")

    scheduler = Scheduler(SystemClock(), run)
    scheduler.replace((instance(nothing, every_s=0.01),))
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(scheduler.serve(), 5)


@given(st.text())
def test_spread_is_a_share_of_the_interval_and_always_the_same(key: str) -> None:
    assert 0 <= spread(key) < 1
    assert spread(key) == spread(key)


def test_many_instances_are_spread_evenly() -> None:
    tenths = Counter(int(spread(f"http_health/service-{number}") * 10) for number in range(10_000))
    assert min(tenths.values()) > 800


async def test_who_is_asked_for_a_look_hears_whose_answer_is_to_come() -> None:
    runs: Counter[str] = Counter()
    hold = asyncio.Event()

    async def run(one: CheckInstance) -> float | None:
        runs[one.name] += 1
        if one.name == "slow":
            await hold.wait()
        return None

    idle, slow, due = (instance(nothing, name=name, every_s=every_s) for name, every_s in (("idle", 60.0), ("slow", 60.0), ("due", 1.0)))
    scheduler = Scheduler(SystemClock(), run)
    scheduler.replace([idle, slow, due])
    task = asyncio.create_task(scheduler.serve())
    try:
        await until(lambda: runs["idle"] and runs["slow"] and runs["due"])
        before = dict(runs)
        keys = [idle.key, slow.key, due.key, "gone/auth"]
        assert scheduler.look_soon(keys) == {idle.key, slow.key, due.key}
        await until(lambda: runs["idle"] > before["idle"])
        assert scheduler.look_soon(keys) == {slow.key, due.key}  # the idle one has just been looked at because it was asked for
        assert runs["idle"] == before["idle"] + 1
        assert runs["slow"] == 1
    finally:
        hold.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


FLEET = [instance(nothing, service=f"s{number}", every_s=30.0) for number in range(10_000)]


def test_a_fleet_runs_first_soon_after_the_start_and_from_then_on_all_through_the_interval() -> None:
    within_s = first_runs_within_s(len(FLEET))
    assert within_s == 25.0
    times = [begins(one, within_s) for one in FLEET]
    for moments, until_s in (([first_s for first_s, _ in times], 25), ([regular_s % 30 for _, regular_s in times], 30)):
        in_each_second = Counter(map(int, moments))
        assert set(in_each_second) == set(range(until_s))
        assert max(in_each_second.values()) < 1.25 * len(FLEET) / until_s
    for one, (first_s, regular_s) in zip(FLEET, times, strict=True):
        assert one.recheck_s <= regular_s - first_s <= one.every_s + one.recheck_s


@given(st.text(), st.floats(0.1, 86_400.0))
def test_the_first_run_is_within_its_time_and_the_second_about_an_interval_later_at_most(key: str, every_s: float) -> None:
    one = replace(instance(nothing, service="one", every_s=every_s), key=key)
    first_s, regular_s = begins(one, first_runs_within_s(1))
    assert 0 <= first_s < min(5.0, every_s)
    assert first_s <= regular_s <= first_s + every_s + one.recheck_s
