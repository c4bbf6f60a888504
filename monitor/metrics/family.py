"""One metric family as text: a header, and a block of lines per check instance, written again only when it changed.

Owns escaping, the cap on series, and that no series appears twice.
"""

import re
from math import inf, isfinite

from monitor.domain import Metric

Values = dict[tuple[str, ...], float]
"""Value by label values, in the metric's declared order."""

_Labels = tuple[tuple[str, ...], ...]

_Form = tuple[_Labels, str, frozenset[int]]
"""Label values of an instance's series, their lines with a ``%s`` for each value, and which of the series are left out."""

_NONE: frozenset[int] = frozenset()

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
        self._forms: dict[str, _Form] = {}
        self._usual: _Labels = ()
        """Most instances have the same label values: one tuple serves them all."""
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
        form = self._forms.get(instance)
        labels = tuple(values)
        if form is None or form[0] != labels:
            self._usual = self._usual if labels == self._usual else labels
            form = self._forms[instance] = (self._usual, *self._write_lines(labels, given))
        left_out = form[2]
        if left_out:
            self.put(instance, tuple(value for number, value in enumerate(values.values()) if number not in left_out))
        else:
            self.put(instance, tuple(values.values()))
        return len(left_out)

    def put(self, instance: str, values: tuple[float, ...]) -> None:
        """Show other values of just the series that are shown of the instance, in their order."""
        self._unwritten[instance] = values
        self._text = None

    def forget(self, instance: str) -> None:
        """Show nothing of the instance."""
        self._forms.pop(instance, None)
        self._blocks.pop(instance, None)
        self._unwritten.pop(instance, None)
        self._text = None

    def render(self) -> str:
        """Header and lines, or nothing while there is no series."""
        if self._text is None:
            for instance, values in self._unwritten.items():
                as_text = repr if isfinite(sum(values)) else _number
                self._blocks[instance] = self._forms[instance][1] % tuple(map(as_text, values))
            self._unwritten.clear()
            body = "".join(self._blocks.values())
            self._text = self._head + body if body else ""
        return self._text

    def _write_lines(self, labels: _Labels, given: str) -> tuple[str, frozenset[int]]:
        """The lines of as many series as fit, none twice where two labels are written alike; and the others' numbers."""
        names: dict[str, None] = {}
        left_out: list[int] = []
        for number, values in enumerate(labels):
            name = self._name(values, given)
            if len(names) >= self._cap or name in names:
                left_out.append(number)
            else:
                names[name] = None
        return "".join([name.replace("%", "%%") + " %s\n" for name in names]), frozenset(left_out) if left_out else _NONE

    def _name(self, labels: tuple[str, ...], given: str) -> str:
        written = [f'{name}="{escape(value)}"' for name, value in zip(self._metric.labels, labels, strict=True)]
        inside = ",".join([given, *written] if given else written)
        return f"{self._metric.name}{{{inside}}}" if inside else self._metric.name
