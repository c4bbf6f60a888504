"""The text that Prometheus scrapes: a scrape writes down what is known and never runs a check.

Owns the latest samples of every check instance and the monitor's own series. Used from the event loop only.
"""

import platform
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from monitor.domain import CheckResult, Metric, Sample
from monitor.metrics import names
from monitor.metrics.family import Family, Values, escape

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_PER_FAMILY = 500
"""Of one metric and one check instance: what a check shows beyond is left out, and counted."""

PAGE_CHARS = 262_144
"""So much of the page is sent at a time."""
USUAL_LAYOUTS = 4
"""Of each check: that of its good results, and of some others."""

_SELF = ""
"""The instance under which the monitor's own series are kept."""

_Batch = tuple[Metric, Values]
_Series = tuple[tuple[Metric, ...], tuple[tuple[str, ...], ...]]
"""The metrics and the label values of a result's samples."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the numbers of a result are shown, until one has other series."""

    series: _Series | None
    """None when some of them are left out."""
    order: tuple[int, ...]
    """Which sample comes where when those of each family stand together; empty where they do as they come."""
    own: tuple[tuple[Family, slice], ...]
    """The families of the check's metrics, and where their values then are."""
    common: tuple[Family, ...]
    """Of what is shown of every run, whatever the check."""

    def families(self) -> tuple[Family, ...]:
        return (*[family for family, _ in self.own], *self.common)


