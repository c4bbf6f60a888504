"""Foreign alerts on their way in: many requests, one transaction (group commit), and an answer only once they are durable.

What is durable: every alert with its words, and the end that was answered for. An alert that is sent again with nothing new costs one
conditional update of its moments, in the same transaction as the rest of the batch: were its new end kept in memory only, a restart
would end it early and tell people that it is over.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache

import structlog

from alerts.decide import Known, Policy
from alerts.muting import Muting
from alerts.posted import PostedPolicy, accept_all, lapse, lapsed, receive
from monitor.clock import Clock
from monitor.domain import Alert, AlertPolicy, AlertState, Decision, Guide
from monitor.engine import Engine
from monitor.errors import StoreError
from monitor.picture import Picture
from monitor.postings import Posting, read_postings
from monitor.store import Repeat, Store, StoreThread

BATCH_ALERTS = 2_000
"""Most alerts committed at once: a batch must not keep checks waiting for the store."""
MOST_WAITING = 100_000
"""Alerts accepted and not yet durable; more are refused, and the sender tries again."""
GATHER_S = 0.005
"""Longest wait of a request for others to be committed with."""
LAPSE_EVERY_S = 1.0
LAPSE_WAITS_S = 10.0
"""How long ends wait while more is posted than can be stored."""

log = structlog.get_logger("monitor.intake")


class IntakeFull(StoreError):
    """More alerts wait to be stored than may."""


class IntakeStopped(StoreError):
    """The monitor is being stopped; whether these alerts were stored is not known."""


Done = Callable[[Sequence[str], StoreError | None], None]
"""Hears, once a request's alerts are durable, why some of them were not acceptable; or why none could be stored."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One request, and why some of its alerts are not acceptable."""

    postings: Sequence[Posting]
    done: Done
    refused: list[str] = field(default_factory=list)


class Intake:
    """Takes what is posted. ``serve()`` commits it, and ends alerts that are sent no more, until cancelled."""

    def __init__(self, engine: Engine, *, store: Store, thread: StoreThread, clock: Clock, guides: Mapping[str, Guide]) -> None:
        self._engine = engine
        self._store = store
        self._thread = thread
        self._clock = clock
        self._guides = guides
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._woken: asyncio.Future[None] | None = None
        """What ``serve`` waits for, while it waits for ``_enough`` requests."""
        self._enough = 1
        self._expected = 1
        """So many requests are likely to come together: those that were just answered, and those that came meanwhile."""
        self._picture = Picture()
        self._policy = engine.settings.posted
        """What the picture was made by."""
        self._heard_from = (clock.monotonic(), clock.now())
        """Since when senders are heard without a break, by both clocks."""
        self._forward = 0
        self.received = 0
        """Alerts made durable since the start."""

    def take(self, body: bytes, done: Done) -> None:
        """Store the acceptable alerts of a request and call ``done``. Raises ``UsageError``, ``StoreError``: none will be stored."""
        postings = read_postings(body, self._picture.knows)
        if not postings:
            done((), None)
            return
        if self._queued + len(postings) > MOST_WAITING:
            self._break()
            raise IntakeFull(f"{self._queued} alerts wait to be stored")
        self._queue.append(_Waiting(postings, done))
        self._queued += len(postings)
        if self._woken is not None and (len(self._queue) >= self._enough or self._queued >= BATCH_ALERTS):
            _wake(self._woken)

    async def post(self, body: bytes) -> tuple[str, ...]:
        """The same, waited for. Returns why some alerts were not acceptable."""
        answer: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()

        def done(refused: Sequence[str], failed: StoreError | None) -> None:
            if answer.done():
                return
            if failed is None:
                answer.set_result(tuple(refused))
            else:
                answer.set_exception(failed)

        self.take(body, done)
        return await answer

    async def serve(self) -> None:
        """Commit what waits, all that fits in one transaction; while one commits, the next batch gathers."""
        next_lapse = self._clock.monotonic()
        try:
            while True:
                if not self._queue:
                    await self._wait(1, next_lapse - self._clock.monotonic())
                if len(self._queue) < self._expected and 0 < self._queued < BATCH_ALERTS:
                    await self._wait(self._expected, GATHER_S)  # a commit costs as much as ten posts: one for all of them
                if self._queue:
                    batch = self._take()
                    await self._commit(batch)
                    self._expected = len(self._queue) + len(batch)
                late_s = self._clock.monotonic() - next_lapse
                if late_s >= (LAPSE_WAITS_S if self._queue else 0):  # what waits may say that an alert goes on
                    await self.lapse_due()
                    next_lapse = self._clock.monotonic() + LAPSE_EVERY_S
        finally:
            _tell(self._queue, IntakeStopped("the monitor is being stopped"))

    async def _wait(self, enough: int, seconds: float) -> None:
        """Until so many requests wait, or for so long."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._woken, self._enough = woken, enough
        timer = loop.call_later(max(0.0, seconds), _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._woken = None

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].postings) <= BATCH_ALERTS):
            waiting = self._queue.popleft()
            size += len(waiting.postings)
            batch.append(waiting)
        self._queued -= size
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            self._engine.announce(await self._thread(self._store_batch, batch))
        except StoreError as exc:
            self._break()
            log.error("alerts cannot be stored; their senders are told", alerts=_count(batch), error=str(exc))
            _tell(batch, exc)
            return
        except asyncio.CancelledError:
            _tell(batch, IntakeStopped("the monitor is being stopped"))
            raise
        self.received += _count(batch)
        _tell(batch, None)

    def _store_batch(self, batch: list[_Waiting]) -> Decision:
        """On the store's thread: what these postings change, committed."""
        now, policy = self._clock.now(), self._engine.settings.posted
        if policy is not self._policy:
            self._picture.clear()
            self._policy = policy
        sorting = _Sorting(self._picture, policy, self._guides, now)
        for waiting in batch:
            sorting.add(waiting)
        sorting.accept()
        decided = self._receive(
            tuple(sorting.repeats.values()), sorting.sent, lambda known, sent, policy: receive(known, sent, policy, now), now
        )
        sorting.remember(decided)
        return decided

    async def lapse_due(self) -> None:
        """End what was not sent again: a batch at once, the rest within a second. No clock that was set ends an alert.

        What was sent last before senders could not be heard (the monitor was down, the machine slept, the store refused) gets
        ``resolve_after`` to be sent again: its sender had named an end that it would have moved.
        """

        def judge(at: datetime, since: datetime | None) -> Decision:
            now = min(at, self._clock.now())  # set while this waited for the store: neither what was nor what will be is over yet
            over = lapsed(self._store.incidents.lapsed(now, BATCH_ALERTS, since), now)
            return self._receive((), lambda _: over, lambda known, _, policy: lapse(known, policy, now), now) if over else Decision()

        try:
            await self._engine.steps.notice()
            self._engine.announce(await self._thread(judge, self._clock.now(), self._unheard_before()))
        except StoreError as exc:
            log.error("alerts that ended cannot be looked up", error=str(exc))

    def _unheard_before(self) -> datetime | None:
        """What was sent last before that moment may be going on unheard; None when everything had its time to be sent again."""
        if self._engine.steps.forward != self._forward:
            self._forward = self._engine.steps.forward
            self._break()
        began, moment = self._heard_from
        heard_s = self._clock.monotonic() - began
        return moment if heard_s < self._engine.settings.posted.resolve_after.total_seconds() else None

    def _break(self) -> None:
        self._heard_from = self._clock.monotonic(), self._clock.now()

    def _receive(
        self,
        repeats: Sequence[Repeat],
        sent: Callable[[bool], Sequence[Alert]],
        judge: Callable[[Known, Sequence[Alert], Policy], Decision],
        now: datetime,
    ) -> Decision:
        @cache
        def muting() -> Muting:
            return self._engine.muting(now)

        def decide(known: Known, alerts: Sequence[Alert]) -> Decision:
            return judge(known, alerts, replace(self._engine.policy(AlertPolicy()), muting=muting()))

        def speaks(alert: Alert) -> bool:
            return not muting() or not muting().reasons(alert, now)

        return self._store.incidents.receive(repeats, sent, decide, now, speaks)


