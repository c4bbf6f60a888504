"""What a comparison with a channel's far side does: every state here against every state there, and never twice what pages."""

from datetime import timedelta

import pytest

from alerts.reconcile import KINDS, Repair, repair
from monitor.domain import IncidentState, Receipt, Sighting, Standing, There, Transition
from tests.notify_parts import OPENED, notification

NOW = OPENED + timedelta(minutes=20)
SENT = OPENED + timedelta(minutes=10)
LAST = {
    IncidentState.OPEN: Transition.TRIGGERED,
    IncidentState.ACKED: Transition.ACKED,
    IncidentState.RESOLVED: Transition.RESOLVED,
}
WHO = "Ben (PagerDuty)"


def sighting(here: IncidentState, there: There, *, by: str | None = None, later: bool = False, **incident: object) -> Sighting:
    built = notification().incident._replace(state=here, **incident)  # type: ignore[arg-type] # any of its fields
    standing = Standing(built, "oncall", Receipt("r"), LAST[here], SENT)
    return Sighting(standing, there, by, SENT + timedelta(minutes=5 if later else -5))


def kind(found: Repair | None) -> str | None:
    return found.kind if found else None


TABLE = {
    (IncidentState.OPEN, There.OPEN, None): None,
    (IncidentState.OPEN, There.ACKED, None): None,
    (IncidentState.OPEN, There.RESOLVED, None): "trigger",
    (IncidentState.OPEN, There.MISSING, None): "trigger",
    (IncidentState.OPEN, There.OPEN, WHO): None,
    (IncidentState.OPEN, There.ACKED, WHO): "acknowledged",
    (IncidentState.OPEN, There.RESOLVED, WHO): "acknowledged",
    (IncidentState.ACKED, There.OPEN, None): "acknowledge",
    (IncidentState.ACKED, There.ACKED, None): None,
    (IncidentState.ACKED, There.RESOLVED, None): None,
    (IncidentState.ACKED, There.MISSING, None): None,
    (IncidentState.ACKED, There.OPEN, WHO): "acknowledge",
    (IncidentState.ACKED, There.ACKED, WHO): None,
    (IncidentState.ACKED, There.RESOLVED, WHO): None,
    (IncidentState.RESOLVED, There.OPEN, None): "resolve",
    (IncidentState.RESOLVED, There.ACKED, None): "resolve",
    (IncidentState.RESOLVED, There.RESOLVED, None): None,
    (IncidentState.RESOLVED, There.MISSING, None): None,
    (IncidentState.RESOLVED, There.OPEN, WHO): "resolve",
    (IncidentState.RESOLVED, There.ACKED, WHO): "resolve",
    (IncidentState.RESOLVED, There.RESOLVED, WHO): None,
}


@pytest.mark.parametrize(("here", "there", "by"), TABLE)
def test_both_sides_come_together(here: IncidentState, there: There, by: str | None) -> None:
    found = repair(sighting(here, there, by=by), (), NOW)
    assert kind(found) == TABLE[here, there, by]
    assert found is None or found.kind in KINDS
    pages = [intent for intent in (found.decision.intents if found else ()) if intent.transition is Transition.REMINDED]
    assert len(pages) == (kind(found) == "trigger")


@pytest.mark.parametrize(("here", "there", "by"), [row for row, made in TABLE.items() if made not in {None, "acknowledged"}])
def test_what_was_sent_again_in_vain_is_not_repeated_for_ever(here: IncidentState, there: There, by: str | None) -> None:
    said: list[str] = []
    kinds = []
    for _ in range(6):
        found = repair(sighting(here, there, by=by), said, NOW)
        assert found is not None
        kinds.append(found.kind)
        said += [entry.text for entry in found.decision.timeline]
    most = 2 if TABLE[here, there, by] == "resolve" else 1
    assert kinds == [TABLE[here, there, by]] * most + ["left"] * (6 - most)


def test_a_new_asking_may_be_told_again_once_more() -> None:
    first = repair(sighting(IncidentState.OPEN, There.MISSING), (), NOW)
    assert first is not None
    said = [entry.text for entry in first.decision.timeline]
    assert kind(repair(sighting(IncidentState.OPEN, There.MISSING), said, NOW)) == "left"
    assert kind(repair(sighting(IncidentState.OPEN, There.MISSING, asked=2), said, NOW)) == "trigger"


def test_nobody_is_paged_for_what_is_muted() -> None:
    assert kind(repair(sighting(IncidentState.OPEN, There.MISSING, muted=("silence",), muted_at=OPENED), (), NOW)) == "left"


def test_the_far_sides_own_end_of_an_acknowledgement_is_its_own_affair() -> None:
    assert repair(sighting(IncidentState.ACKED, There.OPEN, later=True), (), NOW) is None


def test_what_a_person_reopened_there_is_said_once_and_left() -> None:
    seen = sighting(IncidentState.RESOLVED, There.OPEN, by=WHO, later=True)
    first = repair(seen, (), NOW)
    assert first is not None
    assert (first.kind, first.decision.intents) == ("left", ())
    (entry,) = first.decision.timeline
    assert entry.text == f"{WHO} reopened it there; here it is over"
    again = repair(seen, (entry.text,), NOW)
    assert again is not None
    assert not again.decision


def test_taken_there_is_taken_here_in_the_persons_name() -> None:
    found = repair(sighting(IncidentState.OPEN, There.RESOLVED, by=WHO), (), NOW)
    assert found is not None
    (incident,) = found.decision.incidents
    assert (incident.state, incident.acked_by) == (IncidentState.ACKED, WHO)
    assert [entry.kind for entry in found.decision.timeline] == ["note", "acked"]
    assert "stays open until the check sees health" in found.decision.timeline[0].text
