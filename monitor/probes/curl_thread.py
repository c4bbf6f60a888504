"""One thread that drives every exchange over libcurl through its own epoll set.

Owns concurrency, the queue before it, and reuse of handles; what an exchange means is told in ``http.py``.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import pycurl

from monitor.clock import Clock

CLOSE_WITHIN_S = 5.0
IDLE_HANDLES = 64
"""Easy handles kept for reuse; more are closed when a burst is over."""


class Transfer(Protocol):
    """One exchange on its way through the thread."""

    abandoned: bool
    """Nobody waits any more: never start it, and stop it when it runs."""
    trust: str
    """The CA bundle that it is verified against; the same word for the same bundle."""
    leaves_traces: bool
    """Sets options of its own on the handle, which must not meet another transfer."""

    def begin(self, handle: pycurl.Curl) -> bool:
        """Prepare the handle (in the thread). False when the transfer is already over and must not start."""
        ...

    def end(self, handle: pycurl.Curl, code: int, message: str) -> None:
        """Read the handle's outcome (in the thread); ``code`` is libcurl's, 0 when all went well."""
        ...


class CurlThread:
    """Runs transfers, at most ``limit`` at once; the others wait in the order they came.

    ``equip`` sets on a new handle what all transfers have in common. ``deliver`` is called in the thread with the transfers that
    ended together. ``died`` is called in the thread, once, with the reason, when the thread cannot go on.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        limit: int,
        equip: Callable[[pycurl.Curl], None],
        deliver: Callable[[list[Transfer]], None],
        died: Callable[[Exception], None],
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._equip = equip
        self._deliver = deliver
        self._died = died
        self._submitted: deque[Transfer] = deque()
        self._cancelled: deque[Transfer] = deque()
        self._waiting: deque[Transfer] = deque()
        self._running: dict[pycurl.Curl, Transfer] = {}
        self._idle: list[pycurl.Curl] = []
        self._over: list[Transfer] = []
        self._signalled = False
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._watched: dict[int, _Multi] = {}
        self._multis: dict[str, _Multi] = {}
        self._thread = threading.Thread(target=self._run, name="http-probes", daemon=True)
        self._thread.start()

    # --- called from other threads -----------------------------------------------------------------------------------

    def submit(self, transfer: Transfer) -> None:
        """Hand over a transfer; it starts at once unless ``limit`` are running."""
        self._submitted.append(transfer)
        self._wake()

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer, wherever it is. It is not delivered."""
        transfer.abandoned = True
        self._cancelled.append(transfer)
        self._wake()

    def close(self) -> None:
        """Stop everything that runs and wait, a few seconds at most, for the thread to end."""
        self._closing = True
        self._wake()
        self._thread.join(CLOSE_WITHIN_S)
        if not self._thread.is_alive() and self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _wake(self) -> None:
        # The thread empties the eventfd, then lowers the flag, then looks into the queues: nothing is lost between.
        if not self._signalled and self._thread.is_alive():
            self._signalled = True
            os.eventfd_write(self._wake_fd, 1)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except Exception as exc:  # noqa: BLE001 - the end of a thread: whoever waits must hear of it
            self._died(exc)
        finally:
            self._release()

    def _turn(self) -> None:
        """Wait for sockets, libcurl's timers or the others' wishes, and act on them once."""
        for fd, events in self._epoll.poll(self._wait_s()):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                self._signalled = False
            elif (multi := self._watched.get(fd)) is not None:  # else: what was done for a socket before has closed it
                multi.handle.socket_action(fd, _curl_mask(events))
        self._obey()
        for multi in self._multis.values():
            if multi.timer_at is not None and self._clock.monotonic() >= multi.timer_at:
                multi.timer_at = None
                multi.handle.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()
        if self._over:
            over, self._over = self._over, []
            self._deliver(over)

    def _wait_s(self) -> float:
        next_at = min((multi.timer_at for multi in self._multis.values() if multi.timer_at is not None), default=None)
        return -1 if next_at is None else max(0.0, next_at - self._clock.monotonic())

    def _obey(self) -> None:
        """Take over what was submitted and cancelled since the last turn."""
        while self._submitted:
            self._waiting.append(self._submitted.popleft())
        while self._cancelled:
            transfer = self._cancelled.popleft()
            for handle in [handle for handle, owner in self._running.items() if owner is transfer]:
                self._retire(handle)
        while self._waiting and len(self._running) < self._limit:
            self._start(self._waiting.popleft())

    def _start(self, transfer: Transfer) -> None:
        if transfer.abandoned:
            return
        handle = self._idle.pop() if self._idle else self._new_handle()
        if transfer.begin(handle):
            self._running[handle] = transfer
            self._multi_of(transfer).handle.add_handle(handle)
        else:
            self._keep(handle, transfer)
            self._over.append(transfer)

    def _new_handle(self) -> pycurl.Curl:
        handle = pycurl.Curl()
        self._equip(handle)
        return handle

    def _keep(self, handle: pycurl.Curl, used_by: Transfer) -> None:
        if used_by.leaves_traces or len(self._idle) >= IDLE_HANDLES:
            handle.close()
        else:
            self._idle.append(handle)

    def _multi_of(self, transfer: Transfer) -> "_Multi":
        multi = self._multis.get(transfer.trust)
        if multi is None:
            multi = self._multis[transfer.trust] = _Multi(self._clock, self._epoll, self._watched)
        return multi

    def _collect(self) -> None:
        """Take in what ended; each end may let a waiting transfer start."""
        for multi in list(self._multis.values()):
            left = 1
            while left:
                left, fine, failed = multi.handle.info_read()
                for handle in fine:
                    self._finish(handle, pycurl.E_OK, "")
                for handle, code, message in failed:
                    self._finish(handle, code, message)

    def _finish(self, handle: pycurl.Curl, code: int, message: str) -> None:
        transfer = self._running[handle]
        transfer.end(handle, code, message)
        self._retire(handle)
        self._over.append(transfer)
        if self._waiting:
            self._start(self._waiting.popleft())

    def _retire(self, handle: pycurl.Curl) -> None:
        transfer = self._running.pop(handle)
        self._multi_of(transfer).handle.remove_handle(handle)
        self._keep(handle, transfer)

    def _release(self) -> None:
        for handle in list(self._running):
            self._retire(handle)
        for multi in self._multis.values():
            multi.handle.close()
        self._epoll.close()


class _Multi:
    """One libcurl multi handle: it keeps one CA bundle read, so there is one for each. Its sockets and its timer."""

    def __init__(self, clock: Clock, epoll: select.epoll, watched: "dict[int, _Multi]") -> None:
        self.timer_at: float | None = None
        self._clock = clock
        self._epoll = epoll
        self._watched = watched
        self.handle = pycurl.CurlMulti()
        self.handle.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self.handle.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)

    def _on_socket(self, what: int, fd: int, multi: object, data: object) -> None:
        """libcurl tells which sockets to watch. A closed socket has left the epoll set by itself."""
        if what == pycurl.POLL_REMOVE:
            if self._watched.get(fd) is self:
                del self._watched[fd]
                self._unregister(fd)
            return
        mask = _EPOLL_MASK[what]
        if fd in self._watched:
            self._watched[fd] = self
            try:
                self._epoll.modify(fd, mask)
                return
            except FileNotFoundError:
                pass
        self._watched[fd] = self
        self._epoll.register(fd, mask)

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError:  # libcurl closed it first
            return

    def _on_timer(self, timeout_ms: int) -> None:
        self.timer_at = None if timeout_ms < 0 else self._clock.monotonic() + timeout_ms / 1000


_EPOLL_MASK = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
    pycurl.POLL_NONE: 0,
}


def _curl_mask(events: int) -> int:
    mask = 0
    if events & select.EPOLLIN:
        mask |= pycurl.CSELECT_IN
    if events & select.EPOLLOUT:
        mask |= pycurl.CSELECT_OUT
    if events & (select.EPOLLERR | select.EPOLLHUP):
        mask |= pycurl.CSELECT_ERR | pycurl.CSELECT_IN
    return mask
