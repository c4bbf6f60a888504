"""The watched service of the HTTP bench: a small JSON answer, and a count of connections, requests and errors."""

import asyncio
import ssl
import sys
import time
from typing import Any, cast

import uvloop

from bench.processes import answer_commands

BODY = b'{"status": "healthy", "service": "bench", "version": "1.0.0", "database": "connected", "uptime_seconds": 86400}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-process-time: 0.0004\r\n\r\n%s" % (len(BODY), BODY)

BROKEN = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"

broken: set[str] = set()
"""Addresses of ours that answer with an error from now on."""
counts = {"connections": 0, "requests": 0, "errors": 0}


class _Conversation(asyncio.Protocol):
    """One connection; anything but ``GET /health`` is an error of the bench."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self._heard = b""
        counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            head, _, self._heard = self._heard.partition(b"\r\n\r\n")
            counts["requests"] += 1
            counts["errors"] += not head.startswith(b"GET /health HTTP/1.1\r\n")
            is_broken = bool(broken) and self._transport.get_extra_info("sockname")[0] in broken
            self._transport.write(BROKEN if is_broken else ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        counts["errors"] += bool(exc) or bool(self._heard)


async def main(host: str, certificate: str = "") -> None:
    """Serve until standard input ends. With a certificate, over TLS.

    ``{"broken": address}`` is answered with the moment from which it is; every other command with the counts so far.
    """
    trust = None
    if certificate:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trust.load_cert_chain(certificate)

    async def tell(command: dict[str, Any]) -> dict[str, Any]:
        if "broken" in command:
            broken.add(command["broken"])
            return {"at": time.monotonic()}
        return counts

    server = await asyncio.get_running_loop().create_server(_Conversation, host, 0, backlog=1024, ssl=trust)
    await answer_commands(tell, port=server.sockets[0].getsockname()[1])
    server.close()


if __name__ == "__main__":
    uvloop.run(main(*(sys.argv[1:] or ["127.0.0.1"])))
