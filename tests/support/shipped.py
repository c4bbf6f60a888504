"""The shipped configuration over a running platform: its checks as the monitor runs them, one at a time, when a test says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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


class ShippedChecks:
    """Runs the instances of the shipped configuration; each remembers its previous run, as in the monitor."""

    def __init__(self, instances: tuple[CheckInstance, ...], runner: Runner) -> None:
        self.instances = {instance.key: instance for instance in instances}
        self._runner = runner

    async def look(self, key: str) -> CheckResult:
        """Run the instance ``check/service`` once."""
        return await self._runner.run(self.instances[key])

    async def finds(self, key: str, kind: str, *, meanwhile: Callable[[], Awaitable[object]] | None = None) -> Finding:
        """The finding of this kind, seen within two intervals; ``meanwhile`` is done before each look. Fails with what was seen instead."""
        seen: list[CheckResult] = []
        try:
            async with asyncio.timeout(2 * INTERVAL_S):
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
    clock = SystemClock()
    outside = Outside(clock)
    memory = Memory()
    runner = Runner(clock, lambda instance, kept: outside.check_context(instance.service, name=instance.name, kept=kept), memory)
    try:
        yield ShippedChecks(settings.instances, runner)
    finally:
        await outside.close()
