"""Foreign alerts on their way in: many requests, one transaction (group commit), and an answer only once they are durable."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import structlog

from alerts.decide import Known, Policy
from alerts.posted import PostedAlert, accept, lapse, lapsed, receive
from monitor.clock import Clock
from monitor.domain import Alert, AlertPolicy, Decision, Guide
from monitor.engine import Engine
from monitor.errors import StoreError
from monitor.store import Store, StoreThread

BATCH_ALERTS = 2_000
"""Most alerts committed at once: a batch must not keep checks waiting for the store."""
MOST_WAITING = 100_000
"""Alerts accepted and not yet durable; more are refused, and the sender tries again."""
LAPSE_EVERY_S = 1.0

log = structlog.get_logger("monitor.intake")


class IntakeFull(StoreError):
    """More alerts wait to be stored than may."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    alerts: Sequence[Alert]
    done: "asyncio.Future[None]"


class Intake:
    """Takes what is posted. ``serve()`` commits it, and ends alerts that are sent no more, until cancelled."""

    def __init__(self, engine: Engine, *, store: Store, thread: StoreThread, clock: Clock, guides: Mapping[str, Guide]) -> None:
        self._engine = engine
        self._store = store
        self._thread = thread
        self._clock = clock
        self._guides = guides
        self._queue: list[_Waiting] = []
        self._queued = 0
        self._wake = asyncio.Event()
        self.received = 0
        """Alerts made durable since the start."""

    async def post(self, posted: Sequence[PostedAlert]) -> tuple[str, ...]:
        """Store a request's alerts, the acceptable ones. Returns why the others are not. Raises ``StoreError``."""
        now, policy = self._clock.now(), self._engine.settings.posted
        accepted, refused = [], []
        for one in posted:
            try:
                accepted.append(accept(one, policy, self._guides, now))
            except ValueError as exc:
                refused.append(str(exc))
        if accepted:
            if self._queued + len(accepted) > MOST_WAITING:
                raise IntakeFull(f"{self._queued} alerts wait to be stored")
            waiting = _Waiting(accepted, asyncio.get_running_loop().create_future())
            self._queue.append(waiting)
            self._queued += len(accepted)
            self._wake.set()
            await waiting.done
        return tuple(refused)

    async def serve(self) -> None:
        """Commit what waits, all that fits in one transaction; while one commits, the next batch gathers."""
        next_lapse = self._clock.monotonic()
        try:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, next_lapse - self._clock.monotonic())):
                        await self._wake.wait()
                except TimeoutError:
                    await self._lapse()
                    next_lapse = self._clock.monotonic() + LAPSE_EVERY_S
                while self._queue:
                    await self._commit(self._take())
                self._wake.clear()
        finally:
            for waiting in self._queue:
                waiting.done.cancel()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].alerts) <= BATCH_ALERTS):
            waiting = self._queue.pop(0)
            size += len(waiting.alerts)
            batch.append(waiting)
        self._queued -= size
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        sent = [alert for waiting in batch for alert in waiting.alerts]
        try:
            await self._decide(sent)
        except StoreError as exc:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(exc)
            log.error("alerts cannot be stored; their senders are told", alerts=len(sent), error=str(exc))
            return
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.done.cancel()
            raise
        self.received += len(sent)
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_result(None)

    async def _lapse(self) -> None:
        """End what was not sent again; what is still to be stored was sent again. A batch at once, the rest within a second."""

        def judge() -> Decision:
            now = self._clock.now()
            over = lapsed(self._store.incidents.lapsed(now, BATCH_ALERTS), now)
            return self._receive(over, now, lambda known, policy: lapse(known, policy, now)) if over else Decision()

        try:
            await self._engine.steps.notice()  # no clock that was set ends an alert
            self._engine.announce(await self._thread(judge))
        except StoreError as exc:
            log.error("alerts that ended cannot be looked up", error=str(exc))

    async def _decide(self, sent: list[Alert]) -> None:
        """What these alerts change, on the store's thread."""
        now = self._clock.now()
        judge = partial(self._receive, sent, now, lambda known, policy: receive(known, sent, policy, now))
        self._engine.announce(await self._thread(judge))

    def _receive(self, sent: Sequence[Alert], now: datetime, judge: Callable[[Known, Policy], Decision]) -> Decision:
        muting = self._engine.muting(now)
        policy = replace(self._engine.policy(AlertPolicy()), muting=muting)
        return self._store.incidents.receive(
            sent, lambda known: judge(known, policy), now, lambda alert: not muting or not muting.reasons(alert, now)
        )
