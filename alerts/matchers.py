"""Conditions on labels, as Alertmanager and amtool write and judge them: ``name="value"``, ``!=``, ``=~``, ``!~``."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import re2  # type: ignore[import-untyped]  # the expressions of Alertmanager are RE2: no other engine reads them the same, and this one never takes exponential time

from monitor.domain import Matcher

OPERATORS = {"=": (False, True), "!=": (False, False), "=~": (True, True), "!~": (True, False)}
"""Written form to (is_regex, is_equal)."""
MAX_VALUE_CHARS = 4096

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 1 << 20
_WRITTEN = re2.compile(r'\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|[^"]*?)\s*', _OPTIONS)
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


def parse_matcher(text: str) -> Matcher:
    """Read ``service="auth"`` or, without quotes, ``service=auth``. Raises ``ValueError`` in plain words."""
    found = _WRITTEN.fullmatch(text) if len(text) <= MAX_VALUE_CHARS else None
    if found is None:
        raise ValueError(f'not a matcher: {text[:80]!r}; write name="value", or with !=, =~ or !~')
    name, operator, value = found.group(1), found.group(2), found.group(3)
    if value.startswith('"'):
        value = _unescape(value[1:-1])
    is_regex, is_equal = OPERATORS[operator]
    return checked(Matcher(name, value, is_regex, is_equal))


def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """Read one filter with one or several conditions: ``{a="1", b=~"2"}``, braces optional. Raises ``ValueError``."""
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    return tuple(parse_matcher(part) for part in _split(inner) if part.strip())


def checked(matcher: Matcher) -> Matcher:
    """The matcher, when it can be judged. Raises ``ValueError`` for an expression that RE2 does not read."""
    if not matcher.name:
        raise ValueError("a matcher needs the name of a label")
    if matcher.is_regex:
        _compiled(matcher.value)
    return matcher


def show_matcher(matcher: Matcher) -> str:
    """The written form, in quotes."""
    operator = next(written for written, kind in OPERATORS.items() if kind == (matcher.is_regex, matcher.is_equal))
    value = matcher.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{matcher.name}{operator}"{value}"'


def literal(text: str) -> str:
    """A text as an expression that matches only itself."""
    return "".join(char if char.isalnum() or char == "_" else f"\\{char}" for char in text)


def matches(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Whether every condition holds. A label that is not there has the value ""."""
    return all(_holds(matcher, labels.get(matcher.name, "")) for matcher in matchers)


def matches_everything(matchers: Iterable[Matcher]) -> bool:
    """Whether alerts without any of these labels match too: such a silence would silence everything by accident."""
    return matches(matchers, {})


def _holds(matcher: Matcher, value: str) -> bool:
    same = _compiled(matcher.value).fullmatch(value) is not None if matcher.is_regex else matcher.value == value
    return same is matcher.is_equal


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> re2._Regexp:
    try:
        if len(expression) > MAX_VALUE_CHARS:
            raise ValueError(f"an expression of more than {MAX_VALUE_CHARS} characters")
        return re2.compile(expression, _OPTIONS)
    except re2.error as exc:
        reason = exc.args[0].decode(errors="replace") if exc.args and isinstance(exc.args[0], bytes) else str(exc)
        raise ValueError(f"not an RE2 expression: {expression[:80]!r}: {reason}") from None


def _split(text: str) -> list[str]:
    """At commas outside of quotes."""
    parts, start, quoted, skip = [], 0, False, False
    for position, char in enumerate(text):
        if skip:
            skip = False
        elif quoted and char == "\\":
            skip = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _unescape(text: str) -> str:
    kept, rest = [], iter(text)
    for char in rest:
        following = next(rest, "") if char == "\\" else None
        kept.append(char if following is None else _ESCAPES.get(following, f"\\{following}"))
    return "".join(kept)
