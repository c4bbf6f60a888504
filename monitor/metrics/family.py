"""One metric family as text: a header, and a block of lines per check instance, written again only when it changed.

Owns escaping, the cap on series, and that no series appears twice.
"""

import re
from math import inf, isfinite

from monitor.domain import Metric

Values = dict[tuple[str, ...], float]
"""Value by label values, in the metric's declared order."""

_Names = tuple[tuple[tuple[str, ...], ...], tuple[str | None, ...]]
"""Label values of an instance's series, and beside each how the series is written; None where it is left out."""

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


def _number(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"  # noqa: PLR0124 - the definition of NaN


class Family:
    """All series of one metric, at most ``cap`` of each check instance. ``added`` are labels put in front of the declared ones."""

    def __init__(self, metric: Metric, added: tuple[str, ...], cap: int | None) -> None:
        labels = added + metric.labels
        self._metric = metric
        self._added = added
        self._writable = bool(_NAME.fullmatch(metric.name)) and len(set(labels)) == len(labels) and all(map(_LABEL.fullmatch, labels))
        self._cap = inf if cap is None else cap
        self._names: dict[str, _Names] = {}
        self._unwritten: dict[str, tuple[float, ...]] = {}
        self._blocks: dict[str, str] = {}
        help_text = _UNSAFE_IN_HELP.sub(_replacement, metric.help)
        self._head = f"# HELP {metric.name} {help_text}\n# TYPE {metric.name} {metric.kind}\n"
        self._text: str | None = ""

    def takes(self, metric: Metric, added: tuple[str, ...]) -> bool:
        """Whether ``metric`` is this family: one name has one declaration, and it must be writable."""
        return self._writable and added == self._added and (metric is self._metric or metric == self._metric)

    def replace(self, instance: str, values: Values, given: str) -> int:
        """Show exactly ``values`` for the instance; ``given`` is its written label in front. Returns how many series were left out."""
        known = self._names.get(instance)
        labels = tuple(values)
        if known is None or known[0] != labels:
            known = self._names[instance] = (labels, self._write_names(labels, given))
        self._unwritten[instance] = tuple(values.values())  # a fifth of the dict
        self._text = None
        return known[1].count(None)

    def forget(self, instance: str) -> None:
        """Show nothing of the instance."""
        self._names.pop(instance, None)
        self._blocks.pop(instance, None)
        self._unwritten.pop(instance, None)
        self._text = None

    def render(self) -> str:
        """Header and lines, or nothing while there is no series."""
        if self._text is None:
            for instance, values in self._unwritten.items():
                lines = zip(self._names[instance][1], values, strict=True)
                self._blocks[instance] = "".join([f"{name} {_number(value)}\n" for name, value in lines if name is not None])
            self._unwritten.clear()
            body = "".join(self._blocks.values())
            self._text = self._head + body if body else ""
        return self._text

    def _write_names(self, labels: tuple[tuple[str, ...], ...], given: str) -> tuple[str | None, ...]:
        """As many as fit, and none twice where two labels are written alike."""
        names: dict[str, None] = {}
        return tuple(self._admit(self._name(values, given), names) for values in labels)

    def _admit(self, name: str, names: dict[str, None]) -> str | None:
        if len(names) >= self._cap or name in names:
            return None
        names[name] = None
        return name

    def _name(self, labels: tuple[str, ...], given: str) -> str:
        written = [f'{name}="{escape(value)}"' for name, value in zip(self._metric.labels, labels, strict=True)]
        inside = ",".join([given, *written] if given else written)
        return f"{self._metric.name}{{{inside}}}" if inside else self._metric.name
