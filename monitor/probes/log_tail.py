"""Reading log files onwards: what was added since a position, across rotation, truncation and copies.

Owns how a file is found again that was renamed or copied away, and the bounds of one reading.
"""

import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from monitor.errors import CannotLook
from monitor.plugins import one_line
from monitor.probes_contract import LogFamily, LogPiece, LogPosition, RotatedLog

LINE_BYTES = 65_536
MAX_BEHIND_BYTES = 67_108_864
"""What is further behind is left out: nobody waits for a monitor that reads yesterday's gigabytes."""
MARK_BYTES = 256
MAX_ENTRIES = 10_000
"""Of a folder; the rest is not looked at."""
MAX_COPIES = 20
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, slots=True)
class _File:
    """An open regular file, as it was when it was opened: what is added meanwhile is for the next reading."""

    fd: int
    inode: int
    size: int
    written_ns: int

    def mark(self, offset: int) -> int:
        length = min(MARK_BYTES, offset)
        return zlib.crc32(os.pread(self.fd, length, offset - length)) if length else 0

    def continues(self, position: LogPosition) -> bool:
        """Whether what was read before is still in front of the position."""
        return self.size >= position.offset and self.mark(position.offset) == position.mark

    def at(self, offset: int) -> LogPosition:
        return LogPosition(self.inode, offset, self.mark(offset))


@dataclass(frozen=True, slots=True)
class _Beside:
    """A rotated part of a log."""

    path: Path
    inode: int
    size: int
    written_ns: int

    @property
    def plain(self) -> bool:
        return self.path.suffix not in COMPRESSED


@dataclass(slots=True)
class _Step:
    """A stretch to read. ``ended``: nobody writes to the file any more, so that its last line counts without an end."""

    file: _File
    offset: int
    ended: bool

    @property
    def left(self) -> int:
        return self.file.size - self.offset


@dataclass(slots=True)
class _Route:
    """What is to be read, in order; the last step is where the next reading goes on."""

    steps: list[_Step]
    rotated: bool = False
    truncated: bool = False
    missed: int = 0


@dataclass(slots=True)
class _Taken:
    lines: list[str] = field(default_factory=list)
    used: int = 0
    missed: int = 0


def read_on(path: str, position: LogPosition | None, *, max_bytes: int, stopped: Callable[[], bool] = lambda: False) -> LogPiece:
    """See :meth:`monitor.probes_contract.LogReader.read_on`. Raises ``OSError`` and ``CannotLook``."""
    # A budget of two lines always gets forward.
    budget = max(max_bytes, 2 * LINE_BYTES)
    with ExitStack() as stack:
        current = stack.enter_context(_opened(path))
        if position is None:
            route = _Route([_Step(current, max(0, current.size - budget), False)])
        else:
            route = _route(path, current, position, stack)
            route.missed += _leave_out(route.steps)
        taken = _Taken(missed=route.missed)
        for number, step in enumerate(route.steps):
            _take(step, budget - taken.used, taken)
            last = number == len(route.steps) - 1
            if last or step.left or stopped():
                break
        done = last and step.offset + _unended(step) >= step.file.size
        if position is None:
            taken.missed = 0  # a first reading begins somewhere; it misses nothing
        return LogPiece(
            lines=tuple(taken.lines),
            position=step.file.at(step.offset),
            size_bytes=current.size,
            rotated=route.rotated and step.file is current,
            truncated=route.truncated and step.file is current,
            missed_bytes=taken.missed,
            more=not done,
        )


def family(path: str) -> LogFamily:
    """See :meth:`monitor.probes_contract.LogReader.family`. Raises ``OSError`` and ``CannotLook``."""
    with _opened(path) as current:
        head = os.pread(current.fd, 4096, 0).partition(b"\n")[0]
        beside = _beside(path, current)
        folder_bytes = 0
        with os.scandir(Path(path).resolve().parent) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                if status := _status_of(entry):
                    folder_bytes += status.st_blocks * 512
        return LogFamily(
            inode=current.inode,
            size_bytes=current.size,
            written_at=_when(current.written_ns),
            first_line=one_line(head.decode("utf-8", "replace"), limit=1000),
            rotated=tuple(RotatedLog(part.path.name, part.size, _when(part.written_ns)) for part in reversed(beside)),
            folder_bytes=folder_bytes,
        )


def _when(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)


