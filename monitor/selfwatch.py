"""The monitor looks at its own delivery: a channel that fails is told of over another one, and hands its notifications on.

So does a channel that was renamed or removed: an open incident keeps the chain it began with, and the names in it.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from alerts import escalation
from alerts.decide import decide, groups_of
from monitor.clock import Clock
from monitor.config.settings import Settings
from monitor.domain import (
    AlertPolicy,
    CheckResult,
    Decision,
    EscalationStep,
    Finding,
    FindingKind,
    Incident,
    Intent,
    Observed,
    Outcome,
    Severity,
    Transition,
)
from monitor.engine import Engine
from monitor.plugins import one_line
from monitor.store import ChannelQueue, Store, StoreThread
from monitor.store.outbox import Undelivered
from monitor.store.saving import OPENERS

INSTANCE = "delivery/monitor"
LOOK_EVERY_S = 15.0
FAILING_AFTER = timedelta(minutes=2)
FAILING_ATTEMPTS = 3
MOST_INCIDENTS = 10_000
DEAD_SHOWN = timedelta(hours=1)
"""How long a channel counts as failing after it gave up on a notification."""

CHANNEL_FAILING = FindingKind("ChannelFailing", Severity.P2, None, "A channel does not deliver: people may not hear of incidents.")


class SelfWatch:
    """Looks when asked to; raises ``StoreError``."""

    def __init__(self, engine: Engine, *, store: Store, thread: StoreThread, clock: Clock) -> None:
        self._engine = engine
        self._store = store
        self._thread = thread
        self._clock = clock
        self._next = clock.monotonic()
        self._succeeded: frozenset[str] = frozenset()
        """The channels that were configured when those told through others were last looked for."""

    async def look(self) -> None:
        """Hand on what is stuck, and find or clear ``ChannelFailing``; every 15 seconds, and when the channels changed."""
        changed = self._succeeded != self._engine.settings.channels.keys()
        if self._clock.monotonic() < self._next and not changed:
            return
        self._next = self._clock.monotonic() + LOOK_EVERY_S
        decided = await self._thread(self._hand_on)
        if changed:
            decided += await self._thread(self._succeed)
        for one in decided:
            self._engine.announce(one)
        self._engine.announce(await self._thread(self._judge))

    def _hand_on(self) -> list[Decision]:
        now, settings = self._clock.now(), self._engine.settings
        decided = []
        for channel in settings.channels.values():
            if channel.fallback is None:
                continue
            for row in self._store.outbox.to_reroute(channel.name, now - timedelta(seconds=channel.fallback_after_s)):
                decided.append(self._reroute(row, channel.fallback, now))
        gone = {queue.channel for queue in self._store.outbox.queues()} - settings.channels.keys()
        for name in sorted(gone):
            decided += [self._reroute(row, None, now) for row in self._store.outbox.to_reroute(name, now)]
        return decided

    def _reroute(self, row: Undelivered, fallback: str | None, now: datetime) -> Decision:
        """Without a fallback, to who stands in by the configured chain."""
        reason = f"{row.channel} could not deliver ({one_line(row.last_error or 'no reason known', limit=150)})"
        intent = Intent(row.incident_id, row.transition, row.channel, reason)
        settings = self._engine.settings

        def told_instead(incident: Incident) -> Decision:
            channel = fallback or next(iter(stand_ins(settings, incident, now)), None)
            return escalation.reroute(incident, intent, channel, now) if channel else Decision()

        return self._store.incidents.reroute(row.id, row.incident_id, told_instead, now)

    def _succeed(self) -> list[Decision]:
        """Who stands in for a channel that is gone is told of what that one was told of, or nobody would hear the end of it.

        What it could not be told is handed on by itself.
        """
        now, settings = self._clock.now(), self._engine.settings
        known = frozenset(settings.channels)
        orphans = {
            incident.id: frozenset(incident.told) - known - self._owing(incident.id)
            for incident in self._store.incidents.list(unresolved=True, limit=MOST_INCIDENTS)
            if not known.issuperset(incident.told)
        }

        def told_instead(incident: Incident) -> Decision:
            fresh = [name for name in stand_ins(settings, incident, now) if name not in incident.told]
            decided = Decision()
            for name, channel in zip(sorted(orphans[incident.id]), fresh, strict=False):
                intent = Intent(incident.id, Transition.REMINDED, name, f"channel {name} is no longer configured")
                incident = decided.incidents[-1] if decided.incidents else incident
                decided = escalation.join(decided, escalation.reroute(incident, intent, channel, now))
            return decided

        decided = self._store.incidents.change_each(tuple(orphans), told_instead, now)
        self._succeeded = known
        return [decided]

    def _owing(self, incident_id: str) -> frozenset[str]:
        """Channels that have not told of the incident what they were asked to."""
        rows = self._store.outbox.undelivered(incident_id=incident_id)
        return frozenset(row.channel for row in rows if row.transition.value in OPENERS)

    def _judge(self) -> Decision:
        now = self._clock.now()
        found = tuple(finding for queue in self._store.outbox.queues() if (finding := judge_queue(queue, now)) is not None)
        outcome = Outcome.FOUND if found else Outcome.OK
        result = CheckResult(INSTANCE, "delivery", "monitor", outcome, now, 0.0, Observed(findings=found))
        failing = {dict(finding.labels)["channel"] for finding in found}
        chain = self_chain(self._engine.settings, failing)
        policy = replace(
            self._engine.policy(AlertPolicy(fail_after=1, recover_after=4)),
            chains=dict.fromkeys(Severity, chain),
            muting=self._engine.muting(now),
        )
        return self._store.incidents.decide(INSTANCE, groups_of(result), lambda known: decide(known, result, policy, now), now)


def judge_queue(queue: ChannelQueue, now: datetime) -> Finding | None:
    """Whether a channel fails: it has tried several times over minutes, or gave up on something lately. Pure."""
    waits = now - queue.oldest if queue.oldest is not None else timedelta(0)
    stuck = queue.pending > 0 and queue.attempts >= FAILING_ATTEMPTS and waits >= FAILING_AFTER
    dead = queue.dead > 0 and queue.newest_dead is not None and now - queue.newest_dead < DEAD_SHOWN
    if not stuck and not dead:
        return None
    reason = one_line(queue.last_error or "no reason known", limit=200)
    facts = {"waiting": queue.pending, "given up on": queue.dead, "last error": reason, "what to do": "monitor outbox"}
    return CHANNEL_FAILING(f"channel {queue.channel} does not deliver: {reason}", labels={"channel": queue.channel}, facts=facts)


def stand_ins(settings: Settings, incident: Incident, now: datetime) -> list[str]:
    """Who is told instead of a channel that is gone: what is configured now for the steps the incident has taken, the untold first. Pure.

    Where these reach nobody, the whole chain; and where that does not either, every channel. Empty only when there is none at all.
    """
    chain = settings.escalation[incident.severity]
    for steps in (chain[: max(1, incident.step)], chain):
        reached = [channel for step in steps for channel in settings.people.reach(step, now).channels if channel in settings.channels]
        if reached:
            break
    else:
        reached = list(settings.channels)
    return sorted(dict.fromkeys(reached), key=lambda channel: channel in incident.told)


def self_chain(settings: Settings, failing: set[str]) -> tuple[EscalationStep, ...]:
    """Who hears of a failing channel: the first of P2's that works, else every other one that does. Pure."""
    usual = [channel for step in settings.escalation[Severity.P2] for channel in step.channels]
    usual += [channel for channels in settings.people.contacts.values() for channel in channels]
    working = [channel for channel in usual if channel not in failing]
    chosen = working[:1] or [channel for channel in settings.channels if channel not in failing] or list(settings.channels)
    return (EscalationStep(0, "operations", tuple(chosen)),)
