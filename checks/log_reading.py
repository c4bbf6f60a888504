"""How checks follow a log from run to run: where they were, what was added since, never more than a piece in memory.

Owns the shape in which a position is kept, and the times that log lines carry.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec import ValidationError, convert, to_builtins

from monitor.errors import CannotLook
from monitor.plugins import CheckContext
from monitor.probes_contract import LogPiece, LogPosition

PIECE_BYTES = 1_048_576

StateT = TypeVar("StateT")


@dataclass(slots=True)
class Place:
    """How far a log was read, as it is kept."""

    path: str
    inode: int
    offset: int
    mark: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one run read of a log."""

    place: Place
    size_bytes: int
    missed_bytes: int
    lines: int
    behind: bool
    """There was more to read than this run had time for; the next one goes on."""


async def read_added(
    ctx: CheckContext, path: str, place: Place | None, take: Callable[[LogPiece], None], *, deadline_s: float, log: str
) -> Reading:
    """Hand to ``take`` what was added since ``place``, piece by piece, beside the event loop; at first the end of the file.

    Stops reading after half of ``deadline_s``. Raises ``CannotLook`` when the log cannot be read within it; ``log`` names the log.
    """
    position = LogPosition(place.inode, place.offset, place.mark) if place and place.path == path else None
    began, missed, lines = ctx.clock.monotonic(), 0, 0
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                piece = await ctx.logs.read_on(path, position, max_bytes=PIECE_BYTES)
                await asyncio.to_thread(take, piece)
                position = piece.position
                missed += piece.missed_bytes
                lines += len(piece.lines)
                if not piece.more or ctx.clock.monotonic() - began > deadline_s / 2:
                    break
    except TimeoutError as exc:
        raise CannotLook(f"reading the {log} {path} took longer than {deadline_s:g} s: is its disk slow, or the machine busy?") from exc
    place = Place(path, position.inode, position.offset, position.mark)
    return Reading(place, piece.size_bytes, missed, lines, piece.more)


def recalled(ctx: CheckContext, state: type[StateT]) -> StateT | None:
    """What the last run kept as a ``state``; None at the first run."""
    if ctx.kept is None:
        return None
    try:
        return convert(ctx.kept.value, state, str_keys=True)
    except ValidationError:
        return None  # another version of the monitor kept it


def kept(state: object) -> Any:
    """A dataclass as JSON values, for ``Observed.keep``."""
    return to_builtins(state, str_keys=True)


# --- times -----------------------------------------------------------------------------------------------------------

_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
STAMP = re.compile(
    r"""[\[(]?(?:
        (?P<date>\d{4}[-/]\d\d[-/]\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,9}))?
        (?:\ ?(?P<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)(?![\w]))?
      | (?P<day>\d\d)/(?P<month>[A-Z][a-z]{2})/(?P<year>\d{4}):(?P<clock>\d\d:\d\d:\d\d)\ (?P<offset>[+-]\d{4})
    )[\])]?""",
    re.VERBOSE,
)
"""At the start of a line: ISO 8601, Python's and nginx's own, PostgreSQL's, and that of the common log format."""


def stamp_of(found: "re.Match[str]") -> float | None:
    """Seconds since the epoch of a ``STAMP``; without a zone it is this machine's local time. None when there is no such time."""
    part = found.groupdict()
    if part["date"]:
        zone = part["zone"] or ""
        text = f"{part['date'].replace('/', '-')}T{part['time']}.{(part['fraction'] or '0')[:6]:0<6}"
        text += "+00:00" if zone in {"Z", "UTC", "GMT"} else zone
    else:
        month = _MONTHS.index(part["month"]) if part["month"] in _MONTHS else 0
        text = f"{part['year']}-{month:02}-{part['day']}T{part['clock']}{part['offset']}"
    try:
        # Not a year of whose edge a conversion would run over.
        return datetime.fromisoformat(text).timestamp() if "1980" <= text[:4] < "9000" else None
    except (ValueError, OverflowError, OSError):
        return None


def seconds_of(text: object) -> float | None:
    """Seconds since the epoch of a time written in a log: text, or a number of (milli)seconds. None when it is none."""
    if isinstance(text, str):
        found = STAMP.match(text)
        return stamp_of(found) if found else None
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text) / 1000 if text > 1e11 else float(text)
        return seconds if 3e8 < seconds < 1e11 else None
    return None


def clock_time(seconds: float) -> str:
    """A moment for people: day, time, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %H:%M:%S UTC")
