"""What a measurement is: CPU time of a process tree, the cells of A B A B runs, and the figure they come to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

MAX_SPREAD = 0.25
"""A larger range, as a share of the median, is no result."""
MIN_CELL_CPU_S = 1.0


class BenchError(Exception):
    """A measurement that would not be honest: errors, unequal work, a process that does not start."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of one side: the CPU seconds it took, and how many things it did in them."""

    cpu_s: float
    done: int


@dataclass(frozen=True, slots=True)
class Side:
    """All cells of one side, in the figure's unit. ``why_not`` says why they are no result."""

    values: tuple[float, ...]
    why_not: str = ""

    @property
    def median(self) -> float | None:
        return None if self.why_not or not self.values else median(self.values)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    ours: Side
    peer: Side | None
    peer_name: str
    """The peer with its version, or why there is none."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know to judge the line."""

    @property
    def ratio(self) -> float | None:
        """Ours as a share of the peer's; None when either is no result."""
        peer = self.peer.median if self.peer else None
        return self.ours.median / peer if self.ours.median is not None and peer else None

    def as_json(self) -> dict[str, str | float | None]:
        peer = self.peer.median if self.peer else None
        return {"name": self.name, "unit": self.unit, "ours": self.ours.median, "peer": peer, "ratio": self.ratio}


def cost(cells: Sequence[Cell], *, per: int, scale: float = 1.0, quick: bool) -> Side:
    """CPU for ``per`` things, in seconds times ``scale``."""
    return _side(cells, tuple(cell.cpu_s / cell.done * per * scale for cell in cells), quick=quick)


def speed(cells: Sequence[Cell], *, quick: bool) -> Side:
    """Things done per CPU-second."""
    return _side(cells, tuple(cell.done / cell.cpu_s for cell in cells), quick=quick)


def _side(cells: Sequence[Cell], values: tuple[float, ...], *, quick: bool) -> Side:
    """Apply the rules of a fair comparison; a quick run proves that the bench works, not what it measures."""
    if quick:
        return Side(values)
    shortest_s = min(cell.cpu_s for cell in cells)
    if shortest_s < MIN_CELL_CPU_S:
        return Side(values, f"a cell took only {shortest_s:.2f} CPU-s")
    spread = (max(values) - min(values)) / median(values)
    return Side(values, f"spread {spread:.0%}" if spread > MAX_SPREAD else "")


def tree_cpu_s(pid: int) -> float:
    """User and system time of a process, of its living descendants, and of those it has reaped."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(part.user + part.system + part.children_user + part.children_system for part in times))


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of a process and of its living descendants."""
    root = psutil.Process(pid)
    return int(sum(process.memory_info().rss for process in (root, *root.children(recursive=True))))


def peak_rss_bytes(pid: int) -> int:
    """The most memory that one process ever had resident."""
    with Path(f"/proc/{pid}/status").open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
