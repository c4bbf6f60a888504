"""Severity rules: by number, by hour, the first that fits, DST-correct."""

from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest

from alerts.severity import BusinessHours, SeverityRule, rate
from monitor.domain import CheckResult, FindingKind, Observed, Outcome, Severity

HIGH = FindingKind("ConnectionsHigh", Severity.P2, "INC-002", "high")
HOURS = BusinessHours(ZoneInfo("Europe/Berlin"), frozenset(range(5)), time(9), time(17))
MONDAY_NOON = datetime(2026, 11, 23, 11, 0, tzinfo=UTC)
SUNDAY = datetime(2026, 11, 22, 11, 0, tzinfo=UTC)


def severity(rules: tuple[SeverityRule, ...], now: datetime = MONDAY_NOON, value: float | None = 85.0) -> Severity:
    result = CheckResult("pg/db", "pg", "db", Outcome.FOUND, now, 0.1, Observed(findings=(HIGH("high", value=value),)))
    (finding,) = rate(result, rules, now).observed.findings
    return finding.severity or finding.kind.severity


def test_without_rules_the_check_decides() -> None:
    assert severity(()) is Severity.P2


@pytest.mark.parametrize(("value", "expected"), [(85.0, Severity.P3), (90.0, Severity.P1), (95.0, Severity.P1), (None, Severity.P2)])
def test_the_number_decides_and_the_first_rule_that_fits(value: float | None, expected: Severity) -> None:
    rules = (SeverityRule(Severity.P1, at_least=90), SeverityRule(Severity.P3, "ConnectionsHigh", at_least=80, below=90))
    assert severity(rules, value=value) is expected


def test_a_rule_for_another_finding_does_not_fit() -> None:
    assert severity((SeverityRule(Severity.P4, "Other"),)) is Severity.P2


@pytest.mark.parametrize(("now", "business", "off"), [(MONDAY_NOON, Severity.P4, Severity.P2), (SUNDAY, Severity.P2, Severity.P4)])
def test_hours(now: datetime, business: Severity, off: Severity) -> None:
    assert severity((SeverityRule(Severity.P4, hours=HOURS),), now) is business
    assert severity((SeverityRule(Severity.P4, hours=HOURS, outside=True),), now) is off


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        ("2026-10-23T07:00+00:00", True),  # Friday before the change: Berlin is UTC+2
        ("2026-10-26T07:30+00:00", False),  # Monday after it: UTC+1
        ("2026-10-26T08:00+00:00", True),
        ("2026-10-26T16:00+00:00", False),  # the end is outside
        ("2026-03-27T07:59+00:00", False),
        ("2026-03-30T07:00+00:00", True),
    ],
)
def test_business_hours_follow_the_clock_on_the_wall(at: str, inside: bool) -> None:
    assert HOURS.contain(datetime.fromisoformat(at)) is inside
