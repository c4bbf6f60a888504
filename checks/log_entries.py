"""From lines of a log to its entries: when, how bad, which event. One traceback is one entry, whatever its length.

Owns what is understood of formats: JSON objects, Python's, nginx's and PostgreSQL's lines, plain text.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from checks.log_reading import STAMP, seconds_of, stamp_of

CUT = 600
"""Characters of a message that are looked at."""

RANKS = {"unknown": 0, "debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_NAMES = {
    **{name: name for name in RANKS},
    **{"trace": "debug", "notice": "info", "log": "info", "warn": "warning", "err": "error", "exception": "error"},
    **dict.fromkeys(("fatal", "panic", "crit", "alert", "emerg", "emergency"), "critical"),
}
_LEVEL = re.compile(
    r"\b(?P<upper>DEBUG|TRACE|INFO|NOTICE|WARN(?:ING)?|ERR(?:OR)?|CRIT(?:ICAL)?|FATAL|PANIC|ALERT|EMERG)\b"
    r"|\[(?P<lower>debug|info|notice|warn(?:ing)?|err(?:or)?|crit(?:ical)?|alert|emerg|fatal)\]"
    r"|\b(?P<postgres>LOG):"
)
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above", "The above exception was the direct cause")
_CAUSED_BY = "Caused by: "  # Java's
_DETAIL = re.compile(r"(?:DETAIL|HINT|CONTEXT|STATEMENT|QUERY|LOCATION):")
_STARTS_WITH_LEVEL = re.compile(r"(?:DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL)\b")


@dataclass(slots=True)
class Entry:
    """One thing that was logged. ``at`` is None when the line does not say."""

    at: float | None
    level: str
    message: str
    exception: str = ""
    """The last line of its traceback."""
    detail: str = ""
    """What a JSON line says beside its event."""
    tracing: bool = False
    """Inside a traceback, whose last line is still to come."""
    waited: bool = False
    """A run has ended since the traceback began."""
    told: bool = False
    """Counted already; it only waits for lines that belong to it."""
    is_json: bool = False

    @property
    def rank(self) -> int:
        return RANKS.get(self.level, 0)

    @property
    def text(self) -> str:
        """What tells it apart: the event, or the last line of the traceback; a JSON line has both."""
        if self.is_json and self.exception:
            return f"{self.message.splitlines()[0] if self.message else ''}: {self.exception}"
        return self.exception or self.message


class Entries:
    """Takes lines one by one. The last entry stays open, also from one run to the next, for lines that belong to it."""

    def __init__(self, open_entry: Entry | None = None) -> None:
        self.open = open_entry

    def take(self, line: str) -> Iterator[Entry]:
        """The entries that are whole with this line."""
        if line.startswith("{") and (row := _json_object(line)) is not None:
            yield from self.close()
            yield _of_json(row)
            return
        stamp = STAMP.match(line)
        if self.open is not None and self._belongs(self.open, line, stamped=stamp is not None):
            return
        if not line.strip() or (line[0].isspace() and not stamp):
            return  # the rest of something whose start was not seen
        yield from self.close()
        self.open = _of_text(line, stamp)

    def close(self) -> Iterator[Entry]:
        """The open entry, when it was not told yet."""
        entry, self.open = self.open, None
        if entry is not None and not entry.told:
            entry.told = True
            yield entry

    def pause(self) -> Iterator[Entry]:
        """At the end of a run: tell the open entry unless its traceback goes on, but leave it open for lines that belong to it."""
        entry = self.open
        if entry is None or entry.told:
            return
        if entry.tracing and not entry.waited:
            entry.waited = True
            return
        entry.told = True
        yield entry

    def _belongs(self, entry: Entry, line: str, *, stamped: bool) -> bool:
        if stamped and not _DETAIL.search(line, 0, 80):
            return False
        if line.startswith((_TRACEBACK, *_CHAINED)):
            another = line.startswith(_TRACEBACK) and bool(entry.exception) and not entry.tracing  # not one that is chained to this
            entry.tracing = not another
            return not another
        if not line or line[0].isspace() or _DETAIL.search(line, 0, 80):
            return True
        if entry.tracing or line.startswith(_CAUSED_BY):
            entry.exception, entry.tracing = line[:CUT], False
            return True
        # Where entries begin with their time, what begins with none goes on with one.
        return entry.at is not None and not _STARTS_WITH_LEVEL.match(line)


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _first(row: dict[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _of_json(row: dict[str, Any]) -> Entry:
    level = _first(row, "level", "levelname", "severity", "lvl")
    if isinstance(level, int) and not isinstance(level, bool):
        # pino and bunyan count 10 … 60, as Python does
        level = next((name for name, rank in reversed(RANKS.items()) if rank and level >= rank), "unknown")
    trace = _first(row, "exception", "exc_info", "traceback", "stack")
    last = next((line for line in reversed(trace.splitlines()) if line.strip()), "") if isinstance(trace, str) else ""
    event = str(_first(row, "event", "message", "msg") or "")
    detail = _first(row, "detail", "error", "reason")
    return Entry(
        at=seconds_of(_first(row, "timestamp", "time", "ts", "@timestamp", "asctime")),
        level=_NAMES.get(str(level).lower(), "unknown"),
        message=event[:CUT],
        exception=last.strip()[:CUT],
        detail=(detail if isinstance(detail, str) else "")[:CUT],
        is_json=True,
    )


def _of_text(line: str, stamp: "re.Match[str] | None") -> Entry:
    if line.startswith(_TRACEBACK):
        return Entry(None, "error", "", tracing=True)
    rest = line[stamp.end() if stamp else 0 :][: 2 * CUT]
    found = _LEVEL.search(rest, 0, 160)
    if found is None:
        return Entry(stamp_of(stamp) if stamp else None, "unknown", rest.strip(" -:\t")[:CUT])
    level = _NAMES[(found["upper"] or found["lower"] or found["postgres"]).lower()]
    message = (rest[: found.start()] + rest[found.end() :]) if found.start() > 40 else rest[found.end() :]
    return Entry(stamp_of(stamp) if stamp else None, level, message.strip(" -:|]\t")[:CUT])
