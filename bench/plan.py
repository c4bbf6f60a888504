"""How a run of the bench was asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """``say`` shows progress; ``folder`` is for state and logs, and is gone afterwards."""

    pairs: int
    quick: bool
    folder: Path
    say: Callable[[str], None]
