"""Child processes that never outlive the platform: each in its own process group, all of them known to a guard.

Owns starting, watching and ending them; ``services/guard.py`` ends them when this process is killed.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

POLL_S = 0.03
GRACE_S = 3.0
LOG_TAIL_BYTES = 1500
T = TypeVar("T")


class ProcessError(Exception):
    """A child could not be started, or did not come up; the message holds the end of its log."""


class Guard:
    """The process that cleans up after a killed parent. It holds a pipe whose other end only this process has."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program)], stdin=subprocess.PIPE, start_new_session=True, cwd="/", text=True, bufsize=1
        )

    def watch(self, pid: int, number: int = signal.SIGTERM) -> None:
        """End this process with that signal (and, seconds later, its group with SIGKILL) when we are gone."""
        self._tell(f"+ {pid} {int(number)}")

    def forget(self, pid: int) -> None:
        self._tell(f"- {pid}")

    def remove(self, folder: Path) -> None:
        """Delete this folder in the end, in any case."""
        self._tell(f"rm {folder}")

    def close(self) -> None:
        """Let it go: it ends what it still watches, deletes the folders, and exits."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(GRACE_S + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


class Child:
    """One program under the platform's care. ``log`` receives what it prints."""

    def __init__(self, name: str, argv: Sequence[str], *, log: Path, environment: Mapping[str, str], cwd: Path, guard: Guard) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.log = log
        self._environment = dict(environment)
        self._cwd = cwd
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it, unless it runs. Raises ``ProcessError``."""
        if self.pid is not None:
            return
        self._reaped()
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    cwd=self._cwd,
                    start_new_session=True,
                )
        except OSError as exc:
            raise ProcessError(f"{self.name}: cannot run {self.argv[0]}: {exc.strerror}") from exc
        self._guard.watch(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and its group, if it runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """Take it away as a crash would, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._wait(GRACE_S)

    def ask_to_stop(self) -> None:
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)  # one that was stopped could not hear the other

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop it, politely first. Idempotent."""
        self.ask_to_stop()
        if not self._wait(grace_s):
            self.kill()

    def tail(self) -> str:
        """The end of its log, for an error message."""
        try:
            text = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            text = ""
        return text or "(it printed nothing)"

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
        """Poll until ``ready()``. Raises ``ProcessError`` with the end of the log when it died or takes longer."""
        deadline = time.monotonic() + within_s
        while not await ready():
            if self.pid is None:
                raise ProcessError(f"{self.name} ended before {what}; the end of {self.log}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name}: no {what} within {within_s:g} s; the end of {self.log}:\n{self.tail()}")
            await asyncio.sleep(POLL_S)

    def _wait(self, within_s: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        self._reaped()
        return True

    def _reaped(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._guard.forget(self._process.pid)
            self._process = None


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking ``work`` and wait for its end even when cancelled: nothing half started may be left behind."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def stop_all(children: Iterable[Child]) -> None:
    """Stop them at the same time: all are asked first, then waited for."""
    running = list(children)
    for child in running:
        child.ask_to_stop()
    for child in running:
        child.stop()
