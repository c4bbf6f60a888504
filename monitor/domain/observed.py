"""What a check declares, and what one run of it returns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from monitor.domain.core import Labels, Severity, pairs


class Outcome(StrEnum):
    """What one run of a check means. The three are never folded into two."""

    OK = "ok"
    """It looked and found nothing wrong."""
    FOUND = "found"
    """It looked and found something wrong."""
    BLIND = "blind"
    """It could not look, so it proves nothing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric family that a check declares. ``name`` carries the base unit (``_seconds``, ``_bytes``, ``_ratio``,
    ``_total`` for counters) and the product's prefix ``monitor_``. The label ``service`` is added by the exposition.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def __call__(self, value: float, /, **labels: object) -> "Sample":
        """Make a sample. Raises ``ValueError`` when the labels are not exactly the declared ones."""
        if not (labels or self.labels):
            return _new(Sample, (self, (), float(value)))
        if tuple(labels) != self.labels:
            labels = self._in_order(labels)
        return _new(Sample, (self, tuple(map(str, labels.values())), float(value)))

    def each(self, numbers: Iterable[tuple[str, float]]) -> list["Sample"]:
        """A sample of each pair of label value and number, for a metric of one label."""
        return [_new(Sample, (self, (value,), float(number))) for value, number in numbers]

    def _in_order(self, labels: Mapping[str, object]) -> dict[str, object]:
        if sorted(labels) != sorted(self.labels):
            raise ValueError(f"metric {self.name} takes labels {list(self.labels)}, got {sorted(labels)}")
        return {name: labels[name] for name in self.labels}


class Sample(NamedTuple):
    """One value of a metric; ``labels`` are the values in the metric's declared order.

    A run makes dozens: a named tuple takes a third of the time that a frozen dataclass does.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float


_new = tuple.__new__


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A thing a check can find. ``name`` is the alert's name (CamelCase), ``incident`` the runbook's code."""

    name: str
    severity: Severity
    incident: str | None
    help: str
    group: str = ""
    """Without an incident code: findings of one service and one group are told as one incident. Empty is the name."""
    fells: bool = False
    """Whether what depends on the service cannot work while this is found: it is then the cause of their findings."""
    doubts: bool = False
    """With ``fells``: what is found behind it proves nothing while this is found. It joins the incident and never makes it worse."""

    def __call__(
        self,
        summary: str,
        /,
        *,
        labels: Mapping[str, object] | None = None,
        facts: Mapping[str, object] | None = None,
        severity: Severity | None = None,
        value: float | None = None,
    ) -> "Finding":
        """Make a finding: ``summary`` is one line for a person, ``labels`` its identity, ``facts`` its evidence.

        ``value`` is the number that was compared with the threshold, in the threshold's unit.
        """
        return Finding(self, pairs(labels or {}), summary, tuple((k, str(v)) for k, v in (facts or {}).items()), severity, value)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong. Identity is ``kind`` and ``labels`` only; ``summary`` and ``facts`` may change at every run.

    ``facts`` keep the order in which the check gives them, the most telling first.
    """

    kind: FindingKind
    labels: Labels
    summary: str
    facts: tuple[tuple[str, str], ...] = ()
    severity: Severity | None = None
    """Overrides the kind's severity for this finding."""
    value: float | None = None
    """The number that was compared with the threshold, in the threshold's unit: what severity rules look at."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a check returns: everything it measured and everything it found wrong."""

    samples: tuple[Sample, ...] = ()
    findings: tuple[Finding, ...] = ()
    keep: object = None
    """What the next run of the same instance gets back as ``ctx.kept``: JSON values only, at most 256 KiB. None keeps what is kept."""


class CheckResult(NamedTuple):
    """What the runner makes of one run of a check instance.

    ``instance`` is ``"<check name in the configuration>/<service>"``; ``error`` says why the run was BLIND. A named tuple because
    thousands of them are made in a minute.
    """

    instance: str
    check: str
    service: str
    outcome: Outcome
    started_at: datetime
    duration_s: float
    observed: Observed = Observed()
    error: str | None = None
    said: Observed | None = None
    """What the check itself said, where severity rules have judged it otherwise."""
