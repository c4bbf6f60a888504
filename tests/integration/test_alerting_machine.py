"""Engine and store beside a small model: faults, blindness, people, silences, windows, foreign alerts, reloads, restarts in any order.

The model knows when a finding fires and stops, and nothing else; what was promised about people is read from the outbox.
"""

import asyncio
import json
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import create_engine, select

from alerts.flapping import is_flapping
from alerts.matchers import parse_matcher
from alerts.muting import Window
from alerts.silences import expire, make
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import (
    AlertPolicy,
    EscalationStep,
    FindingKind,
    IncidentState,
    Observed,
    Outcome,
    Receipt,
    ResponsePolicy,
    Severity,
    Transition,
)
from monitor.engine import Engine, acknowledge
from monitor.errors import CannotLook
from monitor.intake import Intake
from monitor.plugins import Check, CheckContext, PluginConfig, Service
from monitor.runner import Runner
from monitor.store import Store, StoreThread
from monitor.store.claims import Claimant, Voice
from monitor.store.schema import outbox
from tests.support.looking import with_parts
from tests.support.world import ManualClock, settings

SERVICES = ("auth", "data", "mail")
"""``data`` depends on ``auth``; ``mail`` stands alone."""
KINDS = (
    FindingKind("ServiceDown", Severity.P1, "INC-001", "down", fells=True),
    FindingKind("ServiceSlow", Severity.P3, "INC-001", "slow"),
    FindingKind("DiskFull", Severity.P2, None, "full"),
)
GROUPS = {kind.name: kind.incident or kind.name for kind in KINDS} | {"CheckBlind": "CheckBlind"}
AFTER = 2
"""Runs that confirm anything."""
RESOLVE_AFTER = timedelta(minutes=5)
CHAIN = (EscalationStep(0, "first", ("page",)), EscalationStep(900, "second", ("lead",)), EscalationStep(1800, "third", ("boss",)))
OTHER_CHAIN = (EscalationStep(60, "first", ("mail",)), EscalationStep(1200, "second", ("lead",)))
OPENERS = {Transition.TRIGGERED.value, Transition.ESCALATED.value, Transition.RAISED.value, Transition.REMINDED.value}
ROOT = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass
class Model:
    """When something fires: by service and alert name its bad and good runs in a row; foreign alerts by their end."""

    runs: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    firing: set[tuple[str, str]] = field(default_factory=set)
    results: dict[str, list[set[str]]] = field(default_factory=lambda: defaultdict(list))
    """By service, what each look found that was none in the dark."""
    flapping: set[tuple[str, str]] = field(default_factory=set)
    foreign: dict[str, datetime] = field(default_factory=dict)

    def look(self, service: str, outcome: Outcome, names: set[str]) -> None:
        if outcome is not Outcome.BLIND:
            self.results[service] = [*self.results[service][-20:], names]
            every = {(service, kind.name) for kind in KINDS}
            swings = {key for key in every if is_flapping([key[1] in found for found in self.results[service]], key in self.flapping)}
            self.flapping = self.flapping - every | swings
        seen = {"CheckBlind"} if outcome is Outcome.BLIND else names
        for name in seen:
            bad = self.runs.setdefault((service, name), [0, 0])
            bad[:] = [bad[0] + 1, 0]
            if bad[0] >= (1 if (service, name) in self.flapping else AFTER):
                self.firing.add((service, name))
        for key in [key for key in self.runs if key[0] == service and key[1] not in seen and outcome is not Outcome.BLIND]:
            self.runs[key][1] += 1
            if key not in self.firing or (self.runs[key][1] >= AFTER and key not in self.flapping):
                del self.runs[key]
                self.firing.discard(key)

    def forget(self, service: str) -> None:
        self.runs = {key: runs for key, runs in self.runs.items() if key[0] != service}
        self.firing = {key for key in self.firing if key[0] != service}
        self.results.pop(service, None)
        self.flapping = {key for key in self.flapping if key[0] != service}

    def groups(self, now: datetime) -> set[str]:
        """What has an incident; without ``data``, whose findings may join those of ``auth``."""
        own = {f"{service}/{GROUPS[name]}" for service, name in self.firing if service != "data"}
        return own | {f"{name}/Foreign" for name, ends_at in self.foreign.items() if ends_at > now}


