"""Silences, windows and inhibition, and what they do to an incident's ladder."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from alerts import escalation
from alerts.matchers import parse_matcher
from alerts.muting import Inhibition, Muting, Window, muted_by, sources, spoken, state_of
from alerts.oncall import People
from alerts.silences import change, expire, make
from monitor.domain import (
    Alert,
    AlertState,
    Decision,
    EscalationStep,
    Incident,
    IncidentState,
    ResponsePolicy,
    Severity,
    Transition,
    pairs,
)
from monitor.errors import UsageError

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
CHAIN = (EscalationStep(0, "on-call", ("page",)), EscalationStep(900, "lead", ("lead",)))


def alert(name: str = "ServiceDown", service: str = "auth", *, home: str = "", group: str = "", **labels: str) -> Alert:
    home = home or f"{service}/{name}"
    return Alert(
        fingerprint=f"{name}-{service}",
        instance=f"check/{service}",
        group=group or home,
        home=home,
        service=service,
        labels=pairs({"alertname": name, "service": service, **labels}),
        code="INC-001",
        severity=Severity.P2,
        summary="down",
        facts=(),
        state=AlertState.FIRING,
        bad_runs=1,
        good_runs=0,
        pending_since=T0,
        firing_since=T0,
    )


def incident(**changes: object) -> Incident:
    whole = Incident(
        id="abc",
        group="auth/ServiceDown",
        code=None,
        service="auth",
        severity=Severity.P1,
        state=IncidentState.OPEN,
        title="t",
        summary="s",
        evidence=(),
        first_step="",
        opened_at=T0,
        chain=CHAIN,
        chain_since=T0,
    )
    return whole._replace(**changes)  # type: ignore[arg-type]


def silence(*matchers: str, hours: float = 1) -> Muting:
    return Muting(silences=(make(matchers, T0, T0 + timedelta(hours=hours), "anna", "planned", T0),))


def told(decision: Decision) -> list[tuple[Transition, str]]:
    return [(intent.transition, intent.channel) for intent in decision.intents]


def test_a_silence_mutes_between_its_moments_only() -> None:
    muting = silence("service=auth", "severity=P2", "incident=INC-001")
    assert "planned" in muting.reasons(alert(), T0)[0]
    assert muting.reasons(alert(service="data"), T0) == ()
    assert muting.reasons(alert(), T0 + timedelta(hours=1)) == ()


def test_an_incident_is_muted_when_all_of_its_own_alerts_are() -> None:
    muting = silence("alertname=ServiceDown")
    own, other = alert(), alert("ServiceSlow", home="auth/ServiceDown")
    symptom = alert("LoginFails", "data", group="auth/ServiceDown")
    assert muted_by([own, symptom], "auth/ServiceDown", muting, T0)
    assert not muted_by([own, other], "auth/ServiceDown", muting, T0)


def test_inhibition_needs_equal_labels_and_never_inhibits_itself() -> None:
    rule = Inhibition((parse_matcher("alertname=HostDown"),), (parse_matcher("severity=P2"),), ("zone",))
    source, target = alert("HostDown", "host", zone="a"), alert(zone="a")
    muting = Muting(inhibitions=(rule,), firing=(source, target))
    assert muting.reasons(target, T0) == ("inhibited by HostDown on host",)
    assert not muting.reasons(alert(zone="b"), T0)
    assert not muting.reasons(source, T0)


def test_the_sources_of_rules_are_what_they_name_and_are_found_by_plain_words() -> None:
    rules = (
        Inhibition((parse_matcher("alertname=HostDown"), parse_matcher("severity=P2")), ()),
        Inhibition((parse_matcher("zone=~a|b"), parse_matcher("zone!=b"), parse_matcher('service="a b"')), ()),
    )
    assert [spoken(rule.source) for rule in rules] == [("HostDown",), ()]
    host, zone = alert("HostDown"), alert(service="a b", zone="a")
    assert sources(rules, (host, zone, alert(), alert(service="a b", zone="b"))) == (host, zone)


@pytest.mark.parametrize(
    ("zone", "day"), [("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-03-08")]
)
def test_a_window_opens_by_the_wall_clock_and_lasts_real_time(zone: str, day: str) -> None:
    tz = ZoneInfo(zone)
    window = Window("backup", (parse_matcher("service=auth"),), schedule="0 1 * * *", lasts=timedelta(hours=3), timezone=tz)
    begin = datetime.fromisoformat(f"{day}T01:00").replace(tzinfo=tz).astimezone(UTC)
    assert window.active_until(begin - MINUTE / 60) is None
    assert window.active_until(begin) == begin + timedelta(hours=3)
    assert window.active_until(begin + timedelta(hours=3) - MINUTE / 60) == begin + timedelta(hours=3)
    assert window.active_until(begin + timedelta(hours=3)) is None
    assert window.next_opening(begin - MINUTE) == begin


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("day", ["2026-03-08", "2026-03-29", "2026-10-25", "2026-11-01"])
@pytest.mark.parametrize("schedule", ["30 1 * * *", "30 2 * * *", "0 3 * * *", "30 * * * *", "*/15 * * * *"])
@pytest.mark.parametrize("lasts", [timedelta(minutes=10), timedelta(hours=3)])
def test_a_window_is_open_just_when_one_of_its_openings_says_so_in_both_nights(
    zone: str, day: str, schedule: str, lasts: timedelta
) -> None:
    tz, start = ZoneInfo(zone), datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=UTC)
    window = Window("backup", (), schedule=schedule, lasts=lasts, timezone=tz)
    begins = [begin.astimezone(UTC) for begin in islice(CronSim(schedule, (start - timedelta(days=1)).astimezone(tz)), 250)]
    for minute in range(5, 10 * 60, 10):
        now = start + minute * MINUTE
        ends = [begin + lasts for begin in begins if begin <= now < begin + lasts]
        assert window.active_until(now) == (ends[-1] if ends else None)
        assert window.next_opening(now) == next(begin for begin in begins if begin > now)


def test_a_window_on_the_leap_day_opens_once_in_four_years() -> None:
    window = Window("leap", (), schedule="0 0 29 2 *", lasts=timedelta(hours=1))
    assert window.next_opening(T0) == datetime(2028, 2, 29, tzinfo=UTC)
    assert window.active_until(datetime(2028, 2, 29, 0, 59, tzinfo=UTC)) is not None


def test_the_ladder_stands_still_while_muted_and_goes_on_after() -> None:
    opened = escalation.climb(incident(), T0, Transition.TRIGGERED).incidents[-1]
    muted = escalation.mute(opened, ("silence",), T0 + 5 * MINUTE).incidents[-1]
    assert muted.wake_at is None
    assert not escalation.escalate(muted, T0 + 60 * MINUTE)
    free = escalation.unmute(muted, T0 + 65 * MINUTE)
    assert told(free) == []
    assert free.incidents[-1].next_escalation_at == T0 + 75 * MINUTE


def test_an_incident_that_opened_muted_asks_from_the_first_step_when_it_is_free() -> None:
    muted = escalation.mute(incident(), ("silence",), T0).incidents[-1]
    free = escalation.unmute(muted, T0 + 60 * MINUTE)
    assert told(free) == [(Transition.TRIGGERED, "page")]
    assert free.incidents[-1].next_escalation_at == T0 + 75 * MINUTE


def test_whoever_was_told_hears_the_end_though_it_is_muted_now() -> None:
    opened = escalation.climb(incident(), T0, Transition.TRIGGERED).incidents[-1]
    muted = escalation.mute(opened, ("silence",), T0).incidents[-1]
    assert told(escalation.resolve(muted, T0 + MINUTE, "well")) == [(Transition.RESOLVED, "page")]
    assert told(escalation.resolve(escalation.mute(incident(), ("silence",), T0).incidents[-1], T0, "well")) == []


def test_a_worse_severity_pages_nobody_while_muted() -> None:
    opened = escalation.climb(incident(), T0, Transition.TRIGGERED).incidents[-1]
    muted = escalation.mute(opened, ("silence",), T0).incidents[-1]
    raised = escalation.raise_(muted, CHAIN, T0 + MINUTE)
    assert told(raised) == []
    free = escalation.unmute(raised.incidents[-1], T0 + 60 * MINUTE)
    assert told(free) == [(Transition.REMINDED, "page")]


def test_an_acknowledgement_that_ends_asks_again_from_the_first_step() -> None:
    opened = escalation.climb(incident(response=ResponsePolicy(ack_expires_s=3600)), T0, Transition.TRIGGERED).incidents[-1]
    acked = escalation.acknowledge(opened, "anna", T0 + MINUTE).incidents[-1]
    assert acked.wake_at == T0 + 61 * MINUTE
    assert not escalation.escalate(acked, T0 + 60 * MINUTE)
    again = escalation.escalate(acked, T0 + 61 * MINUTE)
    assert told(again) == [(Transition.REMINDED, "page")]
    assert (again.incidents[-1].state, again.incidents[-1].asked) == (IncidentState.OPEN, 2)
    assert again.incidents[-1].next_escalation_at == T0 + 76 * MINUTE


def test_the_response_time_is_recorded_once_and_reminders_repeat() -> None:
    policy = ResponsePolicy(within_s=600, remind_s=1800)
    now = escalation.climb(incident(response=policy), T0, Transition.TRIGGERED).incidents[-1]
    seen: list[tuple[int, str]] = []
    minute = 0
    while minute <= 80:
        decided = escalation.escalate(now, T0 + minute * MINUTE)
        seen += [(minute, entry.kind) for entry in decided.timeline]
        now = decided.incidents[-1] if decided.incidents else now
        minute += 1
    assert seen == [(10, "breached"), (15, "escalated"), (45, "reminded"), (75, "reminded")]


def test_a_step_that_reaches_nobody_is_said_and_skipped_at_once() -> None:
    nobody, lead = EscalationStep(0, "on-call", contacts=("gone",)), CHAIN[1]
    boss = EscalationStep(1800, "boss", ("boss",))
    climbed = escalation.climb(incident(chain=(nobody, lead, boss)), T0, Transition.TRIGGERED, People())
    assert told(climbed) == [(Transition.ESCALATED, "lead")]
    assert "nobody is on call for gone" in climbed.timeline[0].text
    assert climbed.incidents[-1].next_escalation_at == T0 + 30 * MINUTE


def test_when_no_step_reaches_anybody_it_asks_again_until_one_does() -> None:
    chain = (EscalationStep(0, "on-call", contacts=("anna",)),)
    lost = escalation.climb(incident(chain=chain), T0, Transition.TRIGGERED, People())
    assert told(lost) == []
    assert "nobody could be told" in lost.timeline[-1].text
    assert lost.incidents[-1].wake_at == T0 + 5 * MINUTE
    again = escalation.escalate(lost.incidents[-1], T0 + 5 * MINUTE, People())
    assert again.incidents[-1].wake_at == T0 + 10 * MINUTE
    found = escalation.escalate(again.incidents[-1], T0 + 10 * MINUTE, People({"anna": ("page",)}))
    assert told(found) == [(Transition.TRIGGERED, "page")]


@pytest.mark.parametrize(
    ("matchers", "begin", "end", "reason"),
    [
        ((), 0, 60, "at least one matcher"),
        (("a=~.*",), 0, 60, "at least one matcher"),
        (("a=b",), -60, -1, "in the past"),
        (("a=b",), 60, 60, "before end time"),
        (("a",), 0, 60, "not a matcher"),
    ],
)
def test_a_silence_that_makes_no_sense_is_refused(matchers: tuple[str, ...], begin: int, end: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make(matchers, T0 + begin * MINUTE, T0 + end * MINUTE, "anna", "why", T0)


def test_silences_end_once_and_change_by_alertmanagers_rules() -> None:
    old = make(["a=b"], T0, T0 + 60 * MINUTE, "anna", "why", T0)
    later = T0 + 10 * MINUTE
    ended = expire(old, later)
    assert (state_of(ended, later), expire(ended, later + MINUTE)) == ("expired", ended)
    longer = make(["a=b"], T0, T0 + 90 * MINUTE, "anna", "longer", later)
    (kept,) = change(old, longer, later)
    assert (kept.id, kept.starts_at, kept.ends_at) == (old.id, T0, T0 + 90 * MINUTE)
    other = make(["a=c"], T0, T0 + 90 * MINUTE, "anna", "other", later)
    first, second = change(old, other, later)
    assert (first.id, state_of(first, later), second.id) == (old.id, "expired", other.id)
    future = make(["a=b"], later + MINUTE, T0 + 60 * MINUTE, "anna", "why", T0)
    assert expire(future, T0).starts_at == expire(future, T0).ends_at == T0


def test_openings_are_wall_clock_times_and_end_with_the_window() -> None:
    """Over the night on which Berlin's clocks go forward: the same hour by the clock, an hour earlier in UTC."""
    berlin = ZoneInfo("Europe/Berlin")
    ends = datetime(2026, 3, 30, 1, 30, tzinfo=berlin)
    window = Window("backup", (), schedule="0 1 * * *", lasts=timedelta(hours=1), ends_at=ends, timezone=berlin)
    found = window.openings(datetime(2026, 3, 28, 0, 30, tzinfo=UTC), datetime(2026, 4, 30, tzinfo=UTC))
    hours = [
        (begin.astimezone(berlin).strftime("%d %H:%M"), begin.strftime("%H:%M"), (end - begin).total_seconds()) for begin, end in found
    ]
    assert hours == [("28 01:30", "00:30", 1800), ("29 01:00", "00:00", 3600), ("30 01:00", "23:00", 1800)]
    assert window.active_until(datetime(2026, 3, 30, 1, 15, tzinfo=berlin)) == ends
    once = Window("once", (), starts_at=T0, ends_at=T0 + MINUTE)
    assert once.openings(T0 - MINUTE, T0 + MINUTE) == ((T0, T0 + MINUTE),)
    assert once.openings(T0 + MINUTE, T0 + 2 * MINUTE) == ()
