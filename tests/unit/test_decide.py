"""The pure core: what results do to alerts and incidents, by tables and by properties."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.decide import Known, Policy, decide, groups_of, retire
from alerts.escalation import acknowledge, escalate, resolve
from alerts.fingerprint import fingerprint, incident_id
from monitor.domain import (
    Alert,
    AlertPolicy,
    AlertState,
    CheckResult,
    Decision,
    EscalationStep,
    Finding,
    FindingKind,
    Incident,
    IncidentState,
    Intent,
    Observed,
    Outcome,
    Severity,
    Transition,
    pairs,
)

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DOWN = FindingKind("ServiceDown", Severity.P1, "INC-001", "down")
SLOW = FindingKind("ServiceSlow", Severity.P3, "INC-001", "slow")
CHAINS = {
    Severity.P1: (EscalationStep(0, "on-call", ("page",)), EscalationStep(900, "lead", ("lead",))),
    Severity.P2: (EscalationStep(0, "team", ("slack",)), EscalationStep(3600, "on-call", ("page",))),
    Severity.P3: (EscalationStep(0, "queue", ("ticket",)),),
    Severity.P4: (EscalationStep(0, "queue", ("ticket",)),),
}
POLICY = Policy(alert=AlertPolicy(fail_after=2, recover_after=2, blind_after=3), chains=CHAINS)


class World:
    """The smallest store: keeps what was decided, hands out what is known. Also counts what people would have got."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.now = T0
        self.alerts: dict[str, Alert] = {}
        self.incidents: dict[str, Incident] = {}
        self.intents: list[Intent] = []

    def known(self) -> Known:
        live = tuple(alert for alert in self.alerts.values() if alert.state is not AlertState.RESOLVED)
        opened = {i.group: i for i in self.incidents.values() if i.state is not IncidentState.RESOLVED}
        return Known(live, opened)

    def take(self, decided: Decision) -> Decision:
        self.alerts.update({alert.fingerprint: alert for alert in decided.alerts})
        self.incidents.update({incident.id: incident for incident in decided.incidents})
        self.intents += decided.intents
        return decided

    def see(self, outcome: Outcome, *findings: Finding, check: str = "http") -> Decision:
        self.now += timedelta(seconds=15)
        result = CheckResult(
            f"{check}/auth", check, "auth", outcome, self.now, 0.01, Observed(findings=findings), "no" if outcome is Outcome.BLIND else None
        )
        return self.take(decide(self.known(), result, self.policy, self.now))

    def found(self, *kinds: FindingKind, text: str = "x") -> Decision:
        return self.see(Outcome.FOUND, *(kind(text, facts={"seen": text}) for kind in kinds or (DOWN,)))

    def ok(self) -> Decision:
        return self.see(Outcome.OK)

    def blind(self) -> Decision:
        return self.see(Outcome.BLIND)

    def told(self) -> list[tuple[str, str]]:
        return [(intent.transition.value, intent.channel) for intent in self.intents]


def test_an_ok_result_of_a_quiet_check_changes_nothing() -> None:
    assert not World().ok()


def test_one_failure_pends_and_tells_nobody() -> None:
    world = World()
    decided = world.found()
    assert [alert.state for alert in decided.alerts] == [AlertState.PENDING]
    assert world.told() == []


def test_two_failures_page_once_and_two_good_runs_resolve_once() -> None:
    world = World()
    for _ in range(5):
        world.found()
    assert world.told() == [("triggered", "page")]
    world.ok()
    assert world.told() == [("triggered", "page")]
    world.ok()
    world.ok()
    assert world.told() == [("triggered", "page"), ("resolved", "page")]
    assert [incident.state for incident in world.incidents.values()] == [IncidentState.RESOLVED]


def test_a_good_run_between_failures_starts_the_count_again() -> None:
    world = World()
    for _ in range(3):
        world.found()
        world.ok()
    assert world.told() == []


