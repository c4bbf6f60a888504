"""Foreign alerts: what is accepted, how repeats merge, when they end. By tables and against Alertmanager's own rule of merging."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.decide import Known, Policy
from alerts.fingerprint import fingerprint, fingerprints
from alerts.posted import PostedAlert, PostedPolicy, accept, accept_all, lapse, receive
from monitor.domain import (
    Alert,
    AlertPolicy,
    AlertState,
    Decision,
    EscalationStep,
    Incident,
    IncidentState,
    Labels,
    Severity,
    Transition,
    pairs,
)

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
POLICY = Policy(alert=AlertPolicy(), chains=dict.fromkeys(Severity, (EscalationStep(0, "on-call", ("page",)),)))
LABELS = {"alertname": "DiskFull", "service": "files"}


def take(labels: dict[str, str] | None = None, now: datetime = T0, **given: object) -> Alert:
    return accept(PostedAlert(LABELS if labels is None else labels, **given), PostedPolicy(), (), now)  # type: ignore[arg-type]


class World:
    def __init__(self) -> None:
        self.alerts: dict[str, Alert] = {}
        self.incidents: dict[str, Incident] = {}
        self.told: list[Transition] = []

    def known(self) -> Known:
        live = tuple(alert for alert in self.alerts.values() if alert.state is not AlertState.RESOLVED)
        return Known(live, {i.group: i for i in self.incidents.values() if i.state is not IncidentState.RESOLVED})

    def keep(self, decided: Decision) -> None:
        self.alerts |= {alert.fingerprint: alert for alert in decided.alerts}
        self.incidents |= {incident.id: incident for incident in decided.incidents}
        self.told += [intent.transition for intent in decided.intents]

    def post(self, *sent: Alert, now: datetime = T0) -> None:
        self.keep(receive(self.known(), sent, POLICY, now))

    @property
    def only(self) -> Alert:
        (alert,) = self.alerts.values()
        return alert


@pytest.mark.parametrize(
    ("labels", "severity"),
    [
        ({}, Severity.P3),
        ({"severity": "critical"}, Severity.P1),
        ({"severity": "P2"}, Severity.P2),
        ({"severity": "info"}, Severity.P4),
        ({"severity": "loud"}, Severity.P3),
    ],
)
def test_the_severity_is_the_labels(labels: dict[str, str], severity: Severity) -> None:
    assert take(LABELS | labels).severity is severity


@pytest.mark.parametrize(
    ("posted", "reason"),
    [
        (PostedAlert({}), "at least one label"),
        (PostedAlert({"a": ""}), "at least one label"),
        (PostedAlert({"1a": "b"}), "invalid label name"),
        (PostedAlert({"a": "b"}, {"x y": "z"}), "invalid label name"),
        (PostedAlert({"a": "x" * 20_000}), "characters"),
        (PostedAlert({f"l{n}": "x" for n in range(65)}), "64 labels"),
        (PostedAlert({"a": "b"}, starts_at=T0, ends_at=T0 - MINUTE), "before end time"),
    ],
)
def test_what_makes_no_sense_is_refused(posted: PostedAlert, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        accept(posted, PostedPolicy(), (), T0)


def test_missing_moments_are_filled_as_alertmanager_fills_them() -> None:
    alert = take()
    assert (alert.pending_since, alert.ends_at, alert.ends_unsaid) == (T0, T0 + 5 * MINUTE, True)
    over = take(ends_at=T0 - MINUTE)
    assert (over.pending_since, over.state) == (T0 - MINUTE, AlertState.RESOLVED)


def test_repeats_are_no_news_and_extend_the_end() -> None:
    world = World()
    world.post(take())
    world.post(take(now=T0 + 4 * MINUTE, annotations={"summary": "fuller"}), now=T0 + 4 * MINUTE)
    assert world.told == [Transition.TRIGGERED]
    assert (world.only.ends_at, world.only.summary, world.only.pending_since) == (T0 + 9 * MINUTE, "fuller", T0)
    world.keep(lapse(world.known(), POLICY, T0 + 8 * MINUTE))
    assert world.told == [Transition.TRIGGERED]
    world.keep(lapse(world.known(), POLICY, T0 + 9 * MINUTE))
    assert world.told == [Transition.TRIGGERED, Transition.RESOLVED]


def test_a_later_end_that_was_named_stands_against_a_timeout() -> None:
    world = World()
    world.post(take(ends_at=T0 + 60 * MINUTE))
    world.post(take(now=T0 + MINUTE), now=T0 + MINUTE)
    assert (world.only.ends_at, world.only.ends_unsaid) == (T0 + 60 * MINUTE, False)
    world.post(take(now=T0 + MINUTE, ends_at=T0 + MINUTE), now=T0 + MINUTE)
    assert world.told == [Transition.TRIGGERED, Transition.RESOLVED]


def test_an_end_of_what_nobody_knows_tells_nobody() -> None:
    world = World()
    world.post(take(ends_at=T0 - MINUTE))
    assert (world.told, world.alerts) == ([], {})


def test_one_incident_for_a_group_ends_with_its_last_alert() -> None:
    world = World()
    one, two = LABELS | {"disk": "a"}, LABELS | {"disk": "b"}
    world.post(take(one), take(two))
    world.post(take(one, ends_at=T0))
    assert world.told == [Transition.TRIGGERED]
    world.post(take(two, ends_at=T0))
    assert world.told == [Transition.TRIGGERED, Transition.RESOLVED]
    world.post(take(one, now=T0 + MINUTE), now=T0 + MINUTE)
    assert world.told[2:] == [Transition.TRIGGERED]


def test_other_groups_after_a_reload_leave_what_fires_in_its_incident() -> None:
    world = World()
    sent = [PostedAlert(LABELS | {"disk": disk}, ends_at=T0 + 60 * MINUTE) for disk in "ab"]
    before, after = PostedPolicy(), PostedPolicy(group_by=("alertname", "cluster"))
    world.post(*(accept(one, before, (), T0) for one in sent))
    world.post(*(accept(one, after, (), T0) for one in sent))
    world.post(accept(sent[0]._replace(ends_at=T0), after, (), T0))
    assert world.told == [Transition.TRIGGERED]
    world.post(accept(sent[1]._replace(ends_at=T0), after, (), T0))
    assert world.told == [Transition.TRIGGERED, Transition.RESOLVED]


@given(st.lists(st.tuples(st.integers(-20, 20), st.one_of(st.none(), st.integers(-20, 40))), min_size=1, max_size=8))
def test_any_sending_leaves_begin_and_end_in_order_and_no_trigger_without_its_end(sent: list[tuple[int, int | None]]) -> None:
    world = World()
    for step, (start, end) in enumerate(sent):
        now = T0 + step * MINUTE
        try:
            alert = take(now=now, starts_at=T0 + start * MINUTE, ends_at=None if end is None else T0 + end * MINUTE)
        except ValueError:
            continue
        world.post(alert, now=now)
        for known in world.alerts.values():
            assert known.ends_at is not None
            assert (known.state is AlertState.RESOLVED) is (known.resolved_at is not None)
    world.keep(lapse(world.known(), POLICY, T0 + 100 * MINUTE))
    assert world.told.count(Transition.TRIGGERED) == world.told.count(Transition.RESOLVED)


def test_texts_no_database_can_carry_are_made_fit() -> None:
    alert = take(LABELS | {"path": "a\0b"}, annotations={"summary": "x\0\u202ey"}, generator_url="http://p/\0")
    assert "\0" not in repr(alert)
    assert dict(alert.labels)["path"] == "a\ufffdb"


HOSTILE_LABELS = st.dictionaries(st.text(max_size=4), st.text(st.characters(), max_size=30), max_size=4).map(pairs)


@given(st.lists(HOSTILE_LABELS, max_size=6), st.integers(0, 300), st.sampled_from((1, 3, 40)))
def test_many_fingerprints_at_once_are_those_of_each(few: list[Labels], many: int, spread: int) -> None:
    alike = [pairs({"alertname": "DiskFull", "instance": f"host{number % 7}" * (1 + number % spread)}) for number in range(many)]
    labels = [*few, *alike, *few]
    assert fingerprints(labels) == [fingerprint(one) for one in labels]


def test_of_many_postings_those_that_are_not_acceptable_are_told_apart() -> None:
    names = [{"alertname": f"Disk{number}"} for number in range(30)]
    bad = [{}, {"no name": "x"}, {"alertname": ""}, {"alertname": "x" * 20_000}]
    sent = [PostedAlert(labels) for pair in zip(names, [*bad, *names[4:]], strict=True) for labels in pair]
    late = PostedAlert(LABELS, starts_at=T0, ends_at=T0 - MINUTE)
    found = accept_all([*sent, late], PostedPolicy(), (), T0)
    assert [isinstance(one, ValueError) for one in found] == [*[number in (1, 3, 5, 7) for number in range(60)], True]
    for posted, one in zip(sent, found, strict=False):
        assert isinstance(one, ValueError) or one == accept(posted, PostedPolicy(), (), T0)
