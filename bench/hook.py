"""A receiver of Alertmanager's webhooks, over plain HTTP and TLS: which alerts were told, and when the last was. Not counted."""

import asyncio
import contextlib
import json
import ssl
import sys
import time
from typing import Any, cast

import uvloop

from bench.processes import answer_commands

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class _Heard:
    """``first_at`` has the services of the alerts that were told of, one for each group of a storm, and when each was first."""

    def __init__(self) -> None:
        self.first_at: dict[str, float] = {}
        self.requests = 0
        self.last_at = 0.0
        self._news = asyncio.Event()

    def take(self, body: bytes) -> None:
        self.requests += 1
        before, now = len(self.first_at), time.monotonic()
        for alert in json.loads(body)["alerts"]:
            self.first_at.setdefault(alert["labels"]["service"], now)
        if len(self.first_at) > before:
            self.last_at = now
            self._news.set()

    async def wait(self, count: int, seconds: float) -> None:
        """Until so many were told of, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self.first_at) < count:
                    self._news.clear()
                    await self._news.wait()

    def answer(self) -> dict[str, Any]:
        return {"told": len(self.first_at), "requests": self.requests, "last_at": self.last_at}


class _Conversation(asyncio.Protocol):
    def __init__(self, heard: _Heard) -> None:
        self._heard = heard
        self._bytes = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        while (end := self._bytes.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._bytes[:end]).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._bytes) < end + 4 + length:
                return
            if length:  # not a look at whether this is up
                self._heard.take(bytes(self._bytes[end + 4 : end + 4 + length]))
            del self._bytes[: end + 4 + length]
            self._transport.write(ANSWER)


async def main(certificate: str) -> None:
    """``{"told": n, "within_s": s}`` waits until so many groups were told of, or so long. Without it, tells what was heard so far.

    ``{"each": true}`` adds the moment at which each group was first told of.
    """
    heard = _Heard()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    plain = await loop.create_server(lambda: _Conversation(heard), "127.0.0.1", 0, backlog=1024)
    secure = await loop.create_server(lambda: _Conversation(heard), "127.0.0.1", 0, backlog=1024, ssl=trust)

    async def handle(command: dict[str, Any]) -> dict[str, Any]:
        await heard.wait(command.get("told", 0), command.get("within_s", 0.0))
        return heard.answer() | ({"first_at": heard.first_at} if command.get("each") else {})

    ports = {"plain": plain.sockets[0].getsockname()[1], "secure": secure.sockets[0].getsockname()[1]}
    await answer_commands(handle, **ports)
    plain.close()
    secure.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
