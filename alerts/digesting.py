"""Who hears many things at once, and how: which due rows of a channel are told one by one, and which together. Pure.

A row's way is chosen once. What was tried alone stays alone, what was told in a digest is followed up there: nobody is left with an
alert at a provider that nothing will ever close.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from monitor.domain import DIGEST_KEY

WINDOW = timedelta(minutes=1)
"""The time over which notifications told one by one are counted."""
NEXT = ""
"""The conversation of the next new digest, which has no key yet."""
LEAST = 5
"""Fewer new incidents than this make no digest: they are told one by one."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a channel says many things."""

    digest_from: int | None
    """How many incidents it tells one by one within a minute; the others are told in digests. None: all of them."""
    gather_s: float
    most: int
    """Most incidents in one digest."""


class Due(NamedTuple):
    """One row that may be sent now, as far as the choice needs it."""

    id: int
    incident_id: str
    severity: int
    opens: bool
    """Whether it asks somebody, rather than follows up."""
    created_at: datetime
    attempts: int
    digest: str | None
    """The digest it was put in when it was tried before."""
    told: bool
    """Whether an earlier row of its incident arrived on this channel."""
    home: str | None
    """The digest in which that one was told."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What one process remembers of a channel. Losing it costs a few notifications that are told one by one."""

    alone: tuple[tuple[datetime, int], ...] = ()
    """When incidents were told one by one lately, and their severities."""
    gathering: Mapping[str, datetime] = field(default_factory=dict)
    """By conversation, until when it gathers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are told together under one key."""

    key: str
    home: str
    rows: tuple[Due, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do with the due rows of one channel now. A row that is nowhere in it waits for room."""

    sends: tuple[Due | Batch, ...] = ()
    """The worst first, at most as many as there is room for."""
    void: tuple[int, ...] = ()
    """Follow-ups whose beginning never arrived."""
    held: tuple[tuple[datetime, tuple[int, ...]], ...] = ()
    """Rows that gather, and until when."""
    spoken: Spoken = field(default_factory=Spoken)


def take_turn(rows: Sequence[Due], manner: Manner | None, spoken: Spoken, room: int, busy: frozenset[str], now: datetime) -> Turn:
    """Choose what a channel says next. ``rows`` come worst first, then oldest; ``busy`` are the conversations being held right now.

    ``manner`` None tells everything one by one.
    """
    void = tuple(row.id for row in rows if not row.told and not row.opens)
    live = [row for row in rows if row.told or row.opens]
    if manner is None:
        return Turn(sends=tuple(live[:room]), void=void, spoken=spoken)
    spoken = replace(spoken, alone=tuple(one for one in spoken.alone if now - WINDOW < one[0] <= now + WINDOW))
    gathering = _Gathering(manner.gather_s, spoken.gathering, now)
    alone = [row for row in live if not _is_fresh(row) and row.digest is None and row.home is None]
    allowed, beyond = _within_allowance([row for row in live if _is_fresh(row)], manner.digest_from, spoken)
    batches = [*_follow_ups(live, gathering, busy)]
    whole = len(beyond) // manner.most * manner.most  # what is full waits for nothing
    chunks = [beyond[at : at + manner.most] for at in range(0, whole, manner.most)]
    rest = beyond[whole:]
    if rest and gathering.done(NEXT, rest):
        if len(rest) < LEAST and not chunks:
            allowed += rest
        else:
            chunks.append(rest)
    batches += [Batch(key, key, tuple(chunk)) for chunk in chunks for key in (f"{DIGEST_KEY}{_hash(chunk)}",)]
    units: list[Due | Batch] = [*batches, *alone, *allowed]
    sends = tuple(sorted(units, key=_turn_of)[:room])
    said = tuple((now, unit.severity) for unit in sends if isinstance(unit, Due) and _is_fresh(unit))
    return Turn(sends, void, tuple(gathering.held), Spoken((*spoken.alone, *said), gathering.until))


def home_of(key: str) -> str:
    """The conversation that a digest's key belongs to."""
    return key.partition("/")[0]


class _Gathering:
    """Which conversations have gathered for long enough. ``held`` are the rows of those that have not, and until when."""

    def __init__(self, span_s: float, known: Mapping[str, datetime], now: datetime) -> None:
        self._span = timedelta(seconds=span_s)
        self._now = now
        self.until = {name: until for name, until in known.items() if now < until + WINDOW}
        self.held: list[tuple[datetime, tuple[int, ...]]] = []

    def done(self, conversation: str, waiting: Sequence[Due]) -> bool:
        """Counted from its oldest row, so that a restart starts nothing anew."""
        until = self.until.pop(conversation, None)
        if until is None or until > self._now + self._span:  # the latter: the clock was set back
            until = min(self._now, *(row.created_at for row in waiting)) + self._span
        if until <= self._now:
            return True
        self._hold(conversation, waiting, until)
        return False

    def pause(self, conversation: str, waiting: Sequence[Due]) -> None:
        """Somebody speaks in it right now."""
        self._hold(conversation, waiting, self._now + self._span)

    def _hold(self, conversation: str, waiting: Sequence[Due], until: datetime) -> None:
        self.until[conversation] = until
        self.held.append((until, tuple(row.id for row in waiting)))


def _follow_ups(live: Sequence[Due], gathering: _Gathering, busy: frozenset[str]) -> Iterator[Batch]:
    """What was tried before, under its own key; and what is new about the incidents of a digest. One at a time in a conversation."""
    taken = set(busy)
    for key, again in _grouped(live, lambda row: row.digest).items():
        home = home_of(key)
        if home in taken:
            gathering.pause(home, again)
        else:
            taken.add(home)
            yield Batch(key, home, tuple(again))
    for home, news in _grouped(live, lambda row: row.home if row.digest is None else None).items():
        if home in taken:
            gathering.pause(home, news)
        elif gathering.done(home, news):
            yield Batch(f"{home}/{_hash(news)}", home, tuple(news))


def _is_fresh(row: Due) -> bool:
    """Never tried, and the first that this channel hears of its incident."""
    return row.attempts == 0 and row.digest is None and not row.told


def _within_allowance(fresh: Sequence[Due], digest_from: int | None, spoken: Spoken) -> tuple[list[Due], list[Due]]:
    """Those that may be told one by one, and the others. What was said of lesser incidents takes nothing from the worse."""
    if digest_from is None:
        return list(fresh), []
    said = {severity: sum(other <= severity for _, other in spoken.alone) for severity in {row.severity for row in fresh}}
    allowed: list[Due] = []
    beyond: list[Due] = []
    for row in fresh:  # the worst first: all that are allowed so far are at least as bad
        (allowed if len(allowed) + said[row.severity] < digest_from else beyond).append(row)
    return allowed, beyond


def _grouped(rows: Iterable[Due], by: Callable[[Due], str | None]) -> dict[str, list[Due]]:
    found: dict[str, list[Due]] = {}
    for row in rows:
        name = by(row)
        if name is not None:
            found.setdefault(name, []).append(row)
    return found


def _turn_of(unit: Due | Batch) -> tuple[int, bool, int]:
    """The worst first; of the same severity what says the most, then the oldest."""
    if isinstance(unit, Due):
        return unit.severity, True, unit.id
    return min(row.severity for row in unit.rows), False, min(row.id for row in unit.rows)


def _hash(rows: Sequence[Due]) -> str:
    """The same for the same rows, whoever claims them."""
    text = "\0".join(f"{row.id} {row.incident_id}" for row in sorted(rows, key=lambda row: row.id))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
