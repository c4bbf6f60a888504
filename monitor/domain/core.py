"""The words everything else is said in: labels and how bad."""

from collections.abc import Mapping
from enum import IntEnum

Labels = tuple[tuple[str, str], ...]
"""Label pairs sorted by name. Use :func:`pairs` to build one."""


def pairs(mapping: Mapping[str, object]) -> Labels:
    """Turn a mapping into sorted ``(name, str(value))`` pairs, the hashable form of labels and facts."""
    return tuple(sorted((name, str(value)) for name, value in mapping.items()))


class Severity(IntEnum):
    """How bad, as the runbook says it. Smaller is worse, so ``min`` picks the worst."""

    P1 = 1
    P2 = 2
    P3 = 3
    P4 = 4
