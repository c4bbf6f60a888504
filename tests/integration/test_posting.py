"""Posted alerts over real connections: the plain form takes the short way, everything else the ordinary one, with the same answers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from monitor.api.posting import Answer, posting_protocol

HEADERS = (("cache-control", "no-store"),)
PLAIN = b"POST /api/v2/alerts HTTP/1.1\r\nhost: monitor\r\nauthorization: Bearer good\r\n"


@dataclass
class Server:
    port: int = 0
    taken: list[bytes] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    waits: set[asyncio.Future[None]] = field(default_factory=set)

    def take(self, body: bytes, answer: Answer) -> None:
        self.taken.append(body)
        said = (400, b'"no"') if body == b"bad" else (200, b"")
        if body == b"at once":
            answer(*said)
        else:
            self.waits.add(asyncio.ensure_future(self._answer(answer, said)))

    async def _answer(self, answer: Answer, said: tuple[int, bytes]) -> None:
        await self.hold.wait()
        answer(*said)

    async def talk(self, *parts: bytes, answers: int = 1) -> list[bytes]:
        """Send the parts one by one; gives so many answers, each with its body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            return [await _answer(reader) for _ in range(answers)]
        finally:
            writer.close()
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        _, counted, length = head.lower().partition(b"content-length: ")
        return head + (await reader.readexactly(int(length.partition(b"\r\n")[0])) if counted else await reader.read())


async def ordinary(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    said = b"ordinary:" + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    found.hold.set()
    protocol = posting_protocol(found.take, lambda sent: sent == "Bearer good", 1000, HEADERS)
    running = uvicorn.Server(uvicorn.Config(ordinary, port=0, http=protocol, log_config=None, lifespan="off", access_log=False))
    task = asyncio.create_task(running.serve())
    async with asyncio.timeout(5):
        while not running.started:
            await asyncio.sleep(0.01)
    found.port = running.servers[0].sockets[0].getsockname()[1]
    yield found
    running.should_exit = True
    await task


def plain(body: bytes, *more: bytes) -> bytes:
    return PLAIN + b"".join(line + b"\r\n" for line in more) + b"content-length: %d\r\n\r\n%s" % (len(body), body)


async def test_a_plain_post_is_taken_and_answered_with_the_headers_of_every_answer(server: Server) -> None:
    (answer,) = await server.talk(plain(b"[1]"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
    assert answer.endswith(b"cache-control: no-store\r\ncontent-length: 0\r\n\r\n")
    (answer,) = await server.talk(plain(b"bad"))
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(b'content-type: application/json\r\ncache-control: no-store\r\ncontent-length: 4\r\n\r\n"no"')
    assert server.taken == [b"[1]", b"bad"]


async def test_a_body_in_pieces_and_posts_behind_each_other_are_answered_in_order(server: Server) -> None:
    whole = plain(b"[1,2,3]")
    assert len(await server.talk(whole[:-5], whole[-5:-2], whole[-2:] + plain(b"[4]") + plain(b"bad"), answers=3)) == 3
    assert server.taken == [b"[1,2,3]", b"[4]", b"bad"]
    answers = await server.talk(plain(b"[5]") + b"GET / HTTP/1.1\r\nhost: monitor\r\n\r\n" + plain(b"[6]"), answers=3)
    assert [answer.rpartition(b"\r\n")[2] for answer in answers] == [b"", b"ordinary:", b"ordinary:[6]"]


async def test_many_posts_in_one_piece_that_are_answered_at_once_are_all_answered(server: Server) -> None:
    assert len(await server.talk(plain(b"at once") * 2000, answers=2000)) == 2000
    assert server.taken == [b"at once"] * 2000


@pytest.mark.parametrize(
    "request_",
    [
        plain(b"[1]").replace(b"Bearer good", b"Bearer bad"),
        plain(b"[1]").replace(b"host: monitor", b"host: monitor\r\nexpect: 200-ok"),
        plain(b"[1]", b"connection: keep-alive"),
        plain(b"[1]", b"content-encoding: identity"),
        plain(b"[1]").replace(b"/alerts HTTP", b"/alerts?x=1 HTTP"),
        PLAIN + b"transfer-encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n",
    ],
)
async def test_what_is_not_plain_goes_the_ordinary_way(server: Server, request_: bytes) -> None:
    (answer,) = await server.talk(request_)
    assert answer.endswith(b"ordinary:[1]")
    assert server.taken == []


@pytest.mark.parametrize(
    "request_",
    [
        plain(b"[1]", b"content-length: 2"),
        plain(b"[1]", b"content-length : 3"),
        plain(b"[1]", b"transfer-encoding: chunked"),
        plain(b"[1]", b"host: other"),
        plain(b"[1]").replace(b"content-length: 3", b"content-length: +3"),
        plain(b"[1]").replace(b"host: monitor\r\n", b""),
        plain(b"[1]", b"x: a\rb"),
    ],
)
async def test_an_ambiguous_request_is_never_taken(server: Server, request_: bytes) -> None:
    (answer,) = await server.talk(request_ + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ") or answer.endswith(b"ordinary:")
    assert server.taken == []


async def test_a_body_over_the_limit_is_for_the_ordinary_way_to_refuse(server: Server) -> None:
    (answer,) = await server.talk(plain(b"x" * 1001))
    assert answer.endswith(b"ordinary:" + b"x" * 1001)


async def test_what_is_being_stored_is_answered_before_the_server_ends(server: Server) -> None:
    server.hold.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(plain(b"[1]"))
    async with asyncio.timeout(5):
        while not server.taken:
            await asyncio.sleep(0.01)
    server.hold.set()
    assert (await _answer(reader)).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()