@contextmanager
def _opened(path: str | Path) -> Iterator[_File]:
    """A regular file; anything else (a pipe, a device) could block for ever or never end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CannotLook(f"the log file {path} is not a regular file")
        yield _File(fd, status.st_ino, status.st_size, status.st_mtime_ns)
    finally:
        os.close(fd)


# --- where to go on --------------------------------------------------------------------------------------------------


def _route(path: str, current: _File, position: LogPosition, stack: ExitStack) -> _Route:
    """From the position to the end of the current file, through the files that were rotated since."""
    if current.inode == position.inode and current.continues(position):
        return _Route([_Step(current, position.offset, False)])
    beside = _beside(path, current)
    renamed = current.inode != position.inode
    found = _read_before(beside, position, stack)
    if found is None:
        compressed = next((part for part in reversed(beside) if not part.plain), None)
        missed = max(0, _inflated_size(compressed) - position.offset) if compressed else 0
        later = [part for part in beside if compressed and part.plain and part.written_ns > compressed.written_ns]
        steps = [_Step(file, 0, True) for file in _open_all(later, stack)]
        return _Route([*steps, _Step(current, 0, False)], rotated=renamed, truncated=not renamed, missed=missed)
    later = [part for part in beside if part.plain and part.written_ns > found.written_ns and part.inode != found.inode]
    if found.inode == position.inode and not later and not current.size:
        # The file is renamed, but its writer may not have noticed yet: it goes on there until the new one holds something.
        return _Route([_Step(found, position.offset, False)])
    files = [found, *_open_all(later, stack)]
    steps = [_Step(file, position.offset if file is found else 0, True) for file in files]
    return _Route([*steps, _Step(current, 0, False)], rotated=renamed, truncated=not renamed)


def _read_before(beside: list[_Beside], position: LogPosition, stack: ExitStack) -> _File | None:
    """The renamed file, or the copy that was made before the file was truncated."""
    renamed = [part for part in beside if part.inode == position.inode]
    copies = [part for part in reversed(beside) if part.plain and position.offset][:MAX_COPIES]
    for file in _open_all([*renamed, *copies], stack):
        if file.continues(position):
            return file
    return None


def _open_all(parts: list[_Beside], stack: ExitStack) -> Iterator[_File]:
    for part in parts:
        try:
            yield stack.enter_context(_opened(part.path))
        except (OSError, CannotLook):
            continue  # moved on meanwhile, or not ours to read


def _beside(path: str, current: _File) -> list[_Beside]:
    """The rotated parts of the log, first written first, beside the path and beside what it links to."""
    places = {Path(path).absolute(), Path(path).resolve()}
    parts: dict[int, _Beside] = {}
    for place in places:
        stem, suffix, name = re.escape(place.stem), re.escape(place.suffix), re.escape(place.name)
        packed = "|".join(map(re.escape, COMPRESSED))
        # name.1, name.2026-11-24, name-20261124.gz, name.old; and with logrotate's "extension": stem-20261124.log
        rotated = re.compile(rf"(?:{name}[-._](?:\d[\w.:-]*|old|bak)|{stem}[-._]?\d[\d._:T-]*{suffix})(?:{packed})?")
        with os.scandir(place.parent) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                if rotated.fullmatch(entry.name) and (status := _status_of(entry)) and status.st_ino != current.inode:
                    parts[status.st_ino] = _Beside(Path(entry.path), status.st_ino, status.st_size, status.st_mtime_ns)
    return sorted(parts.values(), key=lambda part: (part.written_ns, part.path.name))


def _status_of(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _inflated_size(part: _Beside) -> int:
    """What a gzip file says that it holds; 0 when it does not tell."""
    if part.path.suffix != ".gz" or part.size < 18:
        return 0
    try:
        with _opened(part.path) as file:
            return int.from_bytes(os.pread(file.fd, 4, file.size - 4), "little")
    except (OSError, CannotLook):
        return 0


def _leave_out(steps: list[_Step]) -> int:
    """Go forward to where no more than ``MAX_BEHIND_BYTES`` are left to read. Returns the bytes passed over."""
    too_much = max(0, sum(step.left for step in steps) - MAX_BEHIND_BYTES)
    left_out = too_much
    for step in steps:
        passed = min(too_much, step.left)
        step.offset += passed
        too_much -= passed
    return left_out


# --- reading ---------------------------------------------------------------------------------------------------------


def _take(step: _Step, budget: int, taken: _Taken) -> None:
    """Take whole lines, at most ``budget`` bytes of them, and move the step behind them."""
    fd, begin = step.file.fd, 0
    data = os.pread(fd, min(budget, step.left), step.offset)
    if step.offset and os.pread(fd, 1, step.offset - 1) != b"\n":
        begin = data.find(b"\n") + 1 or len(data)  # inside a line that was cut: its rest is no line
        taken.missed += begin
    end = max(begin, data.rfind(b"\n") + 1)
    at_end = step.offset + len(data) >= step.file.size
    if len(data) - end > LINE_BYTES or (step.ended and at_end):
        end = len(data)
    step.offset += end
    taken.used += len(data)
    whole = data if begin == 0 and end == len(data) else data[begin:end]
    del data
    if not whole:
        return
    for line in whole.removesuffix(b"\n").split(b"\n"):
        if len(line) > LINE_BYTES:
            taken.missed += len(line) - LINE_BYTES
        # A writer that does not append leaves a hole of zeros where the file was truncated.
        taken.lines.append(line[:LINE_BYTES].strip(b"\r\0").decode("utf-8", "replace"))


def _unended(step: _Step) -> int:
    """Length of the last line when it has no end yet and is all that is left; else 0."""
    if not 0 < step.left <= LINE_BYTES:
        return 0
    return step.left if b"\n" not in os.pread(step.file.fd, step.left, step.offset) else 0
