"""``POST /api/v2/alerts`` before everything else that serves HTTP: Prometheus sends it all day, always in the same plain form.

What is not exactly that form (another path, no valid token, chunked, compressed, an unusual header) is handed, untouched, to uvicorn's own
protocol and the ordinary route, which answer the same. Measured, the ordinary way costs 0.3 ms of CPU before the alerts are looked at.
"""

from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_REQUEST = b"POST /api/v2/alerts HTTP/1.1\r\n"
_MOST_HEAD_BYTES = 16 * 1024
_MOST_LENGTH_DIGITS = 9
_NOT_PLAIN = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"trailer", b"te", b"connection", b"origin"})
_SINGLE = frozenset({b"host", b"content-length", b"authorization"})

Answer = Callable[[int, bytes], None]
"""Hears the status and the JSON to answer, which may be nothing."""
Take = Callable[[bytes, Answer], None]
"""Stores a body's alerts, and answers once, at once or later. By a callback: a task for each post would cost as much as its alert."""
Admits = Callable[[str], bool]
"""Whether the value of an ``Authorization`` header may post."""


def posting_protocol(take: Take, admits: Admits, most_bytes: int, headers: tuple[tuple[str, str], ...]) -> Any:
    """The protocol for ``uvicorn.Config(http=…)``; ``headers`` stand in every answer, as in those of the other routes."""
    told = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()

    def create(**given: Any) -> _Protocol:
        return _Protocol(take, admits, most_bytes, told, **given)

    return create


class _Protocol(H11Protocol):
    """One connection. Between two plain posts it is uvicorn's, in its idle state."""

    def __init__(self, take: Take, admits: Admits, most_bytes: int, told: bytes, **given: Any) -> None:
        super().__init__(**given)
        self._take = take
        self._admits = admits
        self._most_bytes = most_bytes
        self._told = told
        self._body: bytearray | None = None
        """What has arrived of a plain post, None when there is none under way."""
        self._missing = 0
        self._answering = False
        self._late = bytearray()
        """What arrived while a post was being answered."""
        self._closing = False
        self._good: tuple[object, bytes] = (None, b"")
        """The answer to a post that is stored, and the headers that it was written with."""
        self._is_plain = True
        """Whether nothing was handed to uvicorn's protocol since it was idle."""

    def data_received(self, data: bytes) -> None:
        if self._answering:
            self._late += data
            self.flow.pause_reading()
        elif self._body is not None:
            self._gather(data)
        elif data.startswith(_REQUEST) and self._is_idle():
            end = data.find(b"\r\n\r\n", 0, _MOST_HEAD_BYTES)
            length = self._length(data[len(_REQUEST) : end]) if end > 0 else None
            if length is None:
                self._pass_on(data)
                return
            self._is_plain = True
            self._unset_keepalive_if_required()
            if len(data) == end + 4 + length:
                self._store(data[end + 4 :])
            else:
                self._body, self._missing = bytearray(), length
                self._gather(data[end + 4 :])
        else:
            self._pass_on(data)

    def shutdown(self) -> None:
        """Close as soon as nothing is being answered."""
        if self._answering:
            self._closing = True
        else:
            super().shutdown()

    def _pass_on(self, data: bytes) -> None:
        self._is_plain = False
        super().data_received(data)

    def _is_idle(self) -> bool:
        """Whether uvicorn's protocol waits for a request, with nothing of it in its hands."""
        if self._is_plain:
            return True
        waits = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        return waits and self.conn.trailing_data == (b"", False) and (self.cycle is None or self.cycle.response_complete)

    def _length(self, head: bytes) -> int | None:
        """The body's length when the head is of the plain form and its token is good, else None."""
        read = _read_head(head)
        return read[0] if read and read[0] <= self._most_bytes and self._admits(read[1]) else None

    def _gather(self, data: bytes) -> None:
        assert self._body is not None
        self._body += data[: self._missing]
        self._late += data[self._missing :]
        self._missing -= min(len(data), self._missing)
        if self._missing == 0:
            body, self._body = bytes(self._body), None
            self._store(body)

    def _store(self, body: bytes) -> None:
        self._answering = True
        try:
            self._take(body, self._answer)
        except BaseException:  # an error of ours: no answer is no promise
            self.transport.close()
            raise

    def _answer(self, status: int, content: bytes) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.transport.write(self._response(status, content))
        if self._closing:
            self.transport.close()
        elif self._late:
            self.loop.call_soon(self._go_on)  # not from here: this may be called while data is received
        else:
            self._answering = False
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _go_on(self) -> None:
        """Look at what arrived while a post was being answered."""
        self._answering = False
        late, self._late = bytes(self._late), bytearray()
        self.flow.resume_reading()
        if not self.transport.is_closing():
            self.data_received(late)

    def _response(self, status: int, content: bytes) -> bytes:
        headers = self.server_state.default_headers  # another list each second: the date is among them
        if content or status != HTTPStatus.OK:
            return self._write_response(status, content)
        if self._good[0] is not headers:
            self._good = headers, self._write_response(status, content)
        return self._good[1]

    def _write_response(self, status: int, content: bytes) -> bytes:
        lines = [b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode())]
        lines += [b"%s: %s\r\n" % pair for pair in self.server_state.default_headers]
        if content:
            lines.append(b"content-type: application/json\r\n")
        return b"".join([*lines, self._told, b"content-length: %d\r\n\r\n" % len(content), content])


@lru_cache(maxsize=256)
def _read_head(head: bytes) -> tuple[int, str] | None:
    """The body's length and the value of ``Authorization`` when the head is of the plain form, else None.

    Remembered: a sender writes the same head with every post of the same length.
    """
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name.replace(b"-", b"").isalnum() or not value.isascii() or not value.decode().isprintable():
            return None
        if name in _NOT_PLAIN or (name in _SINGLE and name in found):
            return None
        found[name] = value.strip()
    digits = found.get(b"content-length", b"")
    if b"host" not in found or not digits.isdigit() or len(digits) > _MOST_LENGTH_DIGITS:
        return None
    return int(digits), found.get(b"authorization", b"").decode()
