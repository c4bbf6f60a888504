"""Anything in any order: faults, blindness, acknowledgements, silences, time, restarts, reloads. What was promised holds throughout.

The machine drives the pure decisions as the engine does, over the smallest store; the model beside it knows only what people were told.
"""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alerts import escalation
from alerts.decide import Known, Policy, decide, retire, settle
from alerts.muting import Muting
from alerts.silences import expire, make
from monitor.domain import (
    Alert,
    AlertPolicy,
    AlertState,
    CheckResult,
    Decision,
    EscalationStep,
    FindingKind,
    Incident,
    IncidentState,
    Observed,
    Outcome,
    ResponsePolicy,
    Severity,
    Silence,
    Transition,
)

T0 = datetime(2026, 10, 24, 20, 0, tzinfo=UTC)  # over the night on which Berlin's clocks go back
SERVICES = ("auth", "data")
KINDS = (
    FindingKind("ServiceDown", Severity.P1, "INC-001", "down"),
    FindingKind("ServiceSlow", Severity.P3, "INC-001", "slow"),
    FindingKind("DiskFull", Severity.P2, None, "full"),
)
CHAINS = {
    severity: (EscalationStep(0, "first", ("page",)), EscalationStep(900, "second", ("lead",)), EscalationStep(1800, "third", ("boss",)))
    for severity in Severity
}
MATCHERS = ("service=auth", "service=~.+", "severity=P1", "alertname=DiskFull")
ASKED_ANEW = (IncidentState.ACKED, IncidentState.OPEN)
OPENERS = frozenset({Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED, Transition.REMINDED})


