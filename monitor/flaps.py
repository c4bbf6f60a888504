"""The last outcomes of every check and which of its findings flap: kept over a restart, so that what swings is not taken for calm."""

from collections.abc import Iterable
from datetime import datetime

import msgspec
import structlog

from alerts.decide import fingerprints_of
from alerts.flapping import NOTHING, Swings
from monitor.domain import CheckResult, Outcome
from monitor.memory import Entry

RECENT_OUTCOMES = 30
"""As many as the status page draws."""
KEPT_AS = "engine/outcomes"
"""The name of the entry among those that checks keep; no check instance has it."""
SHAPE = "outcomes-2"
SAVE_EVERY_S = 15.0

log = structlog.get_logger("monitor.flaps")


class _Kept(msgspec.Struct):
    """What is kept of an instance whose outcomes or findings swung lately."""

    outcomes: tuple[Outcome, ...]
    results: tuple[frozenset[str], ...]
    flapping: frozenset[str]


class Flaps:
    """``recent`` and ``flapping`` go by instance key; of an instance without an entry in ``flapping`` nothing flaps."""

    def __init__(self) -> None:
        self.recent: dict[str, tuple[Outcome, ...]] = {}
        self.flapping: dict[str, frozenset[str]] = {}
        """Fingerprints."""
        self._swings: dict[str, Swings] = {}
        """Of instances that found something lately; of the others it is known that they did not."""
        self._unsaved = False
        self._saved_at = float("-inf")

    def see(self, result: CheckResult) -> None:
        """Take one more result into account."""
        key = result.instance
        before, swings = self.recent.get(key, ()), self._swings.get(key)
        after = (*before[1 - RECENT_OUTCOMES :], result.outcome)
        if after == before and swings is None and result.outcome is not Outcome.FOUND:  # as nearly always: all of a kind
            return
        self.recent[key] = after
        swings = swings or Swings((NOTHING,) if Outcome.OK in before else ())
        swung = swings.swung
        swings.see(result.outcome, frozenset(fingerprints_of(result)) if result.outcome is Outcome.FOUND else NOTHING)
        self._unsaved = self._unsaved or swung or swings.swung or _swung(before) or _swung(after)
        self._put(key, swings)

    def _put(self, key: str, swings: Swings) -> None:
        if any(swings.results):
            self._swings[key] = swings
        else:
            self._swings.pop(key, None)
        was = self.flapping.get(key, NOTHING)
        if swings.flapping == was:
            return
        self.flapping.pop(key, None)
        if swings.flapping:
            self.flapping[key] = swings.flapping
        if swings.flapping - was:
            log.info("a finding comes and goes: one alert stays open until it is calm", check=key, flapping=len(swings.flapping))
        elif not swings.flapping:
            log.info("check is calm again", check=key)

    def forget(self, key: str) -> None:
        self.recent.pop(key, None)
        self.flapping.pop(key, None)
        self._swings.pop(key, None)

    def load(self, entries: Iterable[Entry]) -> None:
        """Go on where the last process was; outcomes seen since come behind. What an older version kept says too little."""
        for entry in entries:
            if entry.instance != KEPT_AS or entry.shape != SHAPE:
                continue
            for key, kept in msgspec.json.decode(entry.content, type=dict[str, _Kept]).items():
                self.recent[key] = (*kept.outcomes, *self.recent.get(key, ()))[-RECENT_OUTCOMES:]
                swings = Swings(kept.results, kept.flapping)
                for found in self._swings.pop(key, Swings()).results:
                    swings.see(Outcome.FOUND if found else Outcome.OK, found)
                self._put(key, swings)

    def take_unsaved(self, now: datetime, monotonic: float, *, whole: bool = False) -> tuple[Entry, ...]:
        """What to keep of those that swung lately, when that changed; now and then only, unless ``whole``."""
        if not self._unsaved or (monotonic - self._saved_at < SAVE_EVERY_S and not whole):
            return ()
        self._unsaved, self._saved_at = False, monotonic
        kept = {}
        for key, outcomes in self.recent.items():
            swings = self._swings.get(key) or Swings()
            if swings.swung or _swung(outcomes):
                kept[key] = _Kept(outcomes, swings.results, swings.flapping)
        return (Entry(KEPT_AS, SHAPE, now, msgspec.json.encode(kept)),)

    def give_back(self) -> None:
        """What was taken could not be kept."""
        self._unsaved, self._saved_at = True, float("-inf")


def _swung(outcomes: tuple[Outcome, ...]) -> bool:
    return bool(outcomes) and outcomes.count(outcomes[0]) != len(outcomes)