class Alerting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="monitor-", dir=ROOT))
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock(datetime.fromisoformat("2026-10-24T22:00:00+00:00"))  # the night on which Berlin's clocks go back
        self.found: dict[str, tuple[Outcome, set[str]]] = {service: (Outcome.OK, set()) for service in SERVICES}
        self.model = Model()
        self.instances = {service: self._instance(service) for service in SERVICES}
        self.chosen = self._configured(settings(self.folder, *self.instances.values()), CHAIN)
        self.row = 0
        self._start()
        self.reader = create_engine(self.chosen.state_url)

    def teardown(self) -> None:
        self._stop()
        self.reader.dispose()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _instance(self, service: str) -> CheckInstance:
        async def run(_: CheckContext, __: PluginConfig) -> Observed:
            outcome, names = self.found[service]
            if outcome is Outcome.BLIND:
                raise CannotLook("no")
            return Observed(findings=tuple(kind(f"{kind.name} seen") for kind in KINDS if kind.name in names))

        check = Check(name="look", help="", config=PluginConfig, metrics=(), finds=KINDS, needs=(), run=run, blind="")
        return CheckInstance(
            key=f"look/{service}",
            name="look",
            check=check,
            service=Service(name=service),
            config=PluginConfig(),
            every_s=15,
            timeout_s=5,
            recheck_s=1,
            policy=AlertPolicy(fail_after=AFTER, recover_after=AFTER, blind_after=AFTER),
            upstream=frozenset({service, "auth"} if service == "data" else {service}),
        )

    @staticmethod
    def _configured(chosen: Settings, chain: tuple[EscalationStep, ...]) -> Settings:
        responses = {Severity.P1: ResponsePolicy(within_s=600, ack_expires_s=3600, remind_s=1800), Severity.P2: ResponsePolicy(600)}
        return replace(chosen, escalation=dict.fromkeys(Severity, chain), responses=responses)

    def _start(self) -> None:
        self.store, self.thread = Store(self.chosen.state_url), StoreThread()
        self.engine = Engine(
            self.chosen,
            store=self.store,
            thread=self.thread,
            runner=Runner(self.clock, lambda found, _: with_parts(found.service, clock=self.clock)),
            clock=self.clock,
            guides={},
            on_result=lambda _: None,
            wake_delivery=lambda: None,
        )
        self.intake = Intake(self.engine, store=self.store, thread=self.thread, clock=self.clock, guides={})
        self.loop.run_until_complete(self.engine.start())

    def _stop(self) -> None:
        self.loop.run_until_complete(self.engine.flush(whole=True))
        self.thread.close()
        self.store.close()

    def _look(self, service: str, outcome: Outcome, names: set[str]) -> None:
        if self.instances[service] not in self.chosen.instances:
            return
        self.clock.advance(1)
        self.found[service] = (outcome, names)
        self.model.look(service, outcome, names)
        self.loop.run_until_complete(self.engine.run(self.instances[service]))
        self._told()

    def _round(self) -> None:
        self.loop.run_until_complete(self.engine.round())
        self._told()

    def _reload(self, chosen: Settings) -> None:
        self.chosen = chosen
        self.engine.reconfigure(chosen)
        self._round()

    def _told(self) -> None:
        """What was queued by one step: nobody is asked about what is muted, taken or over."""
        incidents = {one.id: one for one in self.store.incidents.list(unresolved=False, since=self.clock.now() - timedelta(days=9))}
        for row in self._rows(self.row):
            self.row = row["id"]
            if row["transition"] in OPENERS:
                incident = incidents[row["incident_id"]]
                assert not incident.muted, "nobody is told while it is muted"
                assert incident.state is IncidentState.OPEN, "nobody is asked about what is taken or over"

    def _rows(self, after: int = 0) -> list[dict[str, object]]:
        columns = (outbox.c.id, outbox.c.incident_id, outbox.c.channel, outbox.c.transition, outbox.c.state)
        with self.reader.connect() as connection:
            return [dict(row) for row in connection.execute(select(*columns).where(outbox.c.id > after).order_by(outbox.c.id)).mappings()]

    # --- what may happen ---------------------------------------------------------------------------------------------

    @rule(service=st.sampled_from(SERVICES), kinds=st.sets(st.sampled_from(KINDS), min_size=1), runs=st.integers(1, 3))
    def fail(self, service: str, kinds: set[FindingKind], runs: int) -> None:
        for _ in range(runs):
            self._look(service, Outcome.FOUND, {kind.name for kind in kinds})

    @rule(service=st.sampled_from(SERVICES), runs=st.integers(1, 3))
    def be_well(self, service: str, runs: int) -> None:
        for _ in range(runs):
            self._look(service, Outcome.OK, set())

    @rule(service=st.sampled_from(SERVICES), runs=st.integers(1, 3))
    def be_blind(self, service: str, runs: int) -> None:
        before = {alert.fingerprint for alert in self.store.incidents.firing()}
        for _ in range(runs):
            self._look(service, Outcome.BLIND, set())
        assert before <= {alert.fingerprint for alert in self.store.incidents.firing()}, "who cannot look clears nothing"

    @rule(seconds=st.sampled_from([1, 60, 601, 901, 1801, 3601]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self._round()

    @rule(chain=st.sampled_from([CHAIN, OTHER_CHAIN]))
    def other_chain(self, chain: tuple[EscalationStep, ...]) -> None:
        self._reload(self._configured(self.chosen, chain))

    @rule(service=st.sampled_from(SERVICES))
    def be_removed_or_added(self, service: str) -> None:
        there = self.instances[service] in self.chosen.instances
        kept = tuple(one for one in self.chosen.instances if one is not self.instances[service])
        if there:
            self.model.forget(service)
        self._reload(replace(self.chosen, instances=kept if there else (*kept, self.instances[service])))

    @rule(service=st.sampled_from(SERVICES), minutes=st.sampled_from([0, 1, 30]))
    def plan_work(self, service: str, minutes: int) -> None:
        begin = self.clock.now()
        window = Window("work", (parse_matcher(f"service={service}"),), begin, begin + timedelta(minutes=minutes))
        self._reload(replace(self.chosen, windows=(window,) if minutes else ()))

    @rule()
    def restart(self) -> None:
        self._stop()
        self._start()
        self._told()

    @rule(name=st.sampled_from(["cron", "disk"]), lasts_s=st.sampled_from([0, 120]))
    def post(self, name: str, lasts_s: int) -> None:
        """A sender names the end, or says nothing about it."""
        now = self.clock.now()
        ends_at = now + timedelta(seconds=lasts_s) if lasts_s else None
        said = {"endsAt": ends_at.isoformat()} if ends_at else {}
        sent = {"labels": {"alertname": "Foreign", "service": name}, **said}
        self.loop.run_until_complete(self._post(json.dumps([sent]).encode()))
        self.model.foreign[name] = ends_at or now + RESOLVE_AFTER
        self._told()

    async def _post(self, body: bytes) -> None:
        serving = asyncio.create_task(self.intake.serve())
        await self.intake.post(body)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    @precondition(lambda self: self.store.incidents.list(unresolved=True))
    @rule(number=st.integers(0, 20))
    def take(self, number: int) -> None:
        opened = self.store.incidents.list(unresolved=True)
        acknowledge(self.store, opened[number % len(opened)].id, "anna", self.clock)
        self._told()

    @rule(matcher=st.sampled_from(["service=auth", "service=~.+", "severity=P1", "alertname=DiskFull"]), minutes=st.sampled_from([1, 30]))
    def silence(self, matcher: str, minutes: int) -> None:
        now = self.clock.now()
        self.store.silences.save(make([matcher], now, now + timedelta(minutes=minutes), "anna", "why", now))
        self._round()

    @rule()
    def end_silences(self) -> None:
        now = self.clock.now()
        self.store.silences.save(*(expire(silence, now) for silence in self.store.silences.list(since=now)))
        self._round()

    @rule()
    def deliver(self) -> None:
        """Everything that waits arrives."""
        who = Claimant("machine", self.clock.now(), 60, "http://monitor.test")
        while claimed := self.store.outbox.claim(who, {}, Voice(100)):
            for sending in claimed.sends:
                assert self.store.outbox.sent(sending, "machine", Receipt("there"), self.clock.now())

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def what_fires_has_an_incident_as_the_model_says(self) -> None:
        self.loop.run_until_complete(self.intake.lapse_due())
        opened = self.store.incidents.list(unresolved=True)
        firing = self.store.incidents.firing()
        assert {alert.group for alert in firing} == {one.group for one in opened}
        assert len({one.group for one in opened}) == len(opened)
        assert {one.group for one in opened if not one.group.startswith("data/")} == self.model.groups(self.clock.now())
        for one in opened:
            own = [alert.severity for alert in firing if alert.group == one.group and alert.home == one.group]
            assert not own or one.severity <= min(own)

    @invariant()
    def whoever_heard_of_it_hears_its_end_once_and_nothing_after(self) -> None:
        said: dict[tuple[object, object], list[object]] = defaultdict(list)
        for row in self._rows():
            if row["state"] != "superseded":
                said[row["incident_id"], row["channel"]].append(row["transition"])
        over = {
            one.id
            for one in self.store.incidents.list(unresolved=False, since=self.clock.now() - timedelta(days=99))
            if one.state is IncidentState.RESOLVED
        }
        for (incident_id, _), transitions in said.items():
            assert transitions[0] in OPENERS, transitions
            assert transitions.count("resolved") == int(incident_id in over), transitions
            assert transitions[-1] == "resolved" or "resolved" not in transitions, transitions

    @invariant()
    def nobody_is_forgotten(self) -> None:
        asked = {row["incident_id"] for row in self._rows()}
        for one in self.store.incidents.list(unresolved=True):
            if one.state is IncidentState.OPEN and not one.muted:
                assert one.id in asked or one.next_escalation_at is not None


TestAlerting = Alerting.TestCase
TestAlerting.settings = effort(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
