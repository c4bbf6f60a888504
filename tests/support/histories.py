"""Short histories written by the real engine on a clock of ours, and their replay from the real state."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from alerts.posted import PostedAlert
from alerts.silences import make
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import Finding, FindingKind, Observed, Outcome, Severity
from monitor.engine import Engine, acknowledge
from monitor.errors import CannotLook
from monitor.intake import Intake
from monitor.plugins import CheckContext
from monitor.runner import Runner
from monitor.simulation import Line, Replay, Replayed, compare, past_of
from monitor.store import Recorded, Store, StoreThread
from tests.support.looking import with_parts
from tests.support.world import ManualClock, instance

DOWN = FindingKind("ServiceDown", Severity.P1, "INC-001", "down", fells=True)
SLOW = FindingKind("ServiceSlow", Severity.P3, "INC-001", "slow")
FULL = FindingKind("DiskFull", Severity.P2, None, "full")
KINDS = (DOWN, SLOW, FULL)
BEAT, BEAT_EVERY = "beat/own", timedelta(seconds=45)
"""A check that always runs, as there is one in every monitor."""


@dataclass
class Subject:
    """What a check sees next."""

    findings: tuple[Finding, ...] = ()
    blind: bool = False

    async def look(self, _: CheckContext) -> Observed:
        if self.blind:
            raise CannotLook("the way is closed")
        return Observed(findings=self.findings)


def check(name: str, service: str, subject: Subject, **changes: object) -> CheckInstance:
    made = instance(subject.look, name=name, service=service, every_s=15.0)
    return replace(made, check=replace(made.check, finds=KINDS), upstream=frozenset({service}), **changes)  # type: ignore[arg-type]


@dataclass
class History:
    """A monitor without delivery: checks run, and its rounds go, when the test says."""

    settings: Settings
    subjects: Mapping[str, Subject]
    clock: ManualClock = field(default_factory=ManualClock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["History"]:
        self.store, self.thread = Store(self.settings.state_url), StoreThread()
        context = lambda inst, _: with_parts(inst.service, clock=self.clock)  # noqa: E731
        self.engine = Engine(
            self.settings, store=self.store, thread=self.thread, runner=Runner(self.clock, context), clock=self.clock, guides={},
            on_result=lambda _: None, wake_delivery=lambda: None,
        )  # fmt: skip
        self.intake = Intake(self.engine, store=self.store, thread=self.thread, clock=self.clock, guides={})
        await self.engine.start()
        await self._beat()
        await self.engine.round()
        posting = asyncio.create_task(self.intake.serve())
        try:
            yield self
        finally:
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            self.clock.advance(0.01)
            await self._beat()
            await self.engine.flush(whole=True)
            self.thread.close()
            self.store.close()

    async def look(self, key: str, outcome: Outcome, *findings: Finding) -> None:
        """One run of a check that sees this, and a round after it."""
        self.clock.advance(0.01)  # no two runs end at the same moment
        self.subjects[key].findings, self.subjects[key].blind = findings, outcome is Outcome.BLIND
        await self.engine.run(next(one for one in self.settings.instances if one.key == key))
        await self.engine.round()

    async def wait(self, seconds: float) -> None:
        """Let time pass; a round goes whenever time alone changes something, as if it went all the time, and something is looked at."""
        end = self.clock.now() + timedelta(seconds=seconds)
        while (now := self.clock.now()) < end:
            soonest = min(at for at in (*self._edges(), now + BEAT_EVERY, end) if at > now)
            self.clock.advance((soonest - now).total_seconds())
            await self._beat()
            await self.engine.round()

    async def _beat(self) -> None:
        await self.engine.run(next(one for one in self.settings.instances if one.key == BEAT))

    def _edges(self) -> list[datetime]:
        now = self.clock.now()
        found = [one.wake_at for one in self.store.incidents.list(unresolved=True) if one.wake_at is not None]
        found += [at for silence in self.store.silences.list() for at in (silence.starts_at, silence.ends_at)]
        for window in self.settings.windows:
            found += [at for opening in window.openings(now, now + timedelta(days=2)) for at in opening]
        return found

    async def take(self, who: str = "anna") -> None:
        """Somebody acknowledges the worst open incident."""
        self.clock.advance(0.01)
        for incident in self.store.incidents.list(unresolved=True)[:1]:
            acknowledge(self.store, incident.id, who, self.clock)
        await self.engine.round()

    async def silence(self, matcher: str, minutes: float) -> None:
        self.clock.advance(0.01)
        now = self.clock.now()
        self.store.silences.save(make([matcher], now, now + timedelta(minutes=minutes), "anna", "planned", now))
        await self.engine.round()

    async def post(self, *posted: PostedAlert) -> None:
        self.clock.advance(0.01)
        said = [{"labels": one.labels, "annotations": one.annotations, "startsAt": one.starts_at, "endsAt": one.ends_at} for one in posted]
        await self.intake.post(json.dumps(said, default=datetime.isoformat).encode())
        await self.engine.round()

    def simulate(self, settings: Settings | None = None, *, unacknowledged: bool = False) -> tuple[tuple[Line, ...], Replayed]:
        """Replay the state, as it is on disk, with these settings or with those that wrote it."""
        recorded = Recorded(self.settings.state_url)
        try:
            past = past_of(recorded, self.clock.now())
        finally:
            recorded.close()
        replayed = Replay(past, settings or self.settings, {}, unacknowledged=unacknowledged).run()
        return compare(past, replayed, past.begin), replayed
