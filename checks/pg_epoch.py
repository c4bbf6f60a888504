"""Counters that only grow, compared with the previous run: what was added, and over how long.

A counter that became smaller, or a new reset time of the statistics, begins a new epoch: nothing can be said of the time before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import sub
from typing import Any


@dataclass(frozen=True, slots=True)
class Delta:
    """What was added to each counter in ``seconds``, by the server's clock."""

    seconds: float
    added: Mapping[str, float]


def kept_counters(epoch: str, at_s: float, counters: Mapping[str, float]) -> dict[str, Any]:
    """What to keep for the next run. ``epoch`` is the reset time of the statistics, ``at_s`` the server's clock, Unix seconds."""
    return {"epoch": epoch, "at_s": at_s, "counters": dict(counters)}


def since(before: object, epoch: str, at_s: float, counters: Mapping[str, float]) -> Delta | None:
    """The delta to ``before``, what the previous run kept; None at the first run and in a new epoch."""
    if not isinstance(before, dict) or before.get("epoch") != epoch or at_s <= before.get("at_s", at_s):
        return None
    numbers = counters.values()
    old = map(before["counters"].get, counters, numbers)  # to a counter that is new, nothing was added
    added = dict(zip(counters, map(sub, numbers, old), strict=True))
    if min(added.values(), default=0) < 0:
        return None
    return Delta(at_s - before["at_s"], added)
