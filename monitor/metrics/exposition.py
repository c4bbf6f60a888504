"""The text that Prometheus scrapes, kept ready: a scrape joins strings and never runs a check.

Owns the latest samples of every check instance and the monitor's own series. Used from the event loop only.
"""

import platform
from collections.abc import Iterable

from monitor.domain import CheckResult, Metric, Sample
from monitor.metrics import names
from monitor.metrics.family import Family, Values, escape

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_PER_FAMILY = 500
"""Of one metric and one check instance: what a check shows beyond is left out, and counted."""

_SELF = ""
"""The instance under which the monitor's own series are kept."""

_Batch = tuple[Metric, Values]


class Exposition:
    """The latest result of every check instance, and the monitor's own gauges and counters, as Prometheus text.

    Of each metric an instance shows its first ``series_per_family`` series; the others are left out and counted in
    ``monitor_series_dropped_total``, as is what cannot be written (a bad name, a second declaration of a used one).
    """

    def __init__(self, version: str, *, series_per_family: int = SERIES_PER_FAMILY) -> None:
        self._cap = series_per_family
        self._families: dict[str, Family] = {}
        self._of_instance: dict[str, tuple[Family, ...]] = {}
        self._subjects: dict[str, _Subject] = {}
        self._own: dict[Metric, Values] = {}
        self._changed: set[Metric] = set()
        self._text: bytes | None = None
        for metric in (*names.OWN, *names.PER_CHECK):  # before any check can take one of these names
            self._family(metric, ())
        self.set(names.BUILD_INFO, 1, version=version, python=platform.python_version())
        for severity in names.SEVERITIES:
            for state in names.UNRESOLVED:
                self.set(names.INCIDENTS, 0, severity=severity, state=state)
        for metric in (names.OUTBOX_OLDEST, names.LOOP_LAG, names.CLOCK_STEP, names.SCHEDULER_LATE, names.SCHEDULER_SKIPPED):
            self.set(metric, 0)

    def record(self, result: CheckResult) -> None:
        """Make ``result`` all there is to show of its instance: samples of a subject that is gone vanish."""
        grouped: dict[str, _Batch] = {}
        for sample in result.observed.samples:
            if not _group(grouped, sample):
                self._count_dropped(sample.metric.name, 1)
        shown = [self._show(result.instance, metric, _SUBJECT, values, _subject(result)) for metric, values in grouped.values()]
        subject = self._subjects.get(result.instance)
        if subject is None:
            subject = self._subjects[result.instance] = _Subject(_name(result), result.service)
        shown += [self._show(result.instance, metric, (), values, "") for metric, values in subject.about(result)]
        families = tuple(family for family in shown if family is not None)
        for family in self._of_instance.get(result.instance, ()):
            if family not in families:
                family.forget(result.instance)
        self._of_instance[result.instance] = families
        self._text = None

    def forget(self, instance: str) -> None:
        """Show nothing of an instance any more, because the configuration no longer has it."""
        for family in self._of_instance.pop(instance, ()):
            family.forget(instance)
        self._subjects.pop(instance, None)
        self._text = None

    def set(self, metric: Metric, value: float, /, **labels: object) -> None:
        """Set one of the monitor's own series. Raises ``ValueError`` when the labels are not the declared ones."""
        sample = metric(value, **labels)
        series = self._own.setdefault(metric, {})
        if series.get(sample.labels) != sample.value:
            series[sample.labels] = sample.value
            self._changed.add(metric)
            self._text = None

    def add(self, metric: Metric, amount: float = 1.0, /, **labels: object) -> None:
        """Add to one of the monitor's own series; one not seen before starts at 0."""
        sample = metric(amount, **labels)
        self.set(metric, self._own.get(metric, {}).get(sample.labels, 0.0) + amount, **labels)

    def clear(self, metric: Metric) -> None:
        """Show no series of one of the monitor's own metrics until one is set again."""
        if self._own.pop(metric, None):
            self._changed.add(metric)
            self._text = None

    def seed_channels(self, channels: Iterable[str]) -> None:
        """Show zero for what has not happened yet on these channels, so that a dashboard can tell "none" from "no data"."""
        for channel in channels:
            for metric in (names.OUTBOX_PENDING, names.OUTBOX_DEAD):
                self.add(metric, 0, channel=channel)
            for outcome in names.NOTIFICATION_OUTCOMES:
                self.add(names.NOTIFICATIONS, 0, channel=channel, outcome=outcome)

    def render(self) -> bytes:
        """The whole page, UTF-8, as of now. Costs nothing when nothing changed since the last call."""
        if self._text is None:
            while self._changed:  # showing one may count a dropped series, which changes one more
                metric = self._changed.pop()
                self._show(_SELF, metric, (), dict(self._own.get(metric, {})), "")
            self._text = "".join([self._families[name].render() for name in sorted(self._families)]).encode()
        return self._text

    def _show(self, instance: str, metric: Metric, added: tuple[str, ...], values: Values, given: str) -> Family | None:
        """Hand the values to the metric's family; None when there is no such family to be had."""
        family = self._family(metric, added)
        if not family.takes(metric, added):
            self._count_dropped(metric.name, len(values))
            return None
        self._count_dropped(metric.name, family.replace(instance, values, given))
        return family

    def _family(self, metric: Metric, added: tuple[str, ...]) -> Family:
        family = self._families.get(metric.name)
        if family is None:
            family = self._families[metric.name] = Family(metric, added, None if metric in names.OWN else self._cap)
            self.add(names.SERIES_DROPPED, 0, metric=metric.name)
        return family

    def _count_dropped(self, name: str, count: int) -> None:
        if count:
            self.add(names.SERIES_DROPPED, count, metric=name)


_SUBJECT = ("check", "service")
"""Labels in front of a check's own: the name of its table in the configuration, and what it looks at."""


def _subject(result: CheckResult) -> str:
    return f'check="{escape(_name(result))}",service="{escape(result.service)}"'


def _name(result: CheckResult) -> str:
    return result.instance.removesuffix(f"/{result.service}")


def _group(grouped: dict[str, _Batch], sample: Sample) -> bool:
    """Sort a sample into its family; the last of two with the same labels wins. False when it fits no declaration."""
    metric = sample.metric
    found = grouped.get(metric.name)
    if found is None:
        found = grouped[metric.name] = (metric, {})
    if len(sample.labels) != len(metric.labels) or (found[0] is not metric and found[0] != metric):
        return False
    found[1][sample.labels] = sample.value
    return True


class _Subject:
    """One instance in the label values that all its results share, and what is shown of every run, whatever the check."""

    __slots__ = ("_outcomes", "_runs", "_subject")

    def __init__(self, check: str, service: str) -> None:
        self._subject = (check, service)
        self._outcomes = tuple((check, service, outcome.value) for outcome in names.OUTCOMES)
        self._runs = [0] * len(names.OUTCOMES)

    def about(self, result: CheckResult) -> tuple[_Batch, ...]:
        """Count the run, and show it."""
        self._runs[names.OUTCOMES.index(result.outcome)] += 1
        was = [float(outcome is result.outcome) for outcome in names.OUTCOMES]
        return (
            (names.CHECK_OUTCOME, dict(zip(self._outcomes, was, strict=True))),
            (names.CHECK_DURATION, {self._subject: result.duration_s}),
            (names.CHECK_LAST_RUN, {self._subject: result.started_at.timestamp()}),
            (names.CHECK_RUNS, dict(zip(self._outcomes, map(float, self._runs), strict=True))),
        )
