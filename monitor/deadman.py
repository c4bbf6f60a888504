"""The dead man's switch: tells a service outside that this monitor is alive, and only while it does its work.

Silence is the alarm: whoever waits for the beats (Healthchecks, another monitor's heartbeat) tells people when they stop.
"""

import asyncio
from collections.abc import Callable

import httpx2
import structlog

from monitor.clock import Clock
from monitor.config.settings import Settings
from monitor.errors import StoreError
from monitor.metrics import names
from monitor.metrics.exposition import Exposition
from monitor.store import Store, StoreThread

LOOK_EVERY_S = 1.0
DEADLINE_S = 10.0
OVERDUE_S = 300.0
"""So long after its time a step of an escalation has not been taken, or a notification not been tried, the monitor is not at work.

So long, and what a channel may try alone before another one stands in, nothing may be delivered of an incident that asks for somebody:
then people must hear from outside.
"""

log = structlog.get_logger("monitor.deadman")


class DeadMan:
    """``serve()`` beats until cancelled, when there is a ``[deadman]`` table. ``unready`` names what is wrong with the program."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        unready: Callable[[], tuple[str, ...]],
        *,
        store: Store,
        thread: StoreThread,
        clock: Clock,
        show: Exposition,
    ) -> None:
        self._settings = settings
        self._unready = unready
        self._store = store
        self._thread = thread
        self._clock = clock
        self._show = show
        self._quiet: tuple[str, ...] = ()

    async def serve(self) -> None:
        next_beat = self._clock.monotonic()
        while True:
            settings = self._settings()
            if settings.deadman_url is not None and self._clock.monotonic() >= next_beat:
                next_beat = self._clock.monotonic() + settings.deadman_every_s
                await self._beat(settings.deadman_url.get_secret_value())
            await asyncio.sleep(LOOK_EVERY_S)

    async def _beat(self, url: str) -> None:
        """One beat, unless something is wrong. The address is a secret: it is in no message."""
        reasons = await self.reasons()
        if reasons:
            if reasons != self._quiet:
                log.error("no beat to the outside", reasons=reasons)
            self._quiet = reasons
            return
        self._quiet = ()
        try:
            async with asyncio.timeout(DEADLINE_S), httpx2.AsyncClient(timeout=DEADLINE_S, follow_redirects=False) as client:
                answer = await client.post(url)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as exc:
            log.warning("the beat to the outside did not arrive", error=type(exc).__name__)
            return
        if answer.status_code >= 300:
            log.warning("the beat to the outside was refused", status=answer.status_code)
            return
        self._show.set(names.DEADMAN_BEAT, self._clock.now().timestamp())

    async def reasons(self) -> tuple[str, ...]:
        """Why this monitor must not be taken for alive; empty when it is well."""
        unready = self._unready()
        if unready:
            return unready
        found = []
        try:
            late_s = await self._thread(self._store.incidents.overdue_s, self._clock.now())
            waits_s = await self._thread(self._store.outbox.untried_s, self._clock.now())
            unheard_s = await self._thread(self._store.outbox.unheard_s, self._clock.now())
        except StoreError as exc:
            return (f"the state cannot be read: {exc}",)
        if late_s > OVERDUE_S:
            found.append(f"an escalation is {late_s:.0f} s overdue")
        if waits_s > OVERDUE_S:
            found.append(f"a notification has been due for {waits_s:.0f} s and was not tried")
        stand_ins_s = max((one.fallback_after_s for one in self._settings().channels.values() if one.fallback), default=0.0)
        if unheard_s > OVERDUE_S + stand_ins_s:
            found.append(f"no channel has delivered a call for {unheard_s:.0f} s: nobody is reached")
        return tuple(found)
