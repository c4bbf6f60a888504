"""The shipped configuration over a running platform: its checks as the monitor runs them, one at a time, when a test says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from monitor import config
from monitor.clock import SystemClock
from monitor.config.settings import CheckInstance
from monitor.demo.configuration import write_configuration
from monitor.domain import CheckResult, Finding, Outcome
from monitor.memory import Memory
from monitor.probes.outside import Outside
from monitor.registry import load_registry
from monitor.runner import Runner
from services.platform import Platform

INTERVAL_S = 6.0
"""Shorter than any shipped interval."""
LOOKS = 2
"""So many, one an interval, may be needed to find what is there."""


@dataclass
class SetClock(SystemClock):
    """The machine's clock, set forward by the test."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


class ShippedChecks:
    """Runs the instances of the shipped configuration; each remembers its previous run, as in the monitor."""

    def __init__(self, instances: tuple[CheckInstance, ...], runner: Runner, clock: SetClock) -> None:
        self.instances = {instance.key: instance for instance in instances}
        self.clock = clock
        self._runner = runner

    async def look(self, key: str) -> CheckResult:
        """Run the instance ``check/service`` once."""
        return await self._runner.run(self.instances[key])

    async def finds(self, key: str, kind: str) -> Finding:
        """The finding of this kind, whose symptom is there: seen in two looks, as in two intervals. Fails with what was seen instead."""
        for _ in range(LOOKS):
            seen = await self.look(key)
            for finding in seen.observed.findings:
                if finding.kind.name == kind:
                    return finding
        raise AssertionError(f"{key} did not find {kind} in {LOOKS} looks, but {seen}")

    async def finds_growing(self, key: str, kind: str, *, meanwhile: Callable[[], Awaitable[object]] | None = None) -> Finding:
        """As ``finds``, for what only comes about while the test looks, as requests do that wait for their answers.

        Nobody can say at which look it is there, so the time of two intervals is the bound. ``meanwhile`` is done before each look.
        """
        seen: list[CheckResult] = []
        try:
            async with asyncio.timeout(LOOKS * INTERVAL_S):
                while True:
                    if meanwhile is not None:
                        await meanwhile()
                    seen.append(await self.look(key))
                    for finding in seen[-1].observed.findings:
                        if finding.kind.name == kind:
                            return finding
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{key} did not find {kind} within two intervals, but {seen[-1] if seen else 'nothing'}") from None

    async def is_well(self, key: str) -> None:
        """Wait until the instance finds nothing; fails with what it still finds."""
        async with asyncio.timeout(20):
            while (result := await self.look(key)).outcome is not Outcome.OK:
                assert result.outcome is not Outcome.BLIND or result.error, result
                await asyncio.sleep(0.2)


@asynccontextmanager
async def shipped_checks(platform: Platform, folder: Path) -> AsyncIterator[ShippedChecks]:
    """The shipped configuration as the demo uses it, without the monitor around it."""
    path = write_configuration(platform, folder, 8010)
    registry = load_registry()
    settings = config.load(path, checks=registry.checks, notifiers=registry.notifiers)
    clock = SetClock()
    outside = Outside(clock)
    memory = Memory()
    runner = Runner(
        clock,
        lambda instance, kept: outside.check_context(instance.service, name=instance.name, kept=kept, timeout_s=instance.timeout_s),
        memory,
    )
    try:
        yield ShippedChecks(settings.instances, runner, clock)
    finally:
        await outside.close()
