"""Asks blackbox_exporter for probes over kept connections: the cheapest way for it to be asked. Not counted."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import uvloop

from bench.processes import answer_commands


async def main(port: int, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()

    async def ask(work: Iterator[int]) -> int:
        """Take work until there is none left. Returns how many probes did not succeed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        bad = 0
        try:
            for _ in work:
                writer.write(request)
                body = await _read_answer(reader)
                bad += b"\nprobe_success 1\n" not in body
        finally:
            writer.close()
            await writer.wait_closed()
        return bad

    async def handle(command: dict[str, Any]) -> dict[str, Any]:
        work = iter(range(command["count"]))
        return {"bad": sum(await asyncio.gather(*(ask(work) for _ in range(command["concurrency"]))))}

    await answer_commands(handle)


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    """One whole answer's body: by its length, or chunked."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" not in head:
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        return await reader.readexactly(int(length))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
