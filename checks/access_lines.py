"""From lines of an access log to requests: the platform's own nginx format, the combined one, JSON lines, or a regex of the reader's own.

Owns the formats. What is not in the format is refused, never guessed.
"""

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from checks.log_reading import seconds_of
from monitor.plugins import one_line

GROUPS = (
    "time",
    "request",
    "path",
    "status",
    "request_time",
    "upstream_time",
    "upstream",
    "upstream_status",
    "proxy",
    "process_time",
)
"""Names of the groups that a pattern may have; ``status`` it must have."""

LINE_CHARS = 8192
"""Longer lines are cut before they are parsed."""

_LIST = r"(?:-|[\d.]+)(?:(?:, | : )(?:-|[\d.]+))*"
TIMED = (
    r"(?P<client>\S+) - \[(?P<time>[^\]]+)\] \"(?P<request>[^\"]*)\" (?P<status>\d{3}) \d+ "
    rf"request_time=(?P<request_time>[\d.]+) upstream_time=(?P<upstream_time>{_LIST}) upstream=(?P<upstream>\S+(?:(?:, | : )\S+)*)"
    rf"(?: upstream_status=(?P<upstream_status>{_LIST}) proxy=(?P<proxy>\S*) process_time=\"(?P<process_time>[^\"]*)\")?"
)
"""``log_format timed`` of services/nginx.conf.j2."""
COMBINED = (
    r"(?P<client>\S+) \S+ .*? \[(?P<time>[^\]]+)\] \"(?P<request>(?:[^\"\\]|\\.)*)\" (?P<status>\d{3}) (?:\d+|-)"
    r"(?: \"(?:[^\"\\]|\\.)*\" \"(?:[^\"\\]|\\.)*\")?(?: .*)?"
)
"""nginx's and Apache's usual format: without any times of requests."""

_GONE = frozenset({502, 504})


class Unparsed(Exception):
    """The line is not in the format."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One server that a request was passed to. ``seconds`` and ``status`` are None when the log does not tell."""

    upstream: str
    status: int | None
    seconds: float | None
    gone: bool
    """No answer came from there; the status is the web server's own."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line of an access log. Times are seconds, None when the log does not tell."""

    at: float | None
    status: int
    what: str
    """Method and path without its query, on one line."""
    request_s: float | None = None
    upstream_s: float | None = None
    process_s: float | None = None
    proxy: str = ""
    attempts: tuple[Attempt, ...] = ()

    @property
    def worked_s(self) -> float | None:
        """How long the service took: its own word first, then what the web server waited for it, then the whole exchange."""
        return next((seconds for seconds in (self.process_s, self.upstream_s, self.request_s) if seconds is not None), None)


class Lines:
    """Parses lines of one format: ``timed``, ``combined``, ``json``, or a pattern with the names in ``GROUPS``."""

    def __init__(self, form: str, pattern: str = "") -> None:
        self._regex = re.compile(pattern or {"timed": TIMED, "combined": COMBINED}.get(form, "(?!)"))
        self._json = form == "json" and not pattern
        self._last_time: tuple[str, float | None] = ("", None)

    def parse(self, line: str) -> Request | None:
        """The request, or None for a JSON line that is of something else. Raises ``Unparsed``."""
        if self._json:
            return _of_json(line)
        found = self._regex.fullmatch(line[:LINE_CHARS])
        if found is None:
            raise Unparsed
        part = {name: text or "" for name, text in found.groupdict().items()}
        process_s = _number(part.get("process_time"))
        times = _split(part.get("upstream_time"))
        waited = [seconds for seconds in map(_number, times) if seconds is not None]
        if not re.fullmatch(r"\d{3}", part["status"]):
            raise Unparsed
        status = int(part["status"])
        return Request(
            at=self._at(part.get("time", "")),
            status=status,
            what=_what(part.get("request") or part.get("path", "")),
            request_s=_number(part.get("request_time")),
            upstream_s=sum(waited) if waited else None,
            process_s=process_s,
            proxy=part.get("proxy", "").strip("-"),
            attempts=_attempts(part, times, status, answered=process_s is not None),
        )

    def _at(self, text: str) -> float | None:
        if text != self._last_time[0]:
            self._last_time = (text, seconds_of(float(text) if re.fullmatch(r"\d{9,13}(\.\d+)?", text) else text))
        return self._last_time[1]


def _attempts(part: dict[str, str], times: list[str], status: int, *, answered: bool) -> tuple[Attempt, ...]:
    names = _split(part.get("upstream"))
    if not names or names == ["-"]:
        return ()
    # Without a status for each of them, the last one is known by the answer's own.
    statuses = _split(part.get("upstream_status")) or ["-"] * (len(names) - 1) + [str(status)]
    attempts = []
    for number, name in enumerate(names):
        said = statuses[number] if number < len(statuses) else "-"
        code = int(said) if re.fullmatch(r"\d{3}", said) else None
        # A service that answers 502 or 504 itself says how long it worked.
        gone = code in _GONE and not (answered and number == len(names) - 1)
        attempts.append(Attempt(one_line(name, limit=80), code, _number(times[number]) if number < len(times) else None, gone))
    return tuple(attempts)


def _split(text: str | None) -> list[str]:
    return re.split(r", | : ", text) if text else []


def _number(text: object) -> float | None:
    """Seconds: a number that is neither negative nor beyond all measure."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return None
    try:
        seconds = float(text)
    except (ValueError, OverflowError):
        return None
    return seconds if isfinite(seconds) and 0 <= seconds < 1e7 else None


def _what(request: str) -> str:
    """Method and path, without the query, which may hold a secret."""
    return one_line(" ".join(request.split(" ")[:2]).partition("?")[0], limit=100)


def _of_json(line: str) -> Request | None:
    try:
        row: Any = json.loads(line[: 8 * LINE_CHARS])
    except (ValueError, RecursionError) as exc:
        raise Unparsed from exc
    if not isinstance(row, dict):
        raise Unparsed
    status = row.get("status")
    if isinstance(status, str) and re.fullmatch(r"\d{3}", status):
        status = int(status)
    if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
        return None
    path = row.get("path", row.get("uri", row.get("request", "")))
    process_s = next((row[name] for name in ("duration_s", "process_time") if name in row), None)
    return Request(
        at=seconds_of(next((row[name] for name in ("timestamp", "time", "@timestamp", "time_iso8601") if name in row), None)),
        status=status,
        what=_what(f"{row['method']} {path}" if "method" in row else str(path)),
        request_s=_number(row.get("request_time")),
        upstream_s=_number(row.get("upstream_response_time")),
        process_s=_number(process_s),
    )