def test_a_firing_alert_that_repeats_writes_nothing() -> None:
    world = World()
    world.found()
    world.found()
    assert not world.found(text="other words, other figures")


def test_blind_runs_neither_raise_nor_clear() -> None:
    world = World()
    world.found()
    world.blind()
    world.blind()
    assert world.told() == []
    world.found()
    assert world.told() == [("triggered", "page")]
    world.ok()
    world.blind()
    world.blind()
    assert ("resolved", "page") not in world.told()


def test_blind_three_times_raises_its_own_alert_and_one_look_twice_clears_it() -> None:
    world = World()
    for _ in range(4):
        world.blind()
    assert world.told() == [("triggered", "slack")]
    (incident,) = world.incidents.values()
    assert (incident.title, incident.severity) == ("CheckBlind", Severity.P2)
    world.found()
    world.found()
    assert ("resolved", "slack") in world.told()
    assert ("triggered", "page") in world.told()


def test_two_symptoms_of_one_code_are_one_incident_and_it_ends_with_the_last() -> None:
    world = World()
    world.found(DOWN, SLOW)
    world.found(DOWN, SLOW)
    assert len(world.incidents) == 1
    assert world.told() == [("triggered", "page")]
    world.found(SLOW)
    world.found(SLOW)
    assert len(world.told()) == 1
    world.ok()
    world.ok()
    assert world.told()[-1] == ("resolved", "page")


def test_a_worse_symptom_raises_the_incident_and_everybody_told_before_hears() -> None:
    world = World()
    world.found(SLOW)
    world.found(SLOW)
    assert world.told() == [("triggered", "ticket")]
    (incident,) = world.incidents.values()
    world.take(acknowledge(incident, "ada", world.now))
    world.found(SLOW, DOWN)
    world.found(SLOW, DOWN)
    assert world.told()[-2:] == [("raised", "page"), ("raised", "ticket")]
    (incident,) = world.incidents.values()
    assert (incident.severity, incident.state, incident.acked_by) == (Severity.P1, IncidentState.OPEN, None)
    world.found(SLOW)  # the worse symptom goes: the incident does not fall
    world.found(SLOW)
    assert next(iter(world.incidents.values())).severity is Severity.P1


def test_escalation_goes_on_until_somebody_acknowledges() -> None:
    world = World()
    world.found()
    world.found()
    (incident,) = world.incidents.values()
    assert incident.next_escalation_at == incident.opened_at + timedelta(minutes=15)
    assert not escalate(incident, incident.opened_at + timedelta(minutes=14, seconds=59))
    later = escalate(incident, incident.opened_at + timedelta(minutes=15))
    assert [(i.transition, i.channel) for i in later.intents] == [(Transition.ESCALATED, "lead")]
    assert later.incidents[0].next_escalation_at is None
    acked = acknowledge(later.incidents[0], "ada", world.now)
    assert [(i.transition, i.channel) for i in acked.intents] == [(Transition.ACKED, "page"), (Transition.ACKED, "lead")]
    assert not acknowledge(acked.incidents[0], "bob", world.now)
    assert not escalate(acked.incidents[0]._replace(next_escalation_at=T0), world.now)
    ended = resolve(acked.incidents[0], world.now, "good again")
    assert {i.channel for i in ended.intents} == {"page", "lead"}
    assert not resolve(ended.incidents[0], world.now, "again")


def test_a_removed_check_ends_its_alerts_and_its_incident() -> None:
    world = World()
    world.found()
    world.found()
    world.take(retire(world.known(), "http/auth", POLICY, world.now))
    assert world.told() == [("triggered", "page"), ("resolved", "page")]


def test_groups_of_a_blind_result_is_its_own_group() -> None:
    result = CheckResult("a/b", "a", "b", Outcome.BLIND, T0, 0.1, error="x")
    assert groups_of(result) == {"b/CheckBlind"}


# --- properties ------------------------------------------------------------------------------------------------------

