"""Looking at files and disks beside the event loop: a dead disk or a hung mount holds one thread, never the monitor."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from monitor.errors import CannotLook

WITHIN_S = 5.0

T = TypeVar("T")
Stopped = Callable[[], bool]
"""Asked now and then by what looks for long: whether nobody waits for it any more."""


class BesideTheLoop:
    """Runs what blocks in threads, each within ``within_s``.

    A thread that hangs for ever is left behind, and no other one follows it to the same place.
    """

    def __init__(self, *, within_s: float = WITHIN_S) -> None:
        self._within_s = within_s
        self._hanging: set[str] = set()
        """What was given up while its thread still hangs there."""

    async def __call__(self, what: str, look: Callable[[Stopped], T]) -> T:
        """Do ``look``. ``what`` names it in words, such as ``reading the log file /var/log/x``.

        Raises ``CannotLook`` when it takes too long; what ``look`` raises passes through.
        """
        if what in self._hanging:
            raise CannotLook(f"an earlier attempt at {what} still hangs: is its disk slow or gone?")
        given_up, started, finished = threading.Event(), threading.Event(), threading.Event()

        def run() -> T:
            started.set()
            try:
                return look(given_up.is_set)
            finally:
                finished.set()
                self._hanging.discard(what)

        try:
            async with asyncio.timeout(self._within_s):
                return await asyncio.to_thread(run)
        except TimeoutError as exc:
            raise CannotLook(f"{what} took longer than {self._within_s:g} s: is its disk slow or gone?") from exc
        finally:
            given_up.set()
            if started.is_set():
                self._hanging.add(what)
            if finished.is_set():
                self._hanging.discard(what)
