"""Steps of the wall clock while the program runs: delays go on as if it had not been set, the calendar goes by what it says now."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import structlog

from alerts import escalation
from monitor.clock import Clock
from monitor.config.settings import Settings
from monitor.errors import StoreError
from monitor.store import Store, StoreThread

STEP_S = 2.0
"""A smaller change between two looks is a clock being slewed, and moves nothing."""
UNSURE_S = 0.5
"""Readings of the two clocks further apart than this say nothing about either."""

log = structlog.get_logger("monitor.clocksteps")


class ClockSteps:
    """Asked before anything is done because its moment has come. ``last_s`` is the last step's size, negative when set back."""

    def __init__(self, settings: Callable[[], Settings], *, store: Store, thread: StoreThread, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._thread = thread
        self._clock = clock
        self._ahead_s = clock.now().timestamp() - clock.monotonic()
        self.last_s = 0.0
        self.forward = 0
        """How often it was set forward since the start: by somebody, or because the machine had slept."""

    async def now(self) -> datetime:
        """The time by which something may be due: what waits has moved with the clock. Raises ``StoreError``."""
        while await self.notice():
            pass
        return self._clock.now()

    async def notice(self) -> bool:
        """Move what waits when the wall clock was set since the last look; True when it was. Raises ``StoreError``, and is asked again."""
        before = self._clock.monotonic()
        now = self._clock.now()
        after = self._clock.monotonic()
        if after - before > UNSURE_S:
            return False
        ahead_s = now.timestamp() - after
        step_s = ahead_s - self._ahead_s
        self._ahead_s = ahead_s
        if abs(step_s) < STEP_S:
            return False
        self.forward += step_s > 0
        by = timedelta(seconds=step_s)
        said = f"the clock was set {'forward' if step_s > 0 else 'back'} by {abs(step_s):.0f} s: what is to come moves with it"
        moved = partial(escalation.move, by=by, people=self._settings().people)
        try:
            incidents = await self._thread(self._store.steps.move, by, moved, now, said)
        except StoreError:
            self._ahead_s -= step_s
            raise
        self.last_s = step_s
        log.warning("the wall clock was set; delays go on as before", step_s=round(step_s, 1), incidents=incidents)
        return True
