"""The moments that this program can keep."""

from datetime import UTC, datetime

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)
"""From a day further on, not every time zone has a name for a moment: Python's calendar ends."""
_EARLY_YEAR, _LATE_YEAR = EARLIEST.year, LATEST.year


def bounded(moment: datetime) -> datetime:
    """A moment that somebody else wrote, in UTC. One before 1970 or at the end of the calendar, which only says "long ago" or "for ever",
    is the nearest that can be kept. Raises ``ValueError`` for one without an offset."""
    if moment.tzinfo is UTC and _EARLY_YEAR <= moment.year < _LATE_YEAR:
        return moment
    if moment.tzinfo is None:
        raise ValueError("a moment without an offset from UTC")
    return min(max(moment, EARLIEST), LATEST).astimezone(UTC)
