"""Stretches: the runs in a row of one check instance that saw the same. They are what ``monitor simulate`` replays.

Owns the stretch that each instance is in, between two writes to the store. A change is written within a second; a stretch that only
goes on is written every few minutes and at the end, so that many quiet checks cost next to nothing.
"""

from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from monitor.config.settings import CheckInstance
from monitor.domain import CheckResult, Finding, Labels, Outcome, Severity
from monitor.memory import shape_of

EARLY = 8
"""So many runs at the begin of a stretch are kept with their own moments: confirmation and recovery happen in them."""
EXTEND_EVERY_S = 300.0
MOST_WAITING = 100_000
MOST_AT_ONCE = 2_000
"""So many open stretches are written at once: 10,000 in one go would hold up the loop."""
VALUE_BAND = 0.10
VALUE_SETTLES = timedelta(minutes=1)
"""A value that leaves its band begins another stretch, at most so often."""
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Seen:
    """One finding, as far as it decides who is told."""

    kind: str
    labels: Labels
    severity: Severity
    """As it was judged then."""
    said: Severity | None
    """What the check itself said beside its declaration, before the configuration's severity rules."""
    value: float | None
    summary: str

    @property
    def identity(self) -> tuple[object, ...]:
        return self.kind, self.labels, self.severity, self.said


@dataclass(frozen=True, slots=True)
class Stretch:
    """Runs in a row of one instance with the same outcome and the same findings."""

    instance: str
    first_at: datetime
    last_at: datetime
    runs: int
    outcome: Outcome
    seen: tuple[Seen, ...]
    error: str
    """Why the first run was BLIND."""
    early: tuple[int, ...]
    """The second run and those after it, up to ``EARLY`` in all, in microseconds after ``first_at``."""
    shape: str
    """A digest of the check and its own configuration then."""
    starts: bool
    """Whether it is the first since the monitor was started."""

    def moments(self) -> Iterator[datetime]:
        """When each run ended: exactly at the begin, evenly spread after it."""
        yield self.first_at
        for offset in self.early:
            yield self.first_at + offset * MICROSECOND
        known = 1 + len(self.early)
        since = self.first_at + (self.early[-1] * MICROSECOND if self.early else timedelta(0))
        rest = self.runs - known
        for number in range(1, rest + 1):
            yield since + (self.last_at - since) * number / rest


@dataclass(slots=True)
class _Open:
    """The stretch that an instance is in. ``early`` is text: one small object instead of a tuple of numbers, times 10,000."""

    first_at: datetime
    last_at: datetime
    runs: int
    outcome: Outcome
    seen: tuple[Seen, ...]
    error: str
    early: str
    shape: str
    starts: bool

    def add(self, at: datetime) -> None:
        if self.runs < EARLY:
            self.early += f"{' ' if self.early else ''}{(at - self.first_at) // MICROSECOND}"
        self.runs += 1
        self.last_at = at

    def as_stretch(self, instance: str) -> Stretch:
        early = tuple(map(int, self.early.split()))
        return Stretch(
            instance, self.first_at, self.last_at, self.runs, self.outcome, self.seen, self.error, early, self.shape, self.starts
        )


class Stretches:
    """Collects. ``see`` every result, write what ``take`` gives, and ``give_back`` what could not be written."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._shapes: dict[str, str] = {}
        self._changed: set[str] = set()
        """Instances whose stretch is to be written soon."""
        self._grown: set[str] = set()
        """Instances whose stretch has only gone on since it was written."""
        self._ended: deque[Stretch] = deque(maxlen=MOST_WAITING)
        self._next_extension = 0.0

    def see(self, instance: CheckInstance, result: CheckResult, *, quiet: bool) -> None:
        """Take one result. ``quiet``: the instance has no alert, so that nothing hangs on when its next runs were."""
        key, at = instance.key, result.started_at + timedelta(seconds=result.duration_s)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = shape_of(instance)
        stands = self._open.get(key)
        seen = _seen(result) if result.observed.findings else ()
        if stands is not None:
            on_time = at >= stands.last_at  # the clock may have been set back
            if (
                on_time
                and stands.outcome is result.outcome
                and stands.shape == shape
                and (not (seen or stands.seen) or _same(stands, seen, at))
            ):
                stands.add(at)
                (self._grown if quiet or stands.runs > EARLY else self._changed).add(key)
                return
            self._ended.append(stands.as_stretch(key))
        self._open[key] = _Open(at, at, 1, result.outcome, seen, result.error or "", "", shape, stands is None)
        self._changed.add(key)

    def adopt(self, instances: Container[str]) -> None:
        """Go by other settings: what is not among ``instances`` has ended, and the others may be configured otherwise."""
        self._shapes.clear()
        for key in [key for key in self._open if key not in instances]:
            self._ended.append(self._open.pop(key).as_stretch(key))
            self._changed.discard(key)
            self._grown.discard(key)

    def take(self, monotonic: float, *, whole: bool = False) -> tuple[Stretch, ...]:
        """What is to be written now; ``whole`` leaves nothing for later."""
        if whole or monotonic >= self._next_extension:
            self._changed |= self._grown
            self._next_extension = monotonic + EXTEND_EVERY_S
        self._grown -= self._changed
        chosen = list(self._changed if whole else islice(self._changed, MOST_AT_ONCE))
        taken = (*self._ended, *(self._open[key].as_stretch(key) for key in chosen))
        self._ended.clear()
        self._changed.difference_update(chosen)
        return taken

    def give_back(self, stretches: Iterable[Stretch]) -> None:
        """What could not be written is written with the next."""
        self._ended.extendleft(reversed(tuple(stretches)))


def _seen(result: CheckResult) -> tuple[Seen, ...]:
    if result.outcome is not Outcome.FOUND:
        return ()
    said = result.said or result.observed
    found = zip(result.observed.findings, said.findings, strict=True)
    return tuple(sorted((_one(judged, raw) for judged, raw in found), key=lambda one: (one.kind, one.labels)))


def _one(judged: Finding, raw: Finding) -> Seen:
    return Seen(judged.kind.name, judged.labels, judged.severity or judged.kind.severity, raw.severity, judged.value, judged.summary)


def _same(stands: _Open, seen: tuple[Seen, ...], at: datetime) -> bool:
    if [one.identity for one in seen] != [one.identity for one in stands.seen]:
        return False
    return at - stands.first_at < VALUE_SETTLES or all(map(_in_band, stands.seen, seen))


def _in_band(before: Seen, after: Seen) -> bool:
    if before.value is None or after.value is None:
        return before.value is after.value
    return abs(after.value - before.value) <= VALUE_BAND * abs(before.value)
