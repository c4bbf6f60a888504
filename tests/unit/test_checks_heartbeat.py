"""When a heartbeat is late: periods, schedules by the wall clock in both changes of the season, runs that fail or hang."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from checks.heartbeat import Config, judge
from monitor.domain import Observed
from monitor.probes_contract import Beat

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
KEY = SecretStr("0123456789abcdef")
T0 = datetime(2026, 11, 24, 3, tzinfo=UTC)


def config(**keys: object) -> Config:
    return Config.model_validate({"key": KEY, "grace": "10m", **keys})


def at(beat: Beat, cfg: Config, now: datetime) -> list[str]:
    return [finding.kind.name for finding in looked(beat, cfg, now).findings]


def looked(beat: Beat, cfg: Config, now: datetime) -> Observed:
    return judge(beat, cfg, now=now, name="dump", service="nightly")


def test_a_period_and_its_grace() -> None:
    cfg, beat = config(period="1h"), Beat(known_since=T0 - timedelta(days=9), success_at=T0)
    assert at(beat, cfg, T0 + timedelta(minutes=70)) == []
    late = looked(beat, cfg, T0 + timedelta(minutes=71))
    assert [finding.summary for finding in late.findings] == ["dump was not heard of in time: its run is 11 min late (nightly)"]
    assert dict(late.findings[0].facts)["expected"] == "2026-11-24 04:00:00 UTC (every 60 min, grace 10 min)"


def test_a_job_that_never_pinged_has_one_period_from_the_day_it_is_known() -> None:
    cfg, beat = config(period="1h"), Beat(known_since=T0)
    assert at(beat, cfg, T0 + timedelta(minutes=69)) == []
    assert at(beat, cfg, T0 + timedelta(minutes=71)) == ["HeartbeatLate"]


def test_failures_and_hanging_runs() -> None:
    cfg = config(period="1h", max_run="30m")
    failed = Beat(T0, success_at=T0, failed_at=T0 + timedelta(minutes=5), exit_code=3)
    assert at(failed, cfg, T0 + timedelta(minutes=6)) == ["HeartbeatFailed"]
    assert at(failed, cfg, T0 + timedelta(hours=6)) == ["HeartbeatFailed"]  # one thing is wrong, not two
    runs = Beat(T0, success_at=T0, started_at=T0 + timedelta(minutes=65))
    assert at(runs, cfg, T0 + timedelta(minutes=80)) == []  # late, but it runs
    assert at(runs, cfg, T0 + timedelta(minutes=96)) == ["HeartbeatHangs"]
    again = Beat(T0, success_at=T0 + timedelta(minutes=6), failed_at=T0 + timedelta(minutes=5))
    assert at(again, cfg, T0 + timedelta(minutes=7)) == []


@pytest.mark.parametrize(
    ("rule", "success_before", "started_before", "found"),
    [
        # killed in each run, and started anew each time: its latest start is always young
        ({"period": "15m"}, "7d", "5m", ["HeartbeatLate"]),
        ({"schedule": "0 * * * *"}, "7d", "59m", ["HeartbeatLate"]),
        ({"period": "1d", "max_run": "2h"}, "2d", "1h", ["HeartbeatLate"]),
        # excused for max_run beyond the grace, and no longer
        ({"period": "1h"}, "130m", "1m", []),
        ({"period": "1h"}, "131m", "1m", ["HeartbeatLate"]),
        # killed once and restarted beyond its grace: the second run may take its time
        ({"period": "1d", "max_run": "2h"}, "25h", "40m", []),
        # runs longer than its period, begun in time
        ({"schedule": "0 * * * *", "max_run": "4h"}, "4h", "3h", []),
        ({"schedule": "0 * * * *", "max_run": "2h"}, "4h", "3h", ["HeartbeatHangs"]),
        ({"period": "1h", "max_run": "30m"}, "24h", "31m", ["HeartbeatHangs"]),
    ],
)
def test_a_start_excuses_a_run_that_goes_on_not_a_job_that_never_ends(
    rule: dict[str, str], success_before: str, started_before: str, found: list[str]
) -> None:
    unit = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
    success, started = (T0 - int(text[:-1]) * unit[text[-1]] for text in (success_before, started_before))
    beat = Beat(T0 - timedelta(days=9), success_at=success, started_at=started)
    assert at(beat, config(**rule), T0) == found


def test_a_job_that_never_ended_a_run_is_late_too() -> None:
    observed = looked(Beat(T0, started_at=T0 + timedelta(hours=9)), config(period="1h"), T0 + timedelta(hours=9, minutes=1))
    assert [finding.summary for finding in observed.findings] == ["dump starts and does not end: its run is 8.0 h late (nightly)"]
    assert "killed" in dict(observed.findings[0].facts)["first"]


@pytest.mark.parametrize(
    ("zone", "ran_on", "expected"),
    [
        # 02:30 does not exist in the night of the change: cron runs at 03:00
        (BERLIN, date(2026, 3, 28), "2026-03-29 03:00:00 CEST"),
        (NEW_YORK, date(2026, 3, 7), "2026-03-08 03:00:00 EDT"),
        # 02:30 comes twice: cron runs once, at the first
        (BERLIN, date(2026, 10, 24), "2026-10-25 02:30:00 CEST"),
        (BERLIN, date(2026, 10, 25), "2026-10-26 02:30:00 CET"),
        (NEW_YORK, date(2026, 11, 1), "2026-11-02 02:30:00 EST"),
        (BERLIN, date(2028, 2, 28), "2028-02-29 02:30:00 CET"),
    ],
)
def test_a_schedule_goes_by_the_wall_clock(zone: ZoneInfo, ran_on: date, expected: str) -> None:
    cfg = config(schedule="30 2 * * *", timezone=zone.key)
    beat = Beat(known_since=T0 - timedelta(days=900), success_at=datetime.combine(ran_on, time(2, 31), zone).astimezone(UTC))
    due = cfg.next_after(beat.success_at or T0)
    assert f"{due:%Y-%m-%d %H:%M:%S %Z}" == expected
    assert at(beat, cfg, due.astimezone(UTC) + timedelta(minutes=10)) == []
    assert at(beat, cfg, due.astimezone(UTC) + timedelta(minutes=10, seconds=1)) == ["HeartbeatLate"]


def test_the_hour_that_comes_twice_is_not_late() -> None:
    """From 02:30 before to 02:30 after the change are 25 hours: a daily job that ran is not late in between."""
    cfg = config(schedule="30 2 * * *", timezone="Europe/Berlin")
    ran = Beat(known_since=T0 - timedelta(days=99), success_at=datetime(2026, 10, 25, 0, 31, tzinfo=UTC))
    assert at(ran, cfg, datetime(2026, 10, 26, 1, 29, tzinfo=UTC)) == []


@given(st.integers(0, 86_400 * 30), st.integers(60, 86_400), st.integers(0, 7200))
def test_late_is_exactly_after_period_and_grace(waited: int, period: int, grace: int) -> None:
    cfg = config(period=period, grace=grace)
    assert bool(at(Beat(T0), cfg, T0 + timedelta(seconds=waited))) == (waited > period + grace)


def test_a_clock_that_was_set_back_is_no_alarm() -> None:
    assert at(Beat(T0, success_at=T0 + timedelta(hours=2)), config(period="1h"), T0) == []


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, "either period or schedule"),
        ({"period": "1h", "schedule": "* * * * *"}, "either period or schedule"),
        ({"schedule": "61 * * * *"}, "Bad minute"),
        ({"schedule": "30 2 30 2 *"}, "none that cron knows"),
        ({"schedule": "* * * * *", "timezone": "Mars/Olympus"}, "timezone"),
        ({"period": "1h", "key": SecretStr("short")}, "16 to 200 letters"),
        ({"period": "1h", "key": SecretStr("0123456789abcdef/../")}, "16 to 200 letters"),
    ],
)
def test_configurations_that_cannot_be(keys: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why) as caught:
        config(**keys)
    assert "abcdef/.." not in str(caught.value)
