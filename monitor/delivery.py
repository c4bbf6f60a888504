"""The outbox's other end: claims due rows, sends each through its channel, and only then marks it sent.

At least once per (incident, transition, channel), in order per incident and channel; retries, leases and dead letters live here.
"""

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psutil
import structlog

from alerts.digesting import Manner, Spoken
from monitor.clock import Clock
from monitor.config.settings import Channel, Settings
from monitor.domain import Digest, Notification, Receipt
from monitor.errors import DeliveryError, StoreError
from monitor.plugins import NotifyContext, one_line
from monitor.store import Store, StoreThread
from monitor.store.claims import Claimant, Sending, Voice

SEND_DEADLINE_S = 15.0
LEASE_S = 60.0
"""Longer than a send may take: a row whose lease ran out belongs to nobody and is sent again."""
POLL_S = 5.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 300.0
MAX_REASON_CHARS = 500
PER_CHANNEL = 4
"""Sends under way at once on one channel."""

log = structlog.get_logger("monitor.delivery")

OnOutcome = Callable[[str, str], None]
"""Called with (channel, outcome): sent, retried, dead."""


class Delivery:
    """Claims and sends until cancelled. Several may run over one store: the lease decides who owns a row."""

    def __init__(self, settings: Settings, *, store: Store, thread: StoreThread, clock: Clock, on_outcome: OnOutcome) -> None:
        self.settings = settings
        self._store = store
        self._thread = thread
        self._clock = clock
        self._on_outcome = on_outcome
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{random.randrange(16**6):06x}"  # noqa: S311 - a name, not a secret
        self._wake = asyncio.Event()
        self._under_way: Counter[str] = Counter()
        self._rows: set[tuple[str, int | str]] = set()
        """Rows being sent now: a lease that a leap of the clock ended does not send one twice."""
        self._buckets: dict[str, TokenBucket] = {}
        self._spoken: dict[str, Spoken] = {}

    def wake(self) -> None:
        """Look at the outbox now."""
        self._wake.set()

    async def serve(self) -> None:
        """Run until cancelled; rows being sent then are given back at once, so that a restart sends them without waiting for the lease."""
        await self._take_over()
        try:
            async with asyncio.TaskGroup() as sends:
                while True:
                    self._wake.clear()
                    wait_s = await self._send_due(sends)
                    try:
                        async with asyncio.timeout(wait_s):  # not wait_for: on Python 3.11 it can swallow a cancellation
                            await self._wake.wait()
                    except TimeoutError:
                        continue
        finally:
            await self._release()

    async def _take_over(self) -> None:
        """Free at once what a process of this machine held when it died, instead of waiting for its lease to end."""
        try:
            for owner in await self._thread(self._store.outbox.owners):
                host, pid, _ = owner.rsplit("/", 2)
                gone = int(pid) == os.getpid() or not psutil.pid_exists(int(pid))  # in a container, our own pid was the dead one's
                if host == socket.gethostname() and owner != self._owner and gone:
                    await self._thread(self._store.outbox.release, owner)
        except StoreError as exc:
            log.error("leases of dead processes cannot be looked up; they end by themselves", error=str(exc))

    async def _send_due(self, sends: asyncio.TaskGroup) -> float:
        """Start sending everything due that has room; returns the seconds until it is worth looking again."""
        now = self._clock.now()
        voices = {channel.name: self._voice(channel) for channel in self.settings.channels.values()}
        unknown = Voice(PER_CHANNEL)  # of channels that are no longer configured: their rows are buried
        silent = frozenset(name for name, voice in voices.items() if voice.room <= 0)
        who = Claimant(self._owner, now, LEASE_S, self.settings.external_url)
        try:
            claimed = await self._thread(self._store.outbox.claim, who, voices, unknown)
            due = None if claimed else await self._thread(self._store.outbox.next_due, silent)
        except StoreError as exc:
            log.error("outbox cannot be read", error=str(exc))
            return BACKOFF_FIRST_S
        self._spoken |= claimed.spoken
        for sending in claimed.sends:
            if _row(sending) in self._rows:
                continue
            self._rows.add(_row(sending))
            self._under_way[sending.channel] += 1
            self._bucket(sending.channel).take(self._clock.monotonic())
            sends.create_task(self._deliver(sending), name=f"send by {sending.channel}")
        if claimed:
            return 0.0
        spent = (self._bucket(name).wait_s(self._clock.monotonic()) for name in silent)
        soonest = min((wait_s for wait_s in spent if wait_s > 0), default=POLL_S)
        return min(soonest, POLL_S if due is None else min(POLL_S, max(0.05, (due - now).total_seconds())))

    def _voice(self, channel: Channel) -> Voice:
        """What a channel may begin now, without outrunning its rate."""
        room = min(PER_CHANNEL - self._under_way[channel.name], self._bucket(channel.name).ready(self._clock.monotonic()))
        digest = channel.notifier.digest
        manner = Manner(channel.digest_from, digest.gather_s, digest.most) if digest else None
        return Voice(room, manner, self._spoken.get(channel.name, Spoken()))

    def _bucket(self, channel: str) -> "TokenBucket":
        """The channel's rate, kept over reloads unless it changed."""
        known = self.settings.channels.get(channel)
        per_minute = known.notifier.per_minute if known else None
        bucket = self._buckets.get(channel)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[channel] = TokenBucket(per_minute)
        return bucket

    async def _deliver(self, sending: Sending) -> None:
        """One attempt at one sending, and its outcome in the store."""
        try:
            await self._attempt(sending)
        except StoreError as exc:  # the rows stay leased and are sent again when the lease ends: at least once
            log.error("delivery outcome cannot be recorded", error=str(exc), **_facts(sending))
        finally:
            self._rows.discard(_row(sending))
            self._under_way[sending.channel] -= 1
            self._wake.set()

    async def _attempt(self, sending: Sending) -> None:
        channel = self.settings.channels.get(sending.channel)
        try:
            if channel is None:
                raise DeliveryError(f"channel {sending.channel!r} is no longer configured", retryable=False)
            if channel.notifier.wants_labels and isinstance(sending, Notification) and sending.first_receipt is None:
                labels = await self._thread(self._store.incidents.common_labels, sending.incident.group)
                sending = replace(sending, labels=labels)
            receipt = await send(channel, sending, self._clock)
        except DeliveryError as exc:
            await self._fail(sending, exc)
            return
        # shielded: what was sent must be recorded, also when the program stops now
        await asyncio.shield(self._thread(self._store.outbox.sent, sending, self._owner, receipt, self._clock.now()))
        self._on_outcome(sending.channel, "sent")
        if receipt.note:
            log.warning("delivered, but not to everybody", note=receipt.note, **_facts(sending))
        else:
            log.info("delivered", **_facts(sending))

    async def _fail(self, sending: Sending, error: DeliveryError) -> None:
        now, reason = self._clock.now(), one_line(str(error), limit=MAX_REASON_CHARS)
        if not error.retryable:
            await self._thread(self._store.outbox.bury, sending, self._owner, reason, now)
            self._on_outcome(sending.channel, "dead")
            log.error("delivery failed for good", error=reason, attempt=sending.attempts, **_facts(sending))
            return
        at = retry_at(now, sending.attempts, error.retry_after_s)
        await self._thread(self._store.outbox.retry, sending, self._owner, reason, at)
        self._on_outcome(sending.channel, "retried")
        log.warning(
            "delivery failed, will be retried", error=reason, next_attempt_at=at.isoformat(), attempt=sending.attempts, **_facts(sending)
        )

    async def _release(self) -> None:
        """On the store's thread, so after everything that was handed to it before."""
        try:
            await self._thread(self._store.outbox.release, self._owner)
        except StoreError as exc:
            log.error("leases cannot be given back; they end by themselves", error=str(exc))


