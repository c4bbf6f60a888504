"""How bad a finding is, by rules of the configuration: by its number and by the hour. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from monitor.domain import CheckResult, Finding, Severity


@dataclass(frozen=True, slots=True)
class BusinessHours:
    """Weekdays (0 is Monday) and the time from ``start`` until before ``end`` on them, local time."""

    timezone: ZoneInfo
    weekdays: frozenset[int]
    start: time
    end: time

    def contain(self, now: datetime) -> bool:
        local = now.astimezone(self.timezone)
        return local.weekday() in self.weekdays and self.start <= local.time() < self.end

    def next_opening(self, after: datetime) -> datetime:
        """The first begin of a business day that is later than this moment, in UTC."""
        day = after.astimezone(self.timezone).date()
        while True:
            opening = datetime.combine(day, self.start, self.timezone).astimezone(UTC)
            if opening > after and day.weekday() in self.weekdays:
                return opening
            day += timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SeverityRule:
    """What every given condition must hold for. ``hours`` fits within, or ``outside`` of, the business hours."""

    severity: Severity
    finding: str | None = None
    """Name of the finding kind."""
    at_least: float | None = None
    below: float | None = None
    """Compared with ``Finding.value``, in its unit. A finding without a value fits no rule that compares."""
    hours: BusinessHours | None = None
    outside: bool = False

    def fits(self, finding: Finding, now: datetime) -> bool:
        if self.finding is not None and self.finding != finding.kind.name:
            return False
        if self.hours is not None and self.hours.contain(now) is self.outside:
            return False
        if self.at_least is None and self.below is None:
            return True
        if finding.value is None:
            return False
        return (self.at_least is None or finding.value >= self.at_least) and (self.below is None or finding.value < self.below)


def rate(result: CheckResult, rules: Iterable[SeverityRule], now: datetime) -> CheckResult:
    """The result with the severities that the rules give its findings; what no rule fits stays as the check said."""
    rules = tuple(rules)
    if not rules or not result.observed.findings:
        return result
    rated = tuple(_rate(finding, rules, now) for finding in result.observed.findings)
    return result._replace(observed=replace(result.observed, findings=rated), said=result.observed)


def _rate(finding: Finding, rules: tuple[SeverityRule, ...], now: datetime) -> Finding:
    for rule in rules:
        if rule.fits(finding, now):
            return replace(finding, severity=rule.severity)
    return finding
