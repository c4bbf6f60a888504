"""The watched service of the HTTP bench: a small JSON answer, and a count of connections, requests and errors."""

import asyncio
import ssl
import sys
from typing import Any, cast

import uvloop

from bench.processes import answer_commands

BODY = b'{"status": "healthy", "service": "bench", "version": "1.0.0", "database": "connected", "uptime_seconds": 86400}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-process-time: 0.0004\r\n\r\n%s" % (len(BODY), BODY)

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
            self._transport.write(ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        counts["errors"] += bool(exc) or bool(self._heard)


async def main(host: str, certificate: str = "") -> None:
    """Serve until standard input ends; every command is answered with the counts so far. With a certificate, over TLS."""
    trust = None
    if certificate:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trust.load_cert_chain(certificate)

    async def tell(_: dict[str, Any]) -> dict[str, Any]:
        return counts

    server = await asyncio.get_running_loop().create_server(_Conversation, host, 0, backlog=1024, ssl=trust)
    await answer_commands(tell, port=server.sockets[0].getsockname()[1])
    server.close()


if __name__ == "__main__":
    uvloop.run(main(*(sys.argv[1:] or ["127.0.0.1"])))
