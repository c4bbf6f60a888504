"""One metric family as text: a header, and a block of lines per check instance, written again only when it changed.

Owns escaping, the cap on series, and that no series appears twice.
"""

import re
from math import inf, isfinite

from monitor.domain import Metric

Values = dict[tuple[str, ...], float]
"""Value by label values, in the metric's declared order."""

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
        self._names: dict[str, dict[tuple[str, ...], str]] = {}
        self._unwritten: dict[str, Values] = {}
        self._blocks: dict[str, str] = {}
        help_text = _UNSAFE_IN_HELP.sub(_replacement, metric.help)
        self._head = f"# HELP {metric.name} {help_text}\n# TYPE {metric.name} {metric.kind}\n"
        self._text: str | None = ""

    def takes(self, metric: Metric, added: tuple[str, ...]) -> bool:
        """Whether ``metric`` is this family: one name has one declaration, and it must be writable."""
        return self._writable and added == self._added and (metric is self._metric or metric == self._metric)

    def replace(self, instance: str, values: Values, given: str) -> int:
        """Show exactly ``values`` for the instance; ``given`` is its written label in front.

        Keeps ``values``. Returns how many series were left out.
        """
        names = self._names.get(instance)
        if names is None or values.keys() != names.keys():
            names = self._rename(instance, values, names or {}, given)
        self._unwritten[instance] = values
        self._text = None
        return len(values) - len(names)

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
                self._blocks[instance] = "".join([f"{name} {_number(values[labels])}\n" for labels, name in self._names[instance].items()])
            self._unwritten.clear()
            body = "".join(self._blocks.values())
            self._text = self._head + body if body else ""
        return self._text

    def _rename(self, instance: str, values: Values, old: dict[tuple[str, ...], str], given: str) -> dict[tuple[str, ...], str]:
        """Give the instance the series of ``values``: as many as fit, and none twice where two labels are written alike."""
        self.forget(instance)
        names: dict[tuple[str, ...], str] = {}
        written: set[str] = set()
        for labels in values:
            name = old.get(labels) or self._name(labels, given)
            if len(names) < self._cap and name not in written:
                names[labels] = name
                written.add(name)
        self._names[instance] = names
        return names

    def _name(self, labels: tuple[str, ...], given: str) -> str:
        written = [f'{name}="{escape(value)}"' for name, value in zip(self._metric.labels, labels, strict=True)]
        inside = ",".join([given, *written] if given else written)
        return f"{self._metric.name}{{{inside}}}" if inside else self._metric.name