moves = st.lists(st.sampled_from(["ok", "down", "slow", "both", "blind", "ack", "wait"]), max_size=40)
policies = st.builds(AlertPolicy, fail_after=st.integers(1, 4), recover_after=st.integers(1, 4), blind_after=st.integers(1, 4))


@given(moves, policies)
def test_any_interleaving_keeps_the_promises(script: list[str], alert_policy: AlertPolicy) -> None:
    world = World(replace(POLICY, alert=alert_policy))
    for move in script:
        _play(world, move)
        _check_promises(world)
    for _ in range(8):
        world.ok()
    _check_promises(world)
    assert all(incident.state is IncidentState.RESOLVED for incident in world.incidents.values())
    assert all(alert.state is AlertState.RESOLVED for alert in world.alerts.values())


def _play(world: World, move: str) -> None:
    kinds: Mapping[str, tuple[FindingKind, ...]] = {"down": (DOWN,), "slow": (SLOW,), "both": (DOWN, SLOW)}
    if move in kinds:
        world.found(*kinds[move], text=str(world.now))
    elif move == "ok":
        world.ok()
    elif move == "blind":
        world.blind()
    elif move == "wait":
        world.now += timedelta(minutes=20)
        for incident in list(world.incidents.values()):
            world.take(escalate(incident, world.now))
    else:
        for incident in list(world.incidents.values()):
            world.take(acknowledge(incident, "ada", world.now))


def _check_promises(world: World) -> None:
    """No resolve without a trigger; nothing after the resolve; every opened incident told somebody; every told channel hears the end."""
    for incident in world.incidents.values():
        by_channel: dict[str, list[Transition]] = {}
        for intent in world.intents:
            if intent.incident_id == incident.id:
                by_channel.setdefault(intent.channel, []).append(intent.transition)
        assert by_channel
        assert set(by_channel) == set(incident.told)
        for transitions in by_channel.values():
            assert transitions[0] in {Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED}
            assert transitions.count(Transition.TRIGGERED) <= 1
            assert Transition.RESOLVED not in transitions[:-1]
            assert (transitions[-1] is Transition.RESOLVED) == (incident.state is IncidentState.RESOLVED)
    opened = [incident.group for incident in world.incidents.values() if incident.state is not IncidentState.RESOLVED]
    assert len(opened) == len(set(opened))


texts = st.text(max_size=30)
labels = st.dictionaries(texts, texts, max_size=5)


@given(labels, texts, texts, texts)
def test_a_fingerprint_never_depends_on_text(own: dict[str, str], one: str, other: str, value: str) -> None:
    prints = []
    for text in (one, other):
        world = World()
        world.see(Outcome.FOUND, DOWN(text, labels=own, facts={"value": text + value}, severity=Severity(1 + len(text) % 4)))
        prints.append(set(world.alerts))
    assert prints[0] == prints[1]


@given(labels)
def test_a_fingerprint_does_not_depend_on_the_order_of_labels(own: dict[str, str]) -> None:
    assert fingerprint(pairs(own)) == fingerprint(tuple(reversed(pairs(own))))


@pytest.mark.parametrize(("one", "other"), [({"a": "b"}, {"a": "c"}), ({"a": "bc"}, {"ab": "c"}), ({"a": "b"}, {"a": "b", "c": "d"})])
def test_different_labels_differ(one: dict[str, str], other: dict[str, str]) -> None:
    assert fingerprint(pairs(one)) != fingerprint(pairs(other))


def test_fingerprint_is_alertmanagers() -> None:
    """FNV-1a 64 of nothing is its offset basis; the real Alertmanager is asked in an integration test."""
    assert fingerprint(()) == "cbf29ce484222325"


def test_an_incident_id_is_made_of_group_and_time_only() -> None:
    assert incident_id("auth/INC-001", T0) == incident_id("auth/INC-001", T0)
    assert incident_id("auth/INC-001", T0) != incident_id("auth/INC-001", T0 + timedelta(microseconds=1))
    assert len(incident_id("x", T0)) == 12
