"""The processes of a measurement: workers that answer commands, one JSON line each, and foreign programs.

A worker runs ``await answer_commands(handle)``; its parent holds a ``Worker`` and asks.
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from bench.measure import BenchError, tree_cpu_s, tree_rss_bytes

START_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
LOOK_EVERY_S = 0.05


async def answer_commands(handle: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], **ready: object) -> None:
    """Say what is ready, then answer every command until standard input ends."""
    _say({"ready": True, **ready})
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(await handle(json.loads(line)))


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


class Worker:
    """``python -m MODULE ARGS`` in a process of its own; a context manager."""

    def __init__(self, module: str, *args: object) -> None:
        self._name = module
        command = [sys.executable, "-m", module, *map(str, args)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Worker":
        self.ready = self._hear()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        end(self._process)
        self._process.stdout.close()

    def ask(self, **command: object) -> dict[str, Any]:
        """Give a command and wait for its answer. Raises ``BenchError`` when the worker ends instead."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def cpu_s(self) -> float:
        """CPU seconds used so far, by the whole tree."""
        return tree_cpu_s(self._process.pid)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended before it answered: its own words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Program:
    """A foreign server in a process of its own, ready when ``url`` answers; a context manager."""

    def __init__(self, command: list[str], *, url: str, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command, self._url, self._log, self._environment = command, url, log, environment

    def __enter__(self) -> "Program":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        end(self._process)

    def cpu_s(self) -> float:
        """CPU seconds used so far, by the whole tree."""
        return tree_cpu_s(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def rss_bytes(self) -> int:
        """Resident memory, of the whole tree."""
        return tree_rss_bytes(self._process.pid)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                with urllib.request.urlopen(self._url, timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                last_words = self._log.read_text(errors="replace")[-500:]
                if self._process.poll() is not None:
                    raise BenchError(f"{self._command[0]} ended at once: {last_words}") from None
                if time.monotonic() > deadline:
                    raise BenchError(f"{self._command[0]} is not ready after {START_WITHIN_S:g} s: {last_words}") from None
                time.sleep(LOOK_EVERY_S)  # between two looks at a peer that is starting


def end(process: "subprocess.Popen[Any]") -> None:
    """Wait for a process that was told to end; kill it when it does not."""
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
