"""The monitor looks at its own delivery: a channel that fails is told of over another one, and hands its notifications on."""

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
    Intent,
    Observed,
    Outcome,
    Severity,
)
from monitor.engine import Engine
from monitor.plugins import one_line
from monitor.store import ChannelQueue, Store, StoreThread
from monitor.store.outbox import Undelivered

INSTANCE = "delivery/monitor"
LOOK_EVERY_S = 15.0
FAILING_AFTER = timedelta(minutes=2)
FAILING_ATTEMPTS = 3
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

    async def look(self) -> None:
        """Hand on what is stuck, and find or clear ``ChannelFailing``; at most every 15 seconds."""
        if self._clock.monotonic() < self._next:
            return
        self._next = self._clock.monotonic() + LOOK_EVERY_S
        for decided in await self._thread(self._hand_on):
            self._engine.announce(decided)
        self._engine.announce(await self._thread(self._judge))

    def _hand_on(self) -> list[Decision]:
        now, settings = self._clock.now(), self._engine.settings
        decided = []
        for channel in settings.channels.values():
            if channel.fallback is None:
                continue
            for row in self._store.outbox.to_reroute(channel.name, now - timedelta(seconds=channel.fallback_after_s)):
                decided.append(self._reroute(row, channel.fallback, now))
        return decided

    def _reroute(self, row: Undelivered, fallback: str, now: datetime) -> Decision:
        reason = f"{row.channel} could not deliver ({one_line(row.last_error or 'no reason known', limit=150)})"
        intent = Intent(row.incident_id, row.transition, row.channel, reason)
        return self._store.incidents.reroute(
            row.id, row.incident_id, lambda incident: escalation.reroute(incident, intent, fallback, now), now
        )

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


def self_chain(settings: Settings, failing: set[str]) -> tuple[EscalationStep, ...]:
    """Who hears of a failing channel: the first of P2's that works, else every other one that does. Pure."""
    usual = [channel for step in settings.escalation[Severity.P2] for channel in step.channels]
    usual += [channel for channels in settings.people.contacts.values() for channel in channels]
    working = [channel for channel in usual if channel not in failing]
    chosen = working[:1] or [channel for channel in settings.channels if channel not in failing] or list(settings.channels)
    return (EscalationStep(0, "operations", tuple(chosen)),)
