"""One metric family: the numbers of each check instance, and the text that they become when the page is asked for.

Owns escaping, the cap on series, and that no series appears twice. Text is written at the scrape. That of a few instances is kept until
one of their numbers is another: a database's mostly stay. That of many is not: what 10,000 checks show is 13 MB of it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import inf, isfinite

from monitor.domain import Metric

Values = dict[tuple[str, ...], float]
"""Value by label values, in the metric's declared order."""

_Labels = tuple[tuple[str, ...], ...]

KEPT = 16
"""Most instances whose text is kept."""
PIECE = 200
"""Instances whose lines are written in one piece."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How the numbers of an instance are written; most instances of a family share one."""

    labels: _Labels
    """Of all its series."""
    lines: str
    """With a ``%r`` for each number, and ``_SUBJECT`` for the instance's own labels where the family has some."""
    left_out: frozenset[int]
    """Which of the series are not shown."""


_NONE: frozenset[int] = frozenset()

_SUBJECT = "\0"
"""Stands in no name and no written label."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_UNSAFE = re.compile('[\\\\"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_UNSAFE_IN_HELP = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def escape(value: str) -> str:
    """A label value as the text format wants it; control characters and lone surrogates become U+FFFD."""
    return _UNSAFE.sub(_replacement, value)


def _replacement(match: re.Match[str]) -> str:
    return _ESCAPED.get(match[0], "\ufffd")


class _Number(float):
    """One that may not be finite: its ``repr`` is what the text format wants."""

    __slots__ = ()

    def __repr__(self) -> str:
        if isfinite(self):
            return super().__repr__()
        return "NaN" if self != self else "+Inf" if self > 0 else "-Inf"  # noqa: PLR0124 - the definition of NaN


class Family:
    """All series of one metric, at most ``cap`` of each check instance. ``added`` are labels put in front of the declared ones; what
    stands there for an instance is in ``subjects``, written as in the text."""

    def __init__(self, metric: Metric, added: tuple[str, ...], cap: int | None, subjects: Mapping[str, str]) -> None:
        labels = added + metric.labels
        self._metric = metric
        self._added = added
        self._subjects = subjects
        self._writable = bool(_NAME.fullmatch(metric.name)) and len(set(labels)) == len(labels) and all(map(_LABEL.fullmatch, labels))
        self._cap = inf if cap is None else cap
        self._usual = _Form((), "", _NONE)
        self._forms: dict[str, _Form] = {}
        self._values: dict[str, tuple[float, ...]] = {}
        self.text: str | None = None
        """What was last written, while it is true."""
        self._template: str | None = None
        """The text with a ``%r`` for each number, while it has the same series."""
        help_text = _UNSAFE_IN_HELP.sub(_replacement, metric.help)
        self._head = f"# HELP {metric.name} {help_text}\n# TYPE {metric.name} {metric.kind}\n"

    def takes(self, metric: Metric, added: tuple[str, ...]) -> bool:
        """Whether ``metric`` is this family: one name has one declaration, and it must be writable."""
        return self._writable and added == self._added and (metric is self._metric or metric == self._metric)

    def replace(self, instance: str, values: Values) -> int:
        """Show exactly ``values`` for the instance. Returns how many series were left out."""
        labels = tuple(values)
        form = self._forms.get(instance)
        if form is None or form.labels != labels:
            self._usual = self._usual if labels == self._usual.labels else self._form(labels)
            form = self._forms[instance] = self._usual
        left_out = form.left_out
        self.text = self._template = None
        self._values[instance] = tuple([value for number, value in enumerate(values.values()) if number not in left_out])
        return len(left_out)

    def put(self, instance: str, values: tuple[float, ...]) -> None:
        """Show other values of just the series that are shown of the instance, in their order."""
        if self._values[instance] != values:
            self._values[instance] = values
            self.text = None

    def forget(self, instance: str) -> None:
        """Show nothing of the instance."""
        self._forms.pop(instance, None)
        self._values.pop(instance, None)
        self.text = self._template = None

    def pieces(self) -> Iterable[str]:
        """Header and lines, in pieces; nothing while there is no series. What changes meanwhile is shown as it is by then."""
        if self.text is not None:
            return (self.text,)
        if len(self._values) > KEPT:
            return self._many(list(self._values))
        if self._template is None:
            lines = "".join([self._written(instance) for instance in self._values])
            self._template = self._head.replace("%", "%%") + lines if lines else ""
        values = tuple(chain.from_iterable(self._values.values()))
        self.text = self._template % (values if isfinite(sum(values)) else tuple(map(_Number, values)))
        return (self.text,)

    def _many(self, instances: list[str]) -> Iterator[str]:
        head = self._head
        for first in range(0, len(instances), PIECE):
            if lines := "".join(map(self._lines, instances[first : first + PIECE])):
                yield head + lines
                head = ""

    def _lines(self, instance: str) -> str:
        values = self._values.get(instance)
        if values is None:
            return ""
        lines = self._forms[instance].lines % (values if isfinite(sum(values)) else tuple(map(_Number, values)))
        return lines.replace(_SUBJECT, self._subjects[instance]) if self._added else lines

    def _written(self, instance: str) -> str:
        """The instance's part of the template."""
        lines = self._forms[instance].lines
        return lines.replace(_SUBJECT, self._subjects[instance].replace("%", "%%")) if self._added else lines

    def _form(self, labels: _Labels) -> _Form:
        """As many series as fit, none twice where two labels are written alike; the others are left out."""
        names: dict[str, None] = {}
        left_out: list[int] = []
        for number, values in enumerate(labels):
            name = self._name(values)
            if len(names) >= self._cap or name in names:
                left_out.append(number)
            else:
                names[name] = None
        return _Form(labels, "".join([f"{name} %r\n" for name in names]), frozenset(left_out) if left_out else _NONE)

    def _name(self, labels: tuple[str, ...]) -> str:
        written = [f'{name}="{escape(value)}"'.replace("%", "%%") for name, value in zip(self._metric.labels, labels, strict=True)]
        inside = ",".join([_SUBJECT, *written] if self._added else written)
        return f"{self._metric.name}{{{inside}}}" if inside else self._metric.name
