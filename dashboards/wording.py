"""Plain words for people: ages, durations, shares, and text from outside made harmless.

Pure functions, and the one Jinja environment that every page and report is rendered with.
"""

import hashlib
import math
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})


def one_line(text: str, limit: int = 300) -> str:
    """Text from outside on one line: no control characters, no surrogates, no reordering of what follows, cut at ``limit``."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(" " if unicodedata.category(char) in _CONTROL else "" if char in _BIDI else char for char in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``7 min``, ``3 h 5 min``, ``4 d 2 h``: two figures at most, never rounded up to the next unit."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = int(max(0.0, seconds))
    if whole < 10:
        return f"{max(0.0, seconds) * 1000:.0f} ms" if seconds < 0.9995 else f"{math.floor(seconds * 10) / 10:g} s"
    if whole < 3600:
        return f"{whole} s" if whole < 120 else f"{whole // 60} min"
    if whole < 86400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86400, "d", whole % 86400 // 3600, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"


def ago(then: datetime, now: datetime) -> str:
    """``12 s ago``; a moment that is not past yet is ``now``."""
    seconds = int((now - then).total_seconds())
    return f"{duration(seconds)} ago" if seconds >= 1 else "now"


def ahead(then: datetime, now: datetime) -> str:
    """``in 7 min``; a moment that has come is ``now``."""
    seconds = int((then - now).total_seconds())
    return f"in {duration(seconds)}" if seconds >= 1 else "now"


def percent(part: float, whole: float, digits: int = 2) -> str:
    """A share as ``99.98 %``, rounded down, so that 100 % means all."""
    scale = 10**digits
    return f"{math.floor(part * 100 * scale / whole) / scale:.{digits}f} %"


def utc(moment: datetime) -> str:
    """``2026-11-23 08:00:05 UTC``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine_time(moment: datetime) -> str:
    """The value of a ``datetime`` attribute."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 check``, ``3 checks``, ``1,200 checks``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(words: list[str] | tuple[str, ...], most: int = 5) -> str:
    """``a, b and c``; more than ``most`` become ``a, b, … and 7 more``."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def segment(text: str) -> str:
    """Text as one segment of a URL's path."""
    return quote(text, safe="", errors="replace")


def anchor(text: str) -> str:
    """An element's id that is safe in any selector, and the same at every rendering, so that focus survives a refresh."""
    return f"x{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]}"


def _finalize(value: object) -> object:
    """What every ``{{ … }}`` passes through before it is escaped."""
    return one_line(value, 2000) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment() -> Environment:
    """Autoescaping, strict about unknown names; data is never compiled."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    jinja.filters |= {"duration": duration, "utc": utc, "machine_time": machine_time, "segment": segment, "anchor": anchor}
    jinja.globals |= {"ago": ago, "ahead": ahead, "count": count, "listed": listed}
    return jinja
