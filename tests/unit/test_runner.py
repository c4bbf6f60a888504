"""One run of a check: whatever a plugin does, the result says so and the rest goes on."""

import asyncio

import pytest

from monitor.clock import SystemClock
from monitor.domain import Finding, FindingKind, Metric, Observed, Outcome, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext
from monitor.runner import MAX_FINDINGS, Runner
from tests.support.looking import with_parts
from tests.support.world import DOWN, UP, Look, instance


def runner() -> Runner:
    clock = SystemClock()
    return Runner(clock, lambda inst, _: with_parts(inst.service, clock=clock))


async def fine(_: CheckContext) -> Observed:
    return Observed(samples=(UP(1),))


async def bad(_: CheckContext) -> Observed:
    return Observed(findings=(DOWN("gone"),))


async def raises(_: CheckContext) -> Observed:
    raise ValueError("first line\n\x1b[31msecond line")


async def cannot(_: CheckContext) -> Observed:
    raise CannotLook("grant pg_monitor to mon")


async def junk(_: CheckContext) -> Observed:
    return {"up": True}  # type: ignore[return-value]


async def undeclared(_: CheckContext) -> Observed:
    other = FindingKind("Other", Severity.P1, None, "never declared")
    return Observed(samples=(Metric("monitor_other", "x")(1),), findings=(other("x"),))


async def no_sample(_: CheckContext) -> Observed:
    return Observed(samples=((UP, (), 1.0),))  # type: ignore[arg-type]


async def wrong_severity(_: CheckContext) -> Observed:
    return Observed(findings=(DOWN("x", severity="P1"),))  # type: ignore[arg-type]


async def no_facts(_: CheckContext) -> Observed:
    return Observed(findings=(Finding(DOWN, (), "x", None),))  # type: ignore[arg-type]


async def no_text(_: CheckContext) -> Observed:
    return Observed(findings=(DOWN({"a": 1}),))  # type: ignore[arg-type]


async def endless(_: CheckContext) -> Observed:
    return Observed(findings=(DOWN("x"),) * (MAX_FINDINGS + 1))


async def hangs(_: CheckContext) -> Observed:
    await asyncio.Event().wait()
    raise AssertionError


async def cancels_itself(_: CheckContext) -> Observed:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("look", "outcome", "error"),
    [
        (fine, Outcome.OK, None),
        (bad, Outcome.FOUND, None),
        (raises, Outcome.BLIND, "the check failed: ValueError: first line [31msecond line"),
        (cannot, Outcome.BLIND, "grant pg_monitor to mon"),
        (junk, Outcome.BLIND, "the check returned dict instead of Observed"),
        (undeclared, Outcome.BLIND, "the check returned what it did not declare: Other, monitor_other"),
        (no_sample, Outcome.BLIND, "a sample that was not made by calling one of its metrics"),
        (wrong_severity, Outcome.BLIND, "of the wrong type"),
        (no_facts, Outcome.BLIND, "not pairs of texts"),
        (no_text, Outcome.BLIND, "of the wrong type"),
        (endless, Outcome.BLIND, "more than 2000 samples or 200 findings"),
        (hangs, Outcome.BLIND, "no answer within its timeout of 0.05 s"),
        (cancels_itself, Outcome.BLIND, "the check cancelled itself"),
    ],
)
async def test_every_ending_is_a_result(look: Look, outcome: Outcome, error: str | None) -> None:
    result = await runner().run(instance(look, timeout_s=0.05))
    assert result.outcome is outcome
    assert (
        (result.error or "") == error or (error is not None and error in (result.error or "")) or (error is None and result.error is None)
    )
    assert result.instance == "look/auth"
    if outcome is Outcome.BLIND:
        assert result.observed == Observed()


async def test_a_check_that_ignores_its_cancellation_is_left_behind_once_and_never_doubled() -> None:
    release, running = asyncio.Event(), 0

    async def stubborn(_: CheckContext) -> Observed:
        nonlocal running
        running += 1
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Observed()

    one, subject = runner(), instance(stubborn, timeout_s=0.05)
    assert "no answer within" in (await one.run(subject)).error  # type: ignore[operator]
    assert "still hanging" in (await one.run(subject)).error  # type: ignore[operator]
    assert running == 1
    release.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await one.run(subject)).outcome is Outcome.OK


async def test_cancelling_the_runner_cancels_the_check() -> None:
    cancelled = asyncio.Event()

    async def waits(_: CheckContext) -> Observed:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    task = asyncio.create_task(runner().run(instance(waits)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 1)
