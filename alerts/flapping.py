"""Whether a check swings between good and bad: one alert that stays open then tells more than many that open and close. Pure.

The measure is Icinga's: of the last 20 results, the changes from one to the next, the newer ones weighing more; above 30 % it flaps,
until it is below 25 % again.
"""

from collections.abc import Sequence
from itertools import pairwise

from monitor.domain import Outcome

RESULTS = 20
ENTER, LEAVE = 0.30, 0.25


def change_share(recent: Sequence[Outcome]) -> float:
    """How much the last results change, from 0 to 1. Runs that could not look say nothing; missing ones count as unchanged."""
    if not recent or recent.count(recent[0]) == len(recent):  # as nearly always
        return 0.0
    seen = [outcome for outcome in recent if outcome is not Outcome.BLIND][-RESULTS - 1 :]
    changed = [before is not after for before, after in pairwise(seen)]
    first = RESULTS - len(changed)
    return sum(0.8 + 0.02 * (first + place) for place, change in enumerate(changed) if change) / RESULTS


def is_flapping(recent: Sequence[Outcome], was: bool) -> bool:
    """Whether it flaps now, given whether it did before."""
    return change_share(recent) > (LEAVE if was else ENTER)
