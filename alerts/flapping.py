"""Whether what a check finds comes and goes: one alert that stays open then tells more than many that open and close. Pure.

The measure is Icinga's, for each finding by itself: of the last 20 results, the changes from one to the next, the newer ones weighing
more; above 30 % it flaps, until it is below 25 % again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from monitor.domain import Outcome

RESULTS = 20
ENTER, LEAVE = 0.30, 0.25
NOTHING: frozenset[str] = frozenset()


def change_share(found: Sequence[bool]) -> float:
    """How much the last results change, from 0 to 1. Missing ones count as unchanged."""
    changed = [before is not after for before, after in pairwise(found[-RESULTS - 1 :])]
    first = RESULTS - len(changed)
    return sum(0.8 + 0.02 * (first + place) for place, change in enumerate(changed) if change) / RESULTS


def is_flapping(found: Sequence[bool], was: bool) -> bool:
    """Whether it flaps now, given whether it did before."""
    return change_share(found) > (LEAVE if was else ENTER)


@dataclass(slots=True)
class Swings:
    """What the last results of one instance found, by fingerprint, and which of these flap. A run that could not look says nothing."""

    results: tuple[frozenset[str], ...] = ()
    flapping: frozenset[str] = NOTHING

    @property
    def swung(self) -> bool:
        """Whether anything came or went."""
        return any(found != self.results[0] for found in self.results)

    def see(self, outcome: Outcome, found: frozenset[str]) -> None:
        """Take one more result into account."""
        if outcome is Outcome.BLIND:
            return
        self.results = (*self.results[-RESULTS:], found)
        if not self.swung:
            self.flapping = NOTHING
            return
        every = frozenset[str]().union(*self.results)
        self.flapping = frozenset([one for one in every if is_flapping([one in seen for seen in self.results], one in self.flapping)])
