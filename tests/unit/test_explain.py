"""What is said of an incident: why, who knows, what comes next."""

from datetime import timedelta

from alerts import escalation
from alerts.explain import describe, explain
from alerts.muting import Muting
from alerts.oncall import People
from monitor.domain import AlertPolicy, AlertState, EscalationStep, ResponsePolicy, Transition
from tests.unit.test_muting import CHAIN, MINUTE, T0, alert, incident, silence

OPEN = escalation.climb(
    incident(response=ResponsePolicy(within_s=600, ack_expires_s=3600, remind_s=1800)), T0, Transition.TRIGGERED
).incidents[-1]


def test_an_open_incident_says_who_is_next_and_when() -> None:
    symptom = alert("LoginFails", "data", group="auth/ServiceDown")
    found = explain(OPEN, [symptom, alert()], Muting(), People(), T0 + MINUTE)
    assert found.because[0].startswith("P2 ServiceDown on auth by check/auth, fires since 2026-03-01 12:00:00 UTC")
    assert "a symptom that joined from data/LoginFails" in found.because[1]
    assert found.told == ("step 1, on-call: taken", "these channels hear every change and the end: page")
    assert [(coming.at - T0, coming.what[:7]) for coming in found.coming] == [(10 * MINUTE, "the res"), (15 * MINUTE, "step 2:")]
    assert found.ends == "it ends when check/auth, check/data see health again"


def test_a_taken_one_says_when_the_acknowledgement_ends() -> None:
    acked = escalation.acknowledge(OPEN, "anna", T0 + MINUTE).incidents[-1]
    found = explain(acked, [alert()], Muting(), People(), T0 + 2 * MINUTE)
    assert "escalation stands still: anna has it" in found.told
    assert [(coming.at, "anna ends" in coming.what) for coming in found.coming] == [(T0 + 61 * MINUTE, True)]


def test_a_muted_one_names_the_silence_and_its_end() -> None:
    muting = silence("service=auth", hours=2)
    muted = escalation.mute(incident(), muting.reasons(alert(), T0), T0).incidents[-1]
    found = explain(muted, [alert()], muting, People(), T0)
    assert "by anna: planned" in found.told[0]
    assert [coming.at for coming in found.coming] == [T0 + timedelta(hours=2)]


def test_a_step_that_will_reach_nobody_is_foreseen() -> None:
    chain = (CHAIN[0], EscalationStep(900, "lead", contacts=("gone",)))
    found = explain(OPEN._replace(chain=chain), [alert()], Muting(), People(), T0)
    assert "nobody is on call" in found.coming[-1].what


def test_one_that_is_over_waits_for_nothing() -> None:
    over = escalation.resolve(OPEN, T0 + 5 * MINUTE, "well").incidents[-1]
    ended = alert()._replace(state=AlertState.RESOLVED, resolved_at=T0 + 5 * MINUTE)
    found = explain(over, [ended], Muting(), People(), T0 + 6 * MINUTE)
    assert (found.coming, found.ends) == ((), "it is over since 2026-03-01 12:05:00 UTC")


def test_an_alert_that_tells_nobody_yet_says_how_many_runs_are_missing() -> None:
    pending = alert()._replace(state=AlertState.PENDING, bad_runs=1)
    assert "pending, 1 of 3 bad runs in a row: nobody is told yet" in describe(pending, policy=AlertPolicy(fail_after=3))
