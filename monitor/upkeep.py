"""What channels need between notifications: far sides compared with ours and brought together, and told again what they would forget.

One channel after the other, never two rounds of one at once; a round has a deadline, and what it repairs is bounded.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import structlog

from alerts.decide import decide, groups_of
from alerts.reconcile import KINDS, repair
from monitor.clock import Clock
from monitor.config.settings import Channel
from monitor.domain import AlertPolicy, CheckResult, Decision, FindingKind, Observed, Outcome, Severity, Sighting
from monitor.engine import UPKEEP, Engine
from monitor.errors import DeliveryError, StoreError
from monitor.metrics import names
from monitor.metrics.exposition import Exposition
from monitor.plugins import NotifyContext, one_line
from monitor.store import Store, StoreThread

LOOK_EVERY_S = 1.0
DEADLINE_S = 45.0
SETTLED = timedelta(seconds=60)
"""Providers take notifications and work on them later: what was sent less long ago is not judged."""
OVER_SHOWN = timedelta(hours=24)
"""How long after its end an incident is still looked at."""
MOST_STANDINGS = 5000
"""Incidents looked at in one round, the worst first."""
MOST_PAGES = 20
"""Pages sent again in one round; should the far side have forgotten everything, the others wait for the next."""
FAILING_AFTER = 3
RETRY_S = 30.0

UPKEEP_FAILING = FindingKind(
    "UpkeepFailing", Severity.P3, None, "A channel cannot be kept in step: what happens there may not be known here."
)

log = structlog.get_logger("monitor.upkeep")


class UpkeepLoop:
    """``serve()`` runs until cancelled. Rounds begin at the start, when due, and after a channel that failed works again."""

    def __init__(self, engine: Engine, *, store: Store, thread: StoreThread, clock: Clock, show: Exposition) -> None:
        self._engine = engine
        self._store = store
        self._thread = thread
        self._clock = clock
        self._show = show
        self._due: dict[str, float] = {}
        self._fails: Counter[str] = Counter()
        self._why: dict[str, str] = {}
        self._unwell: set[str] = set()

    def heard(self, channel: str, outcome: str) -> None:
        """Delivery's outcomes: a channel that works again after it failed is looked at as soon as things have settled."""
        if outcome != "sent":
            self._unwell.add(channel)
        elif channel in self._unwell:
            self._unwell.discard(channel)
            soon = self._clock.monotonic() + SETTLED.total_seconds() + LOOK_EVERY_S
            self._due[channel] = min(self._due.get(channel, soon), soon)

    async def serve(self) -> None:
        judged: dict[str, str] | None = None
        while True:
            try:
                await self.look()
                if judged != self._why:
                    await self.judge()
                    judged = dict(self._why)
            except StoreError as exc:
                log.error("channels cannot be kept in step while the state cannot be used", error=str(exc))
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """One round of every channel that is due. Raises ``StoreError``."""
        wanted = {channel.name: (channel, every_s) for channel in self._engine.settings.channels.values() if (every_s := _every_s(channel))}
        for gone in (self._due.keys() | self._why.keys()) - wanted.keys():
            self._due.pop(gone, None)
            self._fails.pop(gone, None)
            self._why.pop(gone, None)
        for name, (channel, every_s) in wanted.items():
            if self._due.get(name, 0.0) <= self._clock.monotonic():
                self._due[name] = self._clock.monotonic() + every_s
                await self._round(channel, every_s)

    async def _round(self, channel: Channel, every_s: float) -> None:
        try:
            sightings = await self._run(channel)
        except DeliveryError as exc:
            self._fails[channel.name] += 1
            reason = one_line(str(exc), limit=300)
            wait_s = min(every_s, RETRY_S * 2 ** min(self._fails[channel.name] - 1, 10))
            self._due[channel.name] = self._clock.monotonic() + max(wait_s, exc.retry_after_s or 0.0)
            if self._fails[channel.name] >= FAILING_AFTER:
                self._why[channel.name] = reason
            self._show.add(names.UPKEEP, channel=channel.name, outcome="failed")
            log.warning("channel cannot be kept in step", channel=channel.name, error=reason, failures=self._fails[channel.name])
            return
        await self._repair(channel.name, sightings)
        self._fails.pop(channel.name, None)
        self._why.pop(channel.name, None)
        self._show.add(names.UPKEEP, channel=channel.name, outcome="ok")
        self._show.set(names.UPKEEP_LAST_SUCCESS, self._clock.now().timestamp(), channel=channel.name)

    async def _run(self, channel: Channel) -> tuple[Sighting, ...]:
        now = self._clock.now()
        known = await self._thread(self._store.incidents.standings, channel.name, now - OVER_SHOWN, MOST_STANDINGS)
        settled = tuple(standing for standing in known if standing.last_at <= now - SETTLED)
        upkeep = channel.notifier.upkeep
        assert upkeep is not None
        try:
            async with asyncio.timeout(DEADLINE_S + 1):
                return await upkeep.run(NotifyContext(clock=self._clock, deadline_s=DEADLINE_S), channel.config, settled)
        except DeliveryError:
            raise
        except TimeoutError as exc:
            raise DeliveryError(f"no answer within {DEADLINE_S:g} s", retryable=True) from exc
        except Exception as exc:
            raise DeliveryError(f"the notifier's upkeep failed: {type(exc).__name__}: {exc}", retryable=True) from exc

    async def _repair(self, channel: str, sightings: tuple[Sighting, ...]) -> None:
        done: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        for seen in sightings:
            kind = await self._thread(self._apply, seen, done["trigger"] < MOST_PAGES)
            if kind is not None:
                done[kind] += 1
        for kind in KINDS:
            self._show.add(names.UPKEEP_REPAIRS, done[kind], channel=channel, repair=kind)
        self._show.set(names.UPKEEP_DRIFT, done["left"], channel=channel)

    def _apply(self, seen: Sighting, may_page: bool) -> str | None:
        """On the store's thread: decide and commit, by what is true now. Returns the kind of repair, if one was made."""
        now, made = self._clock.now(), ""

        def judge(said: Sequence[str]) -> Decision:
            nonlocal made
            found = repair(seen, said, now)
            if found is None or (found.kind == "trigger" and not may_page):
                return Decision()
            made = found.kind
            return found.decision

        self._engine.announce(self._store.incidents.change_standing(seen.standing, judge, now))
        return made or None

    async def judge(self) -> None:
        """Find or clear ``UpkeepFailing``. Raises ``StoreError``."""
        now = self._clock.now()
        findings = tuple(
            UPKEEP_FAILING(f"channel {name} cannot be kept in step: {reason}", labels={"channel": name}, facts={"last error": reason})
            for name, reason in sorted(self._why.items())
        )
        outcome = Outcome.FOUND if findings else Outcome.OK
        result = CheckResult(UPKEEP, "upkeep", "monitor", outcome, now, 0.0, Observed(findings=findings))

        def judge() -> Decision:
            policy = replace(self._engine.policy(AlertPolicy(fail_after=1, recover_after=1)), muting=self._engine.muting(now))
            return self._store.incidents.decide(UPKEEP, groups_of(result), lambda known: decide(known, result, policy, now), now)

        self._engine.announce(await self._thread(judge))


def _every_s(channel: Channel) -> float | None:
    return channel.notifier.upkeep.every_s(channel.config) if channel.notifier.upkeep else None