class Alerting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.alerts: dict[str, Alert] = {}
        self.incidents: dict[str, Incident] = {}
        self.silences: list[Silence] = []
        self.told: dict[tuple[str, str], list[Transition]] = defaultdict(list)
        self.unanswered_s: dict[str, int] = {}
        """By incident: for how long at least people have been asked about it, since they were asked anew."""
        self.policy = Policy(
            alert=AlertPolicy(fail_after=2, recover_after=2, blind_after=2),
            chains=CHAINS,
            responses={Severity.P1: ResponsePolicy(within_s=600, ack_expires_s=3600, remind_s=1800), Severity.P2: ResponsePolicy(600)},
        )

    # --- the smallest store ------------------------------------------------------------------------------------------

    def _keep(self, decided: Decision) -> None:
        was_muted = {one.id for one in self.incidents.values() if one.muted}
        for incident in decided.incidents:
            known = self.incidents.get(incident.id)
            assert known is None or known.state is not IncidentState.RESOLVED, "what is over changes no more"
            if known is None or incident.severity < known.severity or (known.state, incident.state) == ASKED_ANEW:
                self.unanswered_s[incident.id] = 0
            self.incidents[incident.id] = incident
        self.alerts |= {alert.fingerprint: alert for alert in decided.alerts}
        for intent in decided.intents:
            incident = self.incidents[intent.incident_id]
            said = self.told[intent.incident_id, intent.channel]
            if intent.transition in OPENERS:
                assert not incident.muted, "nobody is told while it is muted"
                assert incident.state is IncidentState.OPEN, "nobody is asked about what is taken or over"
                assert not (incident.id in was_muted and intent.transition is Transition.ESCALATED and incident.step == 0)
            assert Transition.RESOLVED not in said, "nothing comes after the end"
            if intent.transition not in OPENERS:
                assert said, "only who heard of the beginning hears the rest"
            said.append(intent.transition)

    def _known(self, service: str) -> Known:
        live = tuple(alert for alert in self.alerts.values() if alert.state is not AlertState.RESOLVED)
        opened = {one.group: one for one in self.incidents.values() if one.state is not IncidentState.RESOLVED}
        return Known(tuple(alert for alert in live if alert.service == service), opened)

    def _policy(self) -> Policy:
        return replace(self.policy, muting=Muting(silences=tuple(self.silences)))

    def _look(self, service: str, outcome: Outcome, kinds: tuple[FindingKind, ...] = ()) -> None:
        self.now += timedelta(seconds=1)
        observed = Observed(findings=tuple(kind(f"{kind.name} seen") for kind in kinds))
        error = "no" if outcome is Outcome.BLIND else None
        result = CheckResult(f"look/{service}", "look", service, outcome, self.now, 0.1, observed, error)
        self._keep(decide(self._known(service), result, self._policy(), self.now))

    # --- what may happen ---------------------------------------------------------------------------------------------

    @rule(service=st.sampled_from(SERVICES), kinds=st.sets(st.sampled_from(KINDS), min_size=1), runs=st.integers(1, 3))
    def fail(self, service: str, kinds: set[FindingKind], runs: int) -> None:
        for _ in range(runs):
            self._look(service, Outcome.FOUND, tuple(sorted(kinds, key=lambda kind: kind.name)))

    @rule(service=st.sampled_from(SERVICES), runs=st.integers(1, 3))
    def be_well(self, service: str, runs: int) -> None:
        for _ in range(runs):
            self._look(service, Outcome.OK)

    @rule(service=st.sampled_from(SERVICES), runs=st.integers(1, 3))
    def be_blind(self, service: str, runs: int) -> None:
        firing = {alert.fingerprint for alert in self.alerts.values() if alert.state is AlertState.FIRING}
        for _ in range(runs):
            self._look(service, Outcome.BLIND)
        still = {alert.fingerprint for alert in self.alerts.values() if alert.state is AlertState.FIRING}
        assert firing <= still, "who cannot look clears nothing"

    @rule(seconds=st.sampled_from([1, 60, 601, 901, 1801, 3601, 6 * 3600]))
    def wait(self, seconds: int) -> None:
        for incident in self.incidents.values():
            if incident.state is IncidentState.OPEN and not incident.muted:
                self.unanswered_s[incident.id] += seconds
        self.now += timedelta(seconds=seconds)
        self.tick()

    @rule(data=st.data())
    def swing(self, data: st.DataObject) -> None:
        """From now on some of the alerts flap."""
        self.policy = replace(
            self.policy, flapping=frozenset(data.draw(st.sets(st.sampled_from(sorted(self.alerts)))) if self.alerts else ())
        )

    @rule(first_s=st.sampled_from([0.0, 60.0]), channel=st.sampled_from(["page", "mail"]))
    def reload(self, first_s: float, channel: str) -> None:
        """Another chain for what comes; what is open keeps its own."""
        chain = (EscalationStep(first_s, "first", (channel,)), EscalationStep(1200, "second", ("lead",)))
        self.policy = replace(self.policy, chains=dict.fromkeys(Severity, chain))

    @rule(service=st.sampled_from(SERVICES))
    def be_removed(self, service: str) -> None:
        self._keep(retire(self._known(service), f"look/{service}", self._policy(), self.now))

    @precondition(lambda self: self.incidents)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        incident = data.draw(st.sampled_from(sorted(self.incidents.values(), key=lambda one: one.id)))
        self._keep(escalation.acknowledge(incident, "anna", self.now))

    @rule(
        matcher=st.sampled_from(["service=auth", "service=~.+", "severity=P1", "alertname=DiskFull"]), minutes=st.sampled_from([1, 30, 600])
    )
    def silence(self, matcher: str, minutes: int) -> None:
        self.silences.append(make([matcher], self.now, self.now + timedelta(minutes=minutes), "anna", "why", self.now))
        self.tick()

    @precondition(lambda self: self.silences)
    @rule()
    def end_silences(self) -> None:
        self.silences = [expire(silence, self.now) for silence in self.silences]
        self.tick()

    @rule()
    def tick(self) -> None:
        """What the engine does every second."""
        for incident in list(self.incidents.values()):
            firing = [one for one in self.alerts.values() if one.group == incident.group and one.state is AlertState.FIRING]
            if incident.state is not IncidentState.RESOLVED:
                self._keep(settle(incident, firing, self._policy(), self.now))
                self._keep(escalation.escalate(self.incidents[incident.id], self.now))

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def one_open_incident_a_group(self) -> None:
        groups = [one.group for one in self.incidents.values() if one.state is not IncidentState.RESOLVED]
        assert len(groups) == len(set(groups))

    @invariant()
    def an_incident_is_open_exactly_while_something_of_it_fires(self) -> None:
        firing = {alert.group for alert in self.alerts.values() if alert.state is AlertState.FIRING}
        assert firing == {one.group for one in self.incidents.values() if one.state is not IncidentState.RESOLVED}

    @invariant()
    def whoever_was_told_of_what_is_over_heard_its_end_once(self) -> None:
        for (incident_id, channel), said in self.told.items():
            over = self.incidents[incident_id].state is IncidentState.RESOLVED
            assert said.count(Transition.RESOLVED) == int(over), (incident_id, channel, said)
            assert said[0] in OPENERS

    @invariant()
    def an_incident_is_as_bad_as_its_worst_has_been(self) -> None:
        for incident in self.incidents.values():
            if incident.state is not IncidentState.RESOLVED:
                worst = min(one.severity for one in self.alerts.values() if one.group == incident.group and one.state is AlertState.FIRING)
                assert incident.severity <= worst

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Open and not muted means: somebody was told, or a step is yet to come."""
        for incident in self.incidents.values():
            if incident.state is IncidentState.OPEN and not incident.muted:
                asked = any(said for (known, _), said in self.told.items() if known == incident.id)
                assert asked or incident.next_escalation_at is not None

    @invariant()
    def the_ladder_is_climbed_to_its_end(self) -> None:
        """Open and not muted means: every step whose time has passed was taken, and the next one is due some time."""
        for incident in self.incidents.values():
            if incident.state is IncidentState.OPEN and not incident.muted:
                due = [step for step in incident.chain if step.after_s <= self.unanswered_s[incident.id]]
                assert incident.step >= len(due)
                assert {channel for step in due for channel in step.channels} <= set(incident.told)
                assert (incident.next_escalation_at is None) == (incident.step == len(incident.chain))


TestAlerting = Alerting.TestCase
TestAlerting.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
