"""From a check's result to a committed decision: runs, decides, stores, and tells delivery that something waits.

The store is the truth about alerts and incidents; in memory are only the latest results and which instances are not quiet.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from alerts import escalation
from alerts.decide import Known, Policy, decide, fingerprints_of, groups_of, next_look_s, retire, settle
from alerts.flapping import NOTHING
from alerts.muting import EXPIRED_KEPT, Muting, sources, spoken
from alerts.posted import INSTANCE
from monitor.clock import Clock
from monitor.clocksteps import ClockSteps
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import Alert, AlertPolicy, AlertState, CheckResult, Decision, Guide, Incident, Outcome, Severity, TimelineEntry
from monitor.errors import StoreError
from monitor.flaps import KEPT_AS, Flaps
from monitor.memory import Memory
from monitor.plugins import one_line
from monitor.policies import causes_of, policy_of
from monitor.runhours import RunHours
from monitor.runner import Runner
from monitor.store import Store, StoreThread
from monitor.stretches import Stretches
from monitor.suspects import LookSoon, Suspects

TICK_S = 1.0
PRUNE_EVERY_S = 3600.0
SETTLE_EVERY_S = 15.0
LEARN_EVERY_S = 15.0
MAX_SETTLED = 100_000
CHANGED_AT_ONCE = 500
"""Incidents."""
MOST_SAID = 20
"""Lines of incidents' histories that one decision logs, and one about alerts that joined or left; all of them are stored."""

UPKEEP = "upkeep/monitor"
NO_CHECKS = frozenset({INSTANCE, "delivery/monitor", UPKEEP})
"""What stands in an alert in place of a check instance when no check found it."""

Item = TypeVar("Item")

log = structlog.get_logger("monitor.engine")


