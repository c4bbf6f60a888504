"""Reading log files: onwards from a position, and from their end the last lines that hold a text.

Owns the bounds that keep a huge file, an endless line, binary rubbish or a dead disk from hurting the monitor.
"""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from monitor.errors import CannotLook
from monitor.plugins import one_line
from monitor.probes import log_tail
from monitor.probes.beside import BesideTheLoop, Stopped
from monitor.probes_contract import LogFamily, LogPiece, LogPosition

BLOCK_BYTES = 65_536
LOOK_BACK_BYTES = 268_435_456
"""Only the last 256 MiB of a file are looked at."""
SHOWN_CHARS = 2_000

T = TypeVar("T")


class LogFiles:
    """Implements :class:`monitor.plugins.Logs` and :class:`monitor.probes_contract.LogReader` on files of this machine."""

    def __init__(self) -> None:
        self._beside = BesideTheLoop()

    async def matching(self, path: str, text: str, *, limit: int) -> tuple[str, ...]:
        """The last ``limit`` lines of ``path`` that contain ``text`` literally, oldest first, each cut to one printable line.

        Memory stays below a few blocks, whatever the file holds.

        Raises ``CannotLook`` when the file cannot be read within a few seconds.
        """

        def look(stopped: Stopped) -> tuple[str, ...]:
            found: list[str] = []
            with _open(path) as file:
                for line in _matching_backwards(file, text.encode()):
                    if stopped() or len(found) >= limit:
                        break
                    if line is not None:
                        found.append(one_line(line.decode("utf-8", "replace"), limit=SHOWN_CHARS))
            return tuple(reversed(found))

        return await self._in_thread(path, look)

    async def read_on(self, path: str, position: LogPosition | None, *, max_bytes: int = 8_388_608) -> LogPiece:
        return await self._in_thread(path, lambda stopped: log_tail.read_on(path, position, max_bytes=max_bytes, stopped=stopped))

    async def family(self, path: str) -> LogFamily:
        return await self._in_thread(path, lambda _: log_tail.family(path))

    async def _in_thread(self, path: str, look: Callable[[Stopped], T]) -> T:
        try:
            return await self._beside(f"reading the log file {path}", look)
        except OSError as exc:
            raise CannotLook(f"the log file {path} cannot be read: {exc.strerror or exc}{_CURES.get(type(exc), '')}") from exc


_CURES: dict[type[OSError], str] = {
    FileNotFoundError: ": is the path right, and did the service ever write there?",
    PermissionError: ": let the monitor's user into the group of the file",
}


def _open(path: str) -> BinaryIO:
    """Open a regular file; anything else (a pipe, a device) could block for ever or never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CannotLook(f"the log file {path} is not a regular file")
    return Path(path).open("rb")


class _Line:
    """One line growing leftwards: whether the needle was seen in it, and its first bytes."""

    def __init__(self, needle: bytes) -> None:
        self._needle = needle
        self._kept_bytes = max(4 * SHOWN_CHARS, len(needle))
        self.matches = False
        self.head = b""

    def prepend(self, piece: bytes) -> None:
        self.matches = self.matches or self._needle in piece + self.head[: max(0, len(self._needle) - 1)]
        self.head = (piece + self.head)[: self._kept_bytes]


def _matching_backwards(file: BinaryIO, needle: bytes, *, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes | None]:
    """Lines with the needle, last first; None after each block, so that the reader may stop between two."""
    position = file.seek(0, os.SEEK_END)
    floor = max(0, position - LOOK_BACK_BYTES)
    line = _Line(needle)
    last = True
    while position > floor:
        start = max(floor, position - block_bytes)
        file.seek(start)
        block = file.read(position - start)
        position = start
        yield None
        pieces = block.split(b"\n") if needle in block else _outer_pieces(block)
        for piece in reversed(pieces[1:]):
            line.prepend(piece)
            if line.matches and not (last and not line.head):
                yield line.head
            line, last = _Line(needle), False
        line.prepend(pieces[0])
    if line.matches and not (last and not line.head):
        yield line.head


def _outer_pieces(block: bytes) -> list[bytes]:
    """The first and the last piece of a block whose inner lines do not matter."""
    first, newline, rest = block.partition(b"\n")
    return [first, rest.rpartition(b"\n")[2]] if newline else [first]