class TokenBucket:
    """So many sends a minute, and at most a few seconds' worth of them at once; None is without limit."""

    BURST_S = 4.0

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute = per_minute
        self._most = max(1.0, (per_minute or 0) / 60 * self.BURST_S)
        self._tokens = self._most
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Seconds until one more may be sent; 0 when it may now."""
        if self.per_minute is None:
            return 0.0
        self._fill(now)
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) * 60 / self.per_minute

    def ready(self, now: float) -> int:
        """How many may be sent now."""
        if self.per_minute is None:
            return PER_CHANNEL
        self._fill(now)
        return int(self._tokens)

    def take(self, now: float) -> None:
        if self.per_minute is not None:
            self._fill(now)
            self._tokens -= 1

    def _fill(self, now: float) -> None:
        if self._at is not None and self.per_minute is not None:
            self._tokens = min(self._most, self._tokens + (now - self._at) * self.per_minute / 60)
        self._at = now


def _row(sending: Sending) -> tuple[str, int | str]:
    """What tells one sending from another."""
    return sending.channel, sending.key if isinstance(sending, Digest) else sending.id


def _facts(sending: Sending) -> dict[str, Any]:
    """What a log line says of it."""
    if isinstance(sending, Digest):
        return {"channel": sending.channel, "digest": sending.key, "incidents": len(sending.items)}
    return {"channel": sending.channel, "incident": sending.incident.id, "transition": sending.transition.value}


async def send(channel: Channel, sending: Sending, clock: Clock) -> Receipt:
    """One send through one channel, within the deadline. Whatever goes wrong leaves as a ``DeliveryError``."""
    context = NotifyContext(clock=clock, deadline_s=SEND_DEADLINE_S)
    try:
        async with asyncio.timeout(SEND_DEADLINE_S + 1.0):
            if not isinstance(sending, Digest):
                return await channel.notifier.send(context, channel.config, sending)
            if channel.notifier.digest is None:
                raise DeliveryError(f"the notifier {channel.notifier.name} tells no digests any more", retryable=False)
            return await channel.notifier.digest.send(context, channel.config, sending)
    except DeliveryError:
        raise
    except TimeoutError as exc:
        raise DeliveryError(f"no answer within {SEND_DEADLINE_S:g} s", retryable=True) from exc
    except Exception as exc:
        raise DeliveryError(f"the notifier failed: {type(exc).__name__}: {exc}", retryable=True) from exc


def retry_at(now: datetime, attempts: int, retry_after_s: float | None) -> datetime:
    """When to try again: what the provider asks, else doubling from one second to five minutes, with jitter of a fifth."""
    doubling = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(attempts - 1, 20))
    jitter = 1 + random.uniform(-0.2, 0.2)  # noqa: S311 - spreads load, guards nothing
    wait_s = doubling * jitter if retry_after_s is None else max(retry_after_s, BACKOFF_FIRST_S) * (1 + random.uniform(0, 0.1))  # noqa: S311
    return now + timedelta(seconds=wait_s)
