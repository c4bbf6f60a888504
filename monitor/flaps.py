"""The last outcomes of every check and which checks flap by them: kept over a restart, so that what swings is not taken for calm."""

from collections.abc import Iterable
from datetime import datetime

import msgspec
import structlog

from alerts.flapping import is_flapping
from monitor.domain import Outcome
from monitor.memory import Entry

RECENT_OUTCOMES = 30
"""As many as the status page draws."""
KEPT_AS = "engine/outcomes"
"""The name of the entry among those that checks keep; no check instance has it."""
SHAPE = "outcomes-1"
SAVE_EVERY_S = 15.0

log = structlog.get_logger("monitor.flaps")


class Flaps:
    """``recent`` and ``flapping`` go by instance key."""

    def __init__(self) -> None:
        self.recent: dict[str, tuple[Outcome, ...]] = {}
        self.flapping: set[str] = set()
        self._unsaved = False
        self._saved_at = float("-inf")

    def see(self, key: str, outcome: Outcome) -> None:
        """Take one more result into account."""
        before, was = self.recent.get(key, ()), key in self.flapping
        after = (*before[1 - RECENT_OUTCOMES :], outcome)
        if after == before and not was:  # as nearly always: all of a kind
            return
        self.recent[key] = after
        self._unsaved = self._unsaved or _swung(before) or _swung(after)
        if is_flapping(after, was) is was:
            return
        (self.flapping.discard if was else self.flapping.add)(key)
        log.info("check is calm again" if was else "check flaps: one alert stays open until it is calm", check=key)

    def forget(self, key: str) -> None:
        self.recent.pop(key, None)
        self.flapping.discard(key)

    def load(self, entries: Iterable[Entry]) -> None:
        """Go on where the last process was; outcomes seen since come behind."""
        for entry in entries:
            if entry.instance != KEPT_AS or entry.shape != SHAPE:
                continue
            kept = msgspec.json.decode(entry.content, type=dict[str, tuple[bool, list[Outcome]]])
            for key, (flaps, outcomes) in kept.items():
                self.recent[key] = (*outcomes, *self.recent.get(key, ()))[-RECENT_OUTCOMES:]
                if is_flapping(self.recent[key], flaps):
                    self.flapping.add(key)

    def take_unsaved(self, now: datetime, monotonic: float, *, whole: bool = False) -> tuple[Entry, ...]:
        """What to keep of those that swung lately, when that changed; now and then only, unless ``whole``."""
        if not self._unsaved or (monotonic - self._saved_at < SAVE_EVERY_S and not whole):
            return ()
        self._unsaved, self._saved_at = False, monotonic
        kept = {key: (key in self.flapping, outcomes) for key, outcomes in self.recent.items() if _swung(outcomes)}
        return (Entry(KEPT_AS, SHAPE, now, msgspec.json.encode(kept)),)

    def give_back(self) -> None:
        """What was taken could not be kept."""
        self._unsaved, self._saved_at = True, float("-inf")


def _swung(outcomes: tuple[Outcome, ...]) -> bool:
    return bool(outcomes) and outcomes.count(outcomes[0]) != len(outcomes)