class _Sorting:
    """One batch, sorted into what only repeats and what goes the whole way."""

    def __init__(self, picture: Picture, policy: PostedPolicy, guides: Mapping[str, Guide], now: datetime) -> None:
        self._picture = picture
        self._policy = policy
        self._guides = guides
        self._now = now
        self.repeats: dict[bytes, Repeat] = {}
        self._repeated: list[tuple[_Waiting, Posting]] = []
        self._new: list[tuple[_Waiting, Posting]] = []
        self._whole: list[tuple[Posting, Alert]] = []
        self._news: set[bytes] = set()
        """Keys of what went the whole way: what follows in this batch goes after it."""

    def add(self, waiting: _Waiting) -> None:
        for posting in waiting.postings:
            repeat = None
            if posting.key not in self._news:
                repeat = self._picture.repeat(posting, self._policy.resolve_after, self._now, self.repeats.get(posting.key))
            if repeat is None:
                self._news.add(posting.key)
                self._new.append((waiting, posting))
            else:
                self.repeats[posting.key] = repeat
                self._repeated.append((waiting, posting))

    def accept(self) -> None:
        """Read what goes the whole way. Called once, when all is added."""
        self._accept(self._new)

    def sent(self, all_met: bool) -> Sequence[Alert]:
        """What goes the whole way: when a repetition did not meet its row, everything, in its order."""
        if not all_met:
            whole, self._whole = self._whole, []
            self._accept(self._repeated)
            self._whole += whole
            self.repeats.clear()
        return [alert for _, alert in self._whole]

    def remember(self, decided: Decision) -> None:
        """Bring the picture up to what was committed."""
        for key, repeat in self.repeats.items():
            self._picture.keep_repeat(key, repeat)
        stored = {alert.fingerprint: alert for alert in decided.alerts}
        for posting, alert in self._whole:
            last = stored.get(alert.fingerprint)
            if last is not None and last.state is AlertState.FIRING:
                self._picture.keep(posting, last)
            else:
                self._picture.drop(posting.key)

    def _accept(self, postings: Sequence[tuple[_Waiting, Posting]]) -> None:
        found = accept_all([posting.read() for _, posting in postings], self._policy, self._guides, self._now)
        for (waiting, posting), alert in zip(postings, found, strict=True):
            if isinstance(alert, ValueError):
                waiting.refused.append(str(alert))
            else:
                self._whole.append((posting, alert))


def _wake(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)


def _tell(requests: Iterable[_Waiting], failed: StoreError | None) -> None:
    for waiting in requests:
        waiting.done(waiting.refused, failed)


def _count(batch: Iterable[_Waiting]) -> int:
    return sum(len(waiting.postings) for waiting in batch)
