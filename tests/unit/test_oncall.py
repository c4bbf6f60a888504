"""Rotations, overrides and business hours, over both changes of the clocks and a leap day."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.oncall import Override, People, Rotation
from alerts.severity import BusinessHours
from monitor.domain import EscalationStep

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
WEEKLY = Rotation(("anna", "ben", "cleo"), starts=date(2026, 1, 5), timezone=BERLIN)
OFFICE = BusinessHours(BERLIN, frozenset(range(5)), time(9), time(17))


def local(text: str, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


@pytest.mark.parametrize(
    ("moment", "contact"),
    [
        ("2026-01-05T08:59", None),
        ("2026-01-05T09:00", "anna"),
        ("2026-01-12T08:59", "anna"),
        ("2026-01-12T09:00", "ben"),
        ("2026-01-26T09:00", "anna"),
        ("2026-03-30T08:59", "cleo"),  # the first handover after clocks went forward is still at nine
        ("2026-03-30T09:00", "anna"),
        ("2026-10-26T08:59", "cleo"),  # and after they went back
        ("2026-10-26T09:00", "anna"),
    ],
)
def test_turns_go_by_the_wall_clock(moment: str, contact: str | None) -> None:
    assert WEEKLY.on_call(local(moment)) == contact


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK])
@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2028-02-29"])
def test_a_handover_inside_the_change_of_clocks_happens_once(zone: ZoneInfo, day: str) -> None:
    """At 02:30, which Berlin and New York skip in spring and live twice in autumn."""
    nightly = Rotation(("anna", "ben"), starts=date(2026, 1, 1), timezone=zone, handover=time(2, 30), days=1)
    start = local(f"{day}T00:00", zone)
    changes = list(nightly.changes(start, start + timedelta(hours=22)))
    assert len(changes) == 2
    assert changes[0][1] != changes[1][1]


def test_the_last_override_written_wins_and_may_name_nobody() -> None:
    week = (local("2026-01-06T00:00"), local("2026-01-08T00:00"))
    night = (local("2026-01-07T00:00"), local("2026-01-07T06:00"))
    rotation = Rotation(("anna",), date(2026, 1, 5), BERLIN, overrides=(Override("ben", *week), Override(None, *night)))
    assert [rotation.on_call(local(f"2026-01-0{moment}")) for moment in ("6T12:00", "7T03:00", "7T06:00", "8T00:00")] == [
        "ben",
        None,
        "ben",
        "anna",
    ]


@given(st.integers(0, 3 * 366 * 24 * 60), st.sampled_from([BERLIN, NEW_YORK]), st.integers(1, 9), st.times())
def test_somebody_is_on_call_at_every_moment_and_changes_agree(minute: int, zone: ZoneInfo, days: int, handover: time) -> None:
    rotation = Rotation(("anna", "ben", "cleo"), date(2025, 12, 1), zone, handover.replace(tzinfo=None, fold=0), days)
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    assert rotation.on_call(moment) in rotation.members
    for at, contact in rotation.changes(moment, moment + timedelta(days=20)):
        assert rotation.on_call(at) == contact


def test_a_step_reaches_contacts_and_whoever_is_on_call_now() -> None:
    people = People({"anna": ("page", "sms"), "lead": ("page",)}, {"platform": WEEKLY})
    step = EscalationStep(0, "on-call", ("slack",), ("platform", "lead"))
    assert people.reach(step, local("2026-01-06T12:00")).channels == ("slack", "page", "sms")
    assert people.reach(step, local("2026-01-13T12:00")).absent == ("platform",)  # ben is no longer configured


@pytest.mark.parametrize(
    ("due", "fires"),
    [
        ("2026-03-27T12:00", "2026-03-27T12:00"),
        ("2026-03-27T17:00", "2026-03-30T09:00"),  # over the weekend on which clocks go forward
        ("2026-10-23T20:00", "2026-10-26T09:00"),
        ("2026-10-26T03:00", "2026-10-26T09:00"),
    ],
)
def test_a_step_in_business_hours_waits_for_the_next_day(due: str, fires: str) -> None:
    step = EscalationStep(0, "team", ("mail",), business_hours=True)
    assert People(hours=OFFICE).earliest(step, local(due)) == local(fires)
    assert People(hours=OFFICE).earliest(EscalationStep(0, "team", ("mail",)), local(due)) == local(due)