class Engine:
    """Owns the life of a result. ``wake_delivery`` is called after every commit that queued a notification."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        thread: StoreThread,
        runner: Runner,
        clock: Clock,
        guides: Mapping[str, Guide],
        on_result: Callable[[CheckResult], None],
        wake_delivery: Callable[[], None],
        memory: Memory | None = None,
        look_soon: LookSoon = lambda _: set(),
    ) -> None:
        self.settings = settings
        self.store_error: str | None = None
        self.latest: dict[str, CheckResult] = {}
        self.flaps = Flaps()
        self._store = store
        self._thread = thread
        self._runner = runner
        self._clock = clock
        self._guides = guides
        self._on_result = on_result
        self.wake_delivery = wake_delivery
        self.steps = ClockSteps(lambda: self.settings, store=store, thread=thread, clock=clock)
        self._memory = memory or Memory()
        self._suspects = Suspects(settings, look_soon)
        self.last_round = clock.monotonic()
        """When the last round of ``serve`` ended, on the monotonic clock."""
        self._keys = frozenset(instance.key for instance in settings.instances)
        self._unquiet: set[str] = set()
        self._undecided: set[str] = set()
        """Instances whose finding is not committed yet. What they kept is written later: a kill -9 would lose the finding."""
        self._stretches = Stretches()
        self._hours = RunHours()
        self._next_prune = clock.monotonic()
        self.each_round: Callable[[], Awaitable[None]] = _nothing
        """Called in every round of ``serve``; may raise ``StoreError``."""
        self.each_result: Callable[[CheckInstance, CheckResult], None] = lambda *_: None
        """Called with every result that is not quietly good, after its decision was kept or could not be."""
        self.firing: dict[str, Severity] = {}
        """By fingerprint: what checks found that fires, as far as the store is known to have it."""
        self._next_settle = self._next_learning = clock.monotonic()
        self._mutes: object = None
        """What muted when the incidents were last looked at."""

    async def start(self) -> None:
        """Learn from the store which instances are not quiet, and what checks kept. Raises ``StoreError``."""
        self._unquiet = set(await self._live())
        firing = await self._thread(self._store.incidents.firing)
        self.firing = {alert.fingerprint: alert.severity for alert in firing if alert.instance != INSTANCE}
        kept = await self._thread(self._store.kept.all)
        self.flaps.load(kept)
        self._memory.load(kept)

    async def _live(self) -> frozenset[str]:
        """Check instances with an alert."""
        return await self._thread(self._store.incidents.live_instances) - NO_CHECKS

    async def _learn_of_others(self) -> None:
        """Another monitor on the same state may have raised an alert and have died since: this one's good runs end it."""
        if self._clock.monotonic() >= self._next_learning:
            self._next_learning = self._clock.monotonic() + LEARN_EVERY_S
            self._unquiet |= await self._live() & self._keys  # not what it alone watches: that is for it to retire

    def reconfigure(self, settings: Settings) -> None:
        """Take new settings; the alerts of checks that were removed end within a second."""
        self.settings = settings
        self._keys = frozenset(instance.key for instance in settings.instances)
        self._suspects.adopt(settings)
        for key in (self.latest.keys() | self.flaps.recent.keys()) - self._keys:
            self.latest.pop(key, None)
            self.flaps.forget(key)
        self._stretches.adopt(self._keys)

    async def run(self, instance: CheckInstance) -> float | None:
        """Run one check and commit what it changes. Returns in how many seconds a look out of turn would settle something sooner."""
        result = await self._runner.run(instance)
        if instance.key not in self._keys:  # removed by a reload while it ran
            return None
        self.latest[instance.key] = result
        self.flaps.see(result)
        self._hours.see(result)
        self._on_result(result)
        quiet = result.outcome is Outcome.OK and instance.key not in self._unquiet
        self._stretches.see(instance, result, quiet=quiet)
        if quiet:
            self._suspects.answered(instance.key)
            return None
        self._undecided.add(instance.key)
        try:
            await self._question(instance, result)
            again_s = await self._commit(instance, result)
        except StoreError as exc:
            self._store_failed(exc)
            again_s = instance.recheck_s  # nothing is lost: the next run decides the same, as soon as the store answers
        self._undecided.discard(instance.key)  # not when this is cancelled: then nothing was decided
        self._suspects.answered(instance.key)
        self.each_result(instance, result)
        return again_s

    async def _question(self, instance: CheckInstance, result: CheckResult) -> None:
        """Is what was newly found a symptom? Then its cause is looked at before anybody is told."""
        if not self._suspects.of(instance) or self.firing.keys() >= fingerprints_of(result):
            self._suspects.settled(instance.key)
            return
        after = instance.policy.blind_after if result.outcome is Outcome.BLIND else instance.policy.fail_after
        await self._suspects.question(instance, at_once=after == 1 or instance.key in self.flaps.flapping)

    async def serve(self) -> None:
        """Go round every second until cancelled."""
        while True:
            await self.try_round()
            await asyncio.sleep(TICK_S)

    async def try_round(self) -> None:
        """One round; when the store fails, ``store_error`` says why until it works again."""
        try:
            await self.round()
            self.store_error = None
        except StoreError as exc:
            self._store_failed(exc)
        self.last_round = self._clock.monotonic()

    async def round(self) -> None:
        """Do once what time asks for: retire, mute, escalate, look at itself, write the history, prune. Raises ``StoreError``."""
        if await self.steps.notice():
            self.wake_delivery()
        await self._learn_of_others()
        await self._retire_gone()
        await self._settle_mutes()
        await self._escalate_due()
        await self.each_round()
        await self.flush()
        await self._prune_hourly()

    async def flush(self, *, whole: bool = False) -> None:
        """Write the history collected so far; ``whole`` leaves none for later. Raises ``StoreError``, keeping what was not written."""
        hours = self._hours.take()
        try:
            await self._thread(self._store.history.record, hours)
        except StoreError:
            self._hours.give_back(hours)
            raise
        stretches = self._stretches.take(self._clock.monotonic(), whole=whole)
        try:
            await self._thread(self._store.stretches.save, stretches)
        except StoreError:
            self._stretches.give_back(stretches)
            raise
        entries = self._memory.take_unsaved(self._undecided)
        outcomes = self.flaps.take_unsaved(self._clock.now(), self._clock.monotonic(), whole=whole)
        try:
            await self._thread(self._store.kept.save, (*entries, *outcomes))
        except StoreError:
            self._memory.give_back(entries)
            if outcomes:
                self.flaps.give_back()
            raise

    async def _commit(self, instance: CheckInstance, result: CheckResult) -> float | None:
        now = self._clock.now()
        again_s: float | None = None

        def judge() -> Decision:
            if instance.key not in self._keys:  # removed while this waited for the store's thread
                return Decision()
            policy = replace(self.policy(instance.policy), depends_on=instance.depends_on, muting=self.muting(now))
            policy = replace(policy, flapping=self.flaps.flapping.get(instance.key, NOTHING))

            def look(known: Known) -> Decision:
                nonlocal again_s
                decided = decide(known, result, policy, now)
                again_s = next_look_s(known, decided, instance.key, instance.policy, now)
                return decided

            return self._store.incidents.decide(instance.key, groups_of(result), look, now, causes_of(instance, now))

        self._unquiet.add(instance.key)  # before: whatever fails from here on, the next good run is looked at
        decided = await self._thread(judge)
        self.store_error = None
        self.announce(decided)
        if instance.key not in await self._thread(self._store.incidents.live_instances):
            self._unquiet.discard(instance.key)
        if again_s is None or instance.key in self.flaps.flapping:  # quick looks would see it calm
            return None
        if result.outcome is Outcome.BLIND:  # a moment's blindness is no news: its runs are counted at the check's own pace
            return None
        return again_s or instance.recheck_s

    async def _escalate_due(self) -> None:
        now = await self.steps.now()
        incidents = self._store.incidents
        people = self.settings.people
        for some in _portions(await self._thread(incidents.due, now)):
            self.announce(await self._thread(incidents.change_each, some, lambda known: escalation.escalate(known, now, people), now))

    async def _settle_mutes(self) -> None:
        """Mute and unmute incidents when a silence or a window begins, changes or ends, or what fires changed under inhibition.

        Now and then without a reason too: a decision that waited for the store while a window closed has muted by what was before.
        """
        now = self._clock.now()

        def look() -> list[Decision]:
            muting = self.muting(now)
            mutes = (
                tuple(silence for silence in muting.silences if silence.starts_at <= now),
                tuple(window for window in muting.windows if window.active_until(now) is not None),
                muting.inhibitions,
                tuple(alert.fingerprint for alert in muting.firing),
            )
            if mutes == self._mutes and self._clock.monotonic() < self._next_settle:
                return []
            policy = replace(self.policy(AlertPolicy()), muting=muting)
            store = self._store.incidents
            incidents = store.list(unresolved=True, limit=MAX_SETTLED) if muting else store.muted()
            decided = []
            for some in _portions(incidents):
                firing = store.firing_by_group(incident.group for incident in some) if muting else {}

                def decide_mute(incident: Incident, firing: Mapping[str, Sequence[Alert]] = firing) -> Decision:
                    return settle(incident, firing.get(incident.group, ()), policy, now)

                changing = [incident.id for incident in some if decide_mute(incident)]
                if changing:
                    decided.append(store.change_each(changing, decide_mute, now))
            self._mutes, self._next_settle = mutes, self._clock.monotonic() + SETTLE_EVERY_S
            return decided

        for decided in await self._thread(look):
            self.announce(decided)

    def muting(self, now: datetime) -> Muting:
        """Everything that may mute an alert now. On the store's thread; raises ``StoreError``."""
        rules = self.settings.inhibitions
        firing = self._store.incidents.firing_among(spoken(rule.source) for rule in rules) if rules else ()
        return Muting(self._store.silences.list(since=now), self.settings.windows, rules, sources(rules, firing))

    async def _prune_hourly(self) -> None:
        if self._clock.monotonic() < self._next_prune:
            return
        before = self._clock.now() - timedelta(days=self.settings.history_days)
        await self._thread(self._store.incidents.prune, before)
        await self._thread(self._store.history.prune, before)
        await self._thread(self._store.stretches.prune, before)
        await self._thread(self._store.silences.prune, min(before, self._clock.now() - EXPIRED_KEPT))
        self._memory.retain(dict.fromkeys(self._keys))
        await self._thread(self._store.kept.retain, {*self._keys, KEPT_AS})
        self._next_prune = self._clock.monotonic() + PRUNE_EVERY_S

    async def _retire_gone(self) -> None:
        now = self._clock.now()
        for gone in sorted(self._unquiet - self._keys):

            def judge(gone: str = gone) -> Decision:
                policy = replace(self.policy(AlertPolicy()), muting=self.muting(now))
                return self._store.incidents.decide(gone, (), lambda known: retire(known, gone, policy, now), now)

            self.announce(await self._thread(judge))
            self._unquiet.discard(gone)

    def policy(self, alert: AlertPolicy) -> Policy:
        """What the configuration says about everybody who may have to hear, without what mutes."""
        return policy_of(self.settings, self._guides, alert)

    def announce(self, decided: Decision) -> None:
        """Log what was committed, and wake delivery when it queued something."""
        for alert in decided.alerts:
            self.firing.pop(alert.fingerprint, None)
            if alert.state is AlertState.FIRING and alert.instance != INSTANCE:
                self.firing[alert.fingerprint] = alert.severity
        said = [entry for entry in decided.timeline if entry.kind != "alert"]
        joined = [entry for entry in decided.timeline if entry.kind == "alert"]
        for entry in (*said[:MOST_SAID], *joined[:1]):
            log.info("incident", incident=entry.incident_id, event_kind=entry.kind, text=entry.text)
        more = len(decided.timeline) - len(said[:MOST_SAID]) - len(joined[:1])
        if more:
            log.info("incidents", more=more, text="many at once: their histories tell the rest")
        if decided.intents:
            self.wake_delivery()

    def _store_failed(self, exc: StoreError) -> None:
        if self.store_error is None:
            log.error("state cannot be written; checking goes on, decisions wait", error=str(exc))
        self.store_error = str(exc)


def _portions(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """As many as are changed in one transaction: what a check found does not wait long behind a storm."""
    return (items[first : first + CHANGED_AT_ONCE] for first in range(0, len(items), CHANGED_AT_ONCE))


async def _nothing() -> None:
    """No one has anything to do."""


def acknowledge(store: Store, incident_id: str, who: str, clock: Clock, note: str = "") -> tuple[Incident, bool]:
    """Somebody takes an incident: its escalation stops and everybody told hears who. The one way in, for every door.

    ``incident_id`` may be a unique beginning; ``note`` goes to the timeline first. Returns the incident and whether this call changed
    it. Raises ``UsageError``.
    """
    now, who = clock.now(), one_line(who) or "unknown"
    found = store.incidents.find(incident_id)

    def take(current: Incident) -> Decision:
        decided = escalation.acknowledge(current, who, now)
        said = Decision(timeline=(TimelineEntry(current.id, now, "note", one_line(note), who),)) if note else Decision()
        return escalation.join(said, decided)

    incident, decided = store.incidents.change(found.id, take, now)
    return incident, bool(decided.incidents)
