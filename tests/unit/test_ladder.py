"""The ladder of an incident: steps that wait for business hours, and a response time that is promised anew with each asking."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from alerts.escalation import acknowledge, climb, escalate, raise_
from alerts.oncall import People, Rotation
from alerts.severity import BusinessHours
from monitor.domain import EscalationStep, Incident, ResponsePolicy, Severity, Transition
from tests.unit.test_muting import incident

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = datetime(2026, 11, 25, 2, tzinfo=UTC)
MORNING = datetime(2026, 11, 25, 8, tzinfo=UTC)
"""09:00 in Berlin."""
OFFICE = BusinessHours(BERLIN, frozenset(range(5)), time(9), time(17))
NOBODY_YET = Rotation(("anna",), starts=date(2030, 1, 1), timezone=BERLIN)
PEOPLE = People({"anna": ("page",), "team": ("mail",)}, {"platform": NOBODY_YET}, OFFICE)


def opened(*chain: EscalationStep, **more: object) -> Incident:
    return incident(severity=Severity.P3, opened_at=NIGHT, chain=chain, chain_since=NIGHT, **more)


def test_a_step_that_stands_in_for_an_absent_one_keeps_its_business_hours() -> None:
    chain = (EscalationStep(0, "on-call", contacts=("platform",)), EscalationStep(86_400, "team", contacts=("team",), business_hours=True))
    at_night = climb(opened(*chain), NIGHT, Transition.TRIGGERED, PEOPLE)
    (waiting,) = at_night.incidents
    assert at_night.intents == ()
    assert waiting.next_escalation_at == MORNING  # not a day later: the one before it reached nobody
    assert escalate(waiting, MORNING - timedelta(seconds=1), PEOPLE).intents == ()
    assert [(intent.channel, intent.transition) for intent in escalate(waiting, MORNING, PEOPLE).intents] == [
        ("mail", Transition.ESCALATED)
    ]


def test_a_step_that_came_due_while_the_monitor_was_away_waits_for_the_next_business_day() -> None:
    chain = (EscalationStep(0, "team", contacts=("team",)), EscalationStep(3600, "team", contacts=("team",), business_hours=True))
    (waiting,) = climb(opened(*chain), NIGHT, Transition.TRIGGERED, PEOPLE).incidents
    late = escalate(waiting, MORNING + timedelta(hours=10), PEOPLE)
    assert late.intents == ()
    assert late.incidents[-1].next_escalation_at == MORNING + timedelta(days=1)


def test_each_asking_has_a_response_time_of_its_own() -> None:
    chain, promised = (EscalationStep(0, "team", contacts=("team",)),), ResponsePolicy(within_s=60, ack_expires_s=600)
    (told,) = climb(opened(*chain, response=promised), NIGHT, Transition.TRIGGERED, PEOPLE).incidents
    breached = escalate(told, NIGHT + timedelta(minutes=1), PEOPLE).incidents[-1]
    assert breached.breached_at == NIGHT + timedelta(minutes=1)
    assert breached.breaches_at is None

    worse = raise_(breached._replace(severity=Severity.P1), chain, NIGHT + timedelta(minutes=5), PEOPLE, ResponsePolicy(within_s=900))
    assert worse.incidents[-1].breaches_at == NIGHT + timedelta(minutes=20)

    (taken,) = acknowledge(breached, "ben", NIGHT + timedelta(minutes=2)).incidents
    asked_again = escalate(taken, NIGHT + timedelta(minutes=12), PEOPLE).incidents[-1]
    assert asked_again.breaches_at == NIGHT + timedelta(minutes=13)
