"""Ends the platform's processes when the process that started them is gone, even by ``kill -9``. Run as a program, by path.

Reads lines from the pipe that only its parent holds open: ``+ PID SIGNAL``, ``- PID``, ``rm FOLDER``; their end is the parent's end.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time

GRACE_S = 3.0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _end(children: dict[int, int]) -> None:
    """Ask each child with its own signal, then take the rest away, with their process groups."""
    for pid, number in children.items():
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    deadline = time.monotonic() + GRACE_S
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        select.select((), (), (), 0.05)
    for pid in children:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    children: dict[int, int] = {}
    folders: list[str] = []
    for line in sys.stdin:
        match line.rstrip("\n").split(" ", 2):
            case ["+", pid, with_signal]:
                children[int(pid)] = int(with_signal)
            case ["-", pid]:
                children.pop(int(pid), None)
            case ["rm", folder]:
                folders.append(folder)
    _end(children)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
