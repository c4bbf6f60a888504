"""When each check runs: monotonic, drift-free, spread, one database's checks together, never overlapping with itself."""

import asyncio
import heapq
import math
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from monitor.clock import Clock
from monitor.config.settings import CheckInstance

TICK_S = 0.1
"""Runs due so soon after one another start together. With 10,000 targets every 30 s this halves what a run costs: threads wake for
dozens of exchanges rather than for one, and find their code and data in the processor's caches."""
FIRST_RUN_WITHIN_S = 5.0
"""After a start every check has run within this time, or within its interval if that is shorter."""
FIRST_RUNS_PER_S = 400
"""Where that would start more checks in a second than these, the first runs take longer: they would wait for one another, and be blind."""

RunOnce = Callable[[CheckInstance], Awaitable[float | None]]
"""Runs an instance once; the answer says in how many seconds it wants another look, if that is before its next regular run."""


class _Due(NamedTuple):
    at: float
    serial: int
    key: str
    regular: bool
    """On the regular grid, rather than a quick re-check between two of its points."""


@dataclass(slots=True)
class _Entry:
    instance: CheckInstance
    serial: int
    next_regular: float
    running: "asyncio.Task[None] | None" = None
    asked_at: float = -math.inf
    """When somebody last asked for a look out of turn."""
    started_at: float = -math.inf


@dataclass(slots=True)
class SchedulerStats:
    """Counters since the start, for the metrics."""

    late_s: float = 0.0
    """How late the last started run was."""
    skipped: int = 0
    """Runs left out because the one before had not ended."""
    started: int = 0


class Scheduler:
    """A heap of due times and one task that sleeps until the next. The wall clock plays no part."""

    def __init__(self, clock: Clock, run: RunOnce) -> None:
        self._clock = clock
        self._run = run
        self._entries: dict[str, _Entry] = {}
        self._heap: list[_Due] = []
        self._serial = 0
        self._changed = asyncio.Event()
        self.stats = SchedulerStats()

    def replace(self, instances: Iterable[CheckInstance]) -> None:
        """Take a new set of instances. Unchanged ones keep their place; gone ones finish their run and are not started again."""
        now = self._clock.monotonic()
        wanted = {instance.key: instance for instance in instances}
        for key in self._entries.keys() - wanted.keys():
            del self._entries[key]
        new = [one for one in wanted.values() if (known := self._entries.get(one.key)) is None or known.instance != one]
        within_s = first_runs_within_s(len(new))
        for instance in new:
            self._serial += 1
            first_s, regular_s = begins(instance, within_s)
            known = self._entries.get(instance.key)
            entry = _Entry(instance, self._serial, now + regular_s, known.running if known else None)
            self._entries[instance.key] = entry
            self._push(now + first_s, entry, regular=first_s == regular_s)
            if first_s != regular_s:
                self._push(now + regular_s, entry, regular=True)
        self._changed.set()

    def look_soon(self, keys: Iterable[str]) -> set[str]:
        """Run these instances now, besides their regular times, unless one is running or due within its re-check time.

        Returns those of which a look is yet to end; one that was asked for and made within that time is not made again.
        """
        now = self._clock.monotonic()
        awaited = set()
        for key in keys:
            entry = self._entries.get(key)
            if entry is None:
                continue
            if (entry.running is None or entry.running.done()) and entry.next_regular - now > entry.instance.recheck_s:
                if now - entry.asked_at >= entry.instance.recheck_s:
                    entry.asked_at = now
                    self._push(now, entry, regular=False)
                elif entry.started_at >= entry.asked_at:
                    continue
            awaited.add(key)
        self._changed.set()
        return awaited

    async def serve(self) -> None:
        """Run until cancelled, which cancels the runs in progress. An unexpected error in a run ends the scheduler, loudly."""
        async with asyncio.TaskGroup() as runs:
            while True:
                wait_s = self._start_due(runs)
                self._changed.clear()
                try:
                    async with asyncio.timeout(wait_s):  # not wait_for: on Python 3.11 it can swallow a cancellation
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def _start_due(self, runs: asyncio.TaskGroup) -> float:
        """Start everything due; returns the seconds until the next is."""
        now = self._clock.monotonic()
        while self._heap and self._heap[0].at <= now:
            due = heapq.heappop(self._heap)
            entry = self._entries.get(due.key)
            if entry is None or entry.serial != due.serial:
                continue  # replaced or gone since
            if due.regular:
                every = entry.instance.every_s
                missed = int((now - due.at) // every)
                self._push(due.at + every * (missed + 1), entry, regular=True)
                entry.next_regular = due.at + every * (missed + 1)
            if entry.running is not None and not entry.running.done():
                self.stats.skipped += 1
                continue
            self.stats.late_s = now - due.at
            self.stats.started += 1
            entry.started_at = now
            entry.running = runs.create_task(self._run_entry(entry), name=f"check {due.key}")
        return max(TICK_S, self._heap[0].at - now) if self._heap else 3600.0

    async def _run_entry(self, entry: _Entry) -> None:
        try:
            again_s = await self._run(entry.instance)
        finally:
            entry.running = None
        if again_s is not None and self._entries.get(entry.instance.key) is entry:
            at = self._clock.monotonic() + again_s
            if at < entry.next_regular:
                self._push(at, entry, regular=False)
                self._changed.set()

    def _push(self, at: float, entry: _Entry, *, regular: bool) -> None:
        heapq.heappush(self._heap, _Due(at, entry.serial, entry.instance.key, regular))


def first_runs_within_s(count: int) -> float:
    """How long the first runs of so many instances take."""
    return max(FIRST_RUN_WITHIN_S, count / FIRST_RUNS_PER_S)


def begins(instance: CheckInstance, within_s: float) -> tuple[float, float]:
    """In how many seconds an instance runs first, and in how many it runs for the first time on its regular grid.

    The first runs come soon after a start; the grid has the whole interval, or all checks would run in bursts ever after. Checks of
    one database share a round trip to it: they have one grid, whatever their intervals.
    """
    every_s = instance.every_s
    if "dsn" in instance.check.needs:
        first_s = spread(instance.service.name) * FIRST_RUN_WITHIN_S % every_s
        return first_s, first_s
    share = spread(instance.key)
    first_s, regular_s = share * min(within_s, every_s), share * every_s
    too_soon = first_s < regular_s < first_s + instance.recheck_s
    return first_s, regular_s + every_s if too_soon else regular_s


def spread(key: str) -> float:
    """A fixed share of the interval for each key, in [0, 1): the same over restarts, even over many keys."""
    return zlib.crc32(key.encode(errors="replace")) / 2**32