class Exposition:
    """The latest result of every check instance, and the monitor's own gauges and counters, as Prometheus text.

    Of each metric an instance shows its first ``series_per_family`` series; the others are left out and counted in
    ``monitor_series_dropped_total``, as is what cannot be written (a bad name, a second declaration of a used one).
    """

    def __init__(self, version: str, *, series_per_family: int = SERIES_PER_FAMILY) -> None:
        self._cap = series_per_family
        self._families: dict[str, Family] = {}
        self._in_order: list[Family] = []
        """By name; empty while it is not known."""
        self._layouts: dict[str, _Layout] = {}
        """By instance."""
        self._samples: dict[str, tuple[Sample, ...]] = {}
        """What each instance showed last: mostly it is the same again."""
        self._usual: dict[str, deque[_Layout]] = {}
        """By check: most of its instances have the same series, and one layout serves them all."""
        self._subjects: dict[str, str] = {}
        """Labels of each instance, as they are written."""
        self._runs: dict[str, list[float]] = {}
        """Of each instance, by outcome."""
        self._own: dict[Metric, Values] = {}
        self._changed: set[Metric] = set()
        self._dropped = 0
        """How many series were left out so far."""
        for metric in names.OWN:  # before any check can take one of these names
            self._family(metric, ())
        for metric in names.PER_CHECK:
            self._family(metric, names.SUBJECT)
        self.set(names.BUILD_INFO, 1, version=version, python=platform.python_version())
        for severity in names.SEVERITIES:
            for state in names.UNRESOLVED:
                self.set(names.INCIDENTS, 0, severity=severity, state=state)
        for metric in (names.OUTBOX_OLDEST, names.LOOP_LAG, names.CLOCK_STEP, names.SCHEDULER_LATE, names.SCHEDULER_SKIPPED):
            self.set(metric, 0)

    def record(self, result: CheckResult) -> None:
        """Make ``result`` all there is to show of its instance: samples of a subject that is gone vanish."""
        instance, samples = result.instance, result.observed.samples
        layout = self._layouts.get(instance)
        if layout is None or layout.series is None or samples != self._samples[instance]:
            self._samples[instance] = samples
            metrics, labels, values = zip(*samples, strict=True) if samples else ((), (), ())
            if layout is None or layout.series != (metrics, labels):
                self._lay_out(result, (metrics, labels))
                return
            if layout.order:
                values = tuple(map(values.__getitem__, layout.order))
            for family, places in layout.own:
                family.put(instance, values[places])
        for family, numbers in zip(layout.common, self._count(result), strict=True):
            family.put(instance, numbers)

    def _lay_out(self, result: CheckResult, series: _Series) -> None:
        """Show a result whose series are not those of the one before, or do not all fit."""
        instance, dropped = result.instance, self._dropped
        if instance not in self._subjects:
            self._subjects[instance] = _subject(result)
        own = [(self._show(instance, metric, names.SUBJECT, values), metric, values) for metric, values in self._group(result)]
        common = [
            self._show(instance, metric, names.SUBJECT, dict(zip(labels, numbers, strict=True)))
            for metric, labels, numbers in zip(names.PER_CHECK, _COMMON_LABELS, self._count(result), strict=True)
        ]
        places = {key: place for place, key in enumerate(zip(*series, strict=True))}
        order: list[int] = []
        slices: list[tuple[Family, slice]] = []
        for family, metric, values in own:
            if family:
                slices.append((family, slice(len(order), len(order) + len(values))))
                order += [places[metric, labels] for labels in values]
        layout = _Layout(
            series=series if dropped == self._dropped else None,  # what is left out is counted at every result
            order=() if order == list(range(len(places))) else tuple(order),
            own=tuple(slices),
            common=tuple([family for family in common if family]),
        )
        families = layout.families()
        before = self._layouts.get(instance)
        for family in before.families() if before else ():
            if family not in families:
                family.forget(instance)
        usual = self._usual.setdefault(result.check, deque(maxlen=USUAL_LAYOUTS))
        if layout not in usual:
            usual.append(layout)
        self._layouts[instance] = usual[usual.index(layout)]

    def forget(self, instance: str) -> None:
        """Show nothing of an instance any more, because the configuration no longer has it."""
        layout = self._layouts.pop(instance, None)
        for family in layout.families() if layout else ():
            family.forget(instance)
        self._samples.pop(instance, None)
        self._subjects.pop(instance, None)
        self._runs.pop(instance, None)

    def set(self, metric: Metric, value: float, /, **labels: object) -> None:
        """Set one of the monitor's own series. Raises ``ValueError`` when the labels are not the declared ones."""
        sample = metric(value, **labels)
        series = self._own.setdefault(metric, {})
        if series.get(sample.labels) != sample.value:
            series[sample.labels] = sample.value
            self._changed.add(metric)

    def add(self, metric: Metric, amount: float = 1.0, /, **labels: object) -> None:
        """Add to one of the monitor's own series; one not seen before starts at 0."""
        sample = metric(amount, **labels)
        self.set(metric, self._own.get(metric, {}).get(sample.labels, 0.0) + amount, **labels)

    def clear(self, metric: Metric) -> None:
        """Show no series of one of the monitor's own metrics until one is set again."""
        if self._own.pop(metric, None):
            self._changed.add(metric)

    def seed_channels(self, channels: Iterable[str]) -> None:
        """Show zero for what has not happened yet on these channels, so that a dashboard can tell "none" from "no data"."""
        for channel in channels:
            for metric in (names.OUTBOX_PENDING, names.OUTBOX_DEAD):
                self.add(metric, 0, channel=channel)
            for outcome in names.NOTIFICATION_OUTCOMES:
                self.add(names.NOTIFICATIONS, 0, channel=channel, outcome=outcome)

    def render(self) -> bytes:
        """The whole page, UTF-8, as of now."""
        return b"".join(self.pages())

    def pages(self) -> Iterator[bytes]:
        """The same in pieces, cut between lines: no more of it than one is held in memory. What changes while they are taken is shown
        as it is by then."""
        while self._changed:  # showing one may count a dropped series, which changes one more
            metric = self._changed.pop()
            self._show(_SELF, metric, (), dict(self._own.get(metric, {})))
        if not self._in_order:
            self._in_order = [self._families[name] for name in sorted(self._families)]
        waiting: list[str] = []
        size = 0
        for family in self._in_order:
            if family.text is not None:
                waiting.append(family.text)
                size += len(family.text)
                continue
            for piece in family.pieces():
                waiting.append(piece)
                size += len(piece)
                if size >= PAGE_CHARS:
                    yield "".join(waiting).encode()
                    waiting, size = [], 0
        yield "".join(waiting).encode()

    def _count(self, result: CheckResult) -> tuple[tuple[float, ...], ...]:
        """Count the run; the numbers of each of ``names.PER_CHECK``."""
        runs = self._runs.get(result.instance)
        if runs is None:
            runs = self._runs[result.instance] = [0.0] * len(names.OUTCOMES)
        place = names.OUTCOMES.index(result.outcome)
        runs[place] += 1
        return _WAS[place], (result.duration_s,), (result.started_at.timestamp(),), tuple(runs)

    def _group(self, result: CheckResult) -> Iterable[_Batch]:
        """The samples of each metric; the last of two with the same labels wins. What fits no declaration is counted."""
        grouped: dict[str, _Batch] = {}
        for sample in result.observed.samples:
            metric, labels = sample.metric, sample.labels
            found = grouped.setdefault(metric.name, (metric, {}))
            if len(labels) == len(metric.labels) and (found[0] is metric or found[0] == metric):
                found[1][labels] = sample.value
            else:
                self._count_dropped(metric.name, 1)
        return grouped.values()

    def _show(self, instance: str, metric: Metric, added: tuple[str, ...], values: Values) -> Family | None:
        """Hand the values to the metric's family; None when there is no such family to be had."""
        family = self._family(metric, added)
        if not family.takes(metric, added):
            self._count_dropped(metric.name, len(values))
            return None
        self._count_dropped(metric.name, family.replace(instance, values))
        return family

    def _family(self, metric: Metric, added: tuple[str, ...]) -> Family:
        family = self._families.get(metric.name)
        if family is None:
            family = self._families[metric.name] = Family(metric, added, None if metric in names.OWN else self._cap, self._subjects)
            self._in_order = []
            self.add(names.SERIES_DROPPED, 0, metric=metric.name)
        return family

    def _count_dropped(self, name: str, count: int) -> None:
        if count:
            self._dropped += count
            self.add(names.SERIES_DROPPED, count, metric=name)


_WAS = tuple(tuple(float(outcome is other) for other in names.OUTCOMES) for outcome in names.OUTCOMES)
"""By place of the outcome: 1 for it, 0 for the others."""
_BY_OUTCOME = tuple((outcome.value,) for outcome in names.OUTCOMES)
_COMMON_LABELS = (_BY_OUTCOME, ((),), ((),), _BY_OUTCOME)
"""Of the series of each of ``names.PER_CHECK``."""


def _subject(result: CheckResult) -> str:
    return f'check="{escape(_name(result))}",service="{escape(result.service)}"'


def _name(result: CheckResult) -> str:
    return result.instance.removesuffix(f"/{result.service}")
