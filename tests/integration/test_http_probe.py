"""The HTTP probe against real servers that behave, and against every way of misbehaving."""

import asyncio
import gzip
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
import uvloop

from monitor.clock import SystemClock
from monitor.errors import CannotLook
from monitor.probes.http import GRACE_S, MAX_HEADER_BYTES, CurlProbe
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpReason, HttpRequest

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def probe() -> AsyncIterator[CurlProbe]:
    probe = CurlProbe(SystemClock())
    yield probe
    await probe.close()


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[str]:
    """A raw TCP server; what each connection gets after its request's head is up to ``behaviour``."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await behaviour(reader, writer)
        writer.close()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for _ in range(5):  # a connection accepted just now reaches serve() some turns of the loop later
            await asyncio.sleep(0)
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await abort(writers)


async def abort(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


def sends(*pieces: bytes) -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
        await writer.drain()

    return behave


def repeats(first: bytes, piece: bytes, *, every_s: float = 0.0, at_most: int = 1_000_000) -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        for _ in range(at_most):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every_s)

    return behave


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # closing with SO_LINGER 0 sends RST
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def failure(probe: CurlProbe, behaviour: Behaviour, *, deadline_s: float = 5.0, max_body_bytes: int = 1_048_576) -> HttpFailure:
    """The failure of one exchange, which must come within its deadline."""
    async with serving(behaviour) as url:
        started = time.monotonic()
        outcome = await probe.fetch(HttpRequest(f"{url}/health", deadline_s=deadline_s, max_body_bytes=max_body_bytes))
        assert time.monotonic() - started < deadline_s + 0.3
    assert isinstance(outcome, HttpFailure), outcome
    return outcome


# --- behaving --------------------------------------------------------------------------------------------------------


async def asgi_app(
    scope: dict[str, object], receive: Callable[[], Awaitable[dict[str, object]]], send: Callable[..., Awaitable[None]]
) -> None:
    assert scope["type"] == "http"
    body = (await receive()).get("body", b"")
    seen = repr((scope["method"], scope["path"], sorted(scope["headers"]), body)).encode()  # type: ignore[call-overload]
    await send(
        {"type": "http.response.start", "status": 418, "headers": [(b"X-Process-Time", b"0.25"), (b"X-Twice", b"1"), (b"X-Twice", b"2")]}
    )
    await send({"type": "http.response.body", "body": seen})


@pytest.fixture(scope="module")
def uvicorn_url() -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(asgi_app, log_level="critical", lifespan="off"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


async def test_the_whole_answer_is_told(probe: CurlProbe, uvicorn_url: str) -> None:
    request = HttpRequest(f"{uvicorn_url}/health?x=1", method="POST", headers=(("X-Tenant-Id", "t1"),), body=b"hello")
    answer = await probe.fetch(request)
    assert isinstance(answer, HttpAnswer)
    assert answer.status == 418
    assert [value for name, value in answer.headers if name == "x-twice"] == ["1", "2"]
    assert dict(answer.headers)["x-process-time"] == "0.25"
    assert b"b'x-tenant-id', b't1'" in answer.body
    assert b"b'hello'" in answer.body
    phases = answer.phases
    assert phases.total_s > 0
    assert phases.tls_s == 0
    assert phases.dns_s + phases.connect_s + phases.wait_s + phases.transfer_s == pytest.approx(phases.total_s, abs=0.005)
    assert answer.tls_days_left is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
async def test_a_reused_handle_keeps_nothing_of_the_exchange_before(probe: CurlProbe, uvicorn_url: str, method: str) -> None:
    await probe.fetch(HttpRequest(uvicorn_url, method="POST", headers=(("X-Secret", "1"),), body=b"hello"))
    answer = await probe.fetch(HttpRequest(f"{uvicorn_url}/second", method=method))
    assert isinstance(answer, HttpAnswer)
    assert answer.status == 418
    if method == "HEAD":
        assert answer.body == b""
    else:
        assert answer.body.startswith(f"('{method}', '/second'".encode())
        assert answer.body.endswith(b"b'')")
        assert b"x-secret" not in answer.body


async def test_every_probe_uses_a_new_connection_and_follows_no_redirect(probe: CurlProbe) -> None:
    connections: list[object] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("peername"))
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with serving(redirect) as url:
        for _ in range(3):
            answer = await probe.fetch(HttpRequest(url))
            assert isinstance(answer, HttpAnswer)
            assert answer.status == 302
    assert len(set(connections)) == 3


async def test_a_proxy_of_the_environment_is_not_used(uvicorn_url: str) -> None:
    os.environ["http_proxy"] = "http://127.0.0.1:1"
    probe = CurlProbe(SystemClock())
    try:
        assert isinstance(await probe.fetch(HttpRequest(uvicorn_url)), HttpAnswer)
    finally:
        del os.environ["http_proxy"]
        await probe.close()


async def test_a_compressed_answer_is_decoded(probe: CurlProbe) -> None:
    body = gzip.compress(b'{"status": "healthy"}')
    async with serving(sends(OK_HEAD, b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body), body)) as url:
        answer = await probe.fetch(HttpRequest(url))
    assert isinstance(answer, HttpAnswer)
    assert answer.body == b'{"status": "healthy"}'


# --- misbehaving -----------------------------------------------------------------------------------------------------


async def test_refused(probe: CurlProbe) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        outcome = await probe.fetch(HttpRequest(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.REFUSED
    assert "refused" in outcome.detail.lower()


async def test_unresolvable_name(probe: CurlProbe) -> None:
    outcome = await probe.fetch(HttpRequest("http://no-such-host.invalid/", deadline_s=3))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.DNS


async def test_silence_ends_at_the_deadline(probe: CurlProbe) -> None:
    outcome = await failure(probe, never, deadline_s=0.4)
    assert outcome.reason is HttpReason.TIMEOUT
    assert "0.4 s" in outcome.detail
    assert outcome.phases.wait_s == pytest.approx(0.4, abs=0.15)


async def test_a_full_backlog_times_out(probe: CurlProbe) -> None:
    """A process that is stopped or stuck: the kernel no longer takes connections for it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    outcome = await probe.fetch(HttpRequest(f"http://127.0.0.1:{listener.getsockname()[1]}/", deadline_s=0.4))
    for one in (listener, *fillers):
        one.close()
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.TIMEOUT
    assert outcome.phases.connect_s == pytest.approx(0.4, abs=0.15)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(repeats(b"", b"H", every_s=0.02), id="dribbling head"),
        pytest.param(repeats(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", every_s=0.02), id="dribbling headers"),
        pytest.param(repeats(OK_HEAD + b"Content-Length: 100000\r\n\r\n", b"x", every_s=0.02), id="dribbling body"),
    ],
)
async def test_slow_loris_ends_at_the_deadline(probe: CurlProbe, behaviour: Behaviour) -> None:
    assert (await failure(probe, behaviour, deadline_s=0.5)).reason in {HttpReason.TOO_SLOW, HttpReason.TIMEOUT, HttpReason.GARBAGE}


GIGABYTE = 1024 * 1024 * 1024


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(OK_HEAD + b"Content-Length: %d\r\n\r\n" % GIGABYTE, id="announced"),
        pytest.param(OK_HEAD + b"Connection: close\r\n\r\n", id="until closed"),
    ],
)
async def test_a_huge_body_is_cut_off(probe: CurlProbe, head: bytes) -> None:
    outcome = await failure(probe, repeats(head, b"x" * 65536, at_most=GIGABYTE // 65536))
    assert outcome.reason is HttpReason.TOO_LARGE
    assert "1048576 bytes" in outcome.detail
    assert outcome.phases.total_s < 2


async def test_a_body_of_exactly_the_cap_is_whole(probe: CurlProbe) -> None:
    async with serving(sends(OK_HEAD, b"Content-Length: 1000\r\n\r\n", b"x" * 1000)) as url:
        assert isinstance(await probe.fetch(HttpRequest(url, max_body_bytes=1000)), HttpAnswer)
        outcome = await probe.fetch(HttpRequest(url, max_body_bytes=999))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.TOO_LARGE


async def test_a_gzip_bomb_is_cut_off(probe: CurlProbe) -> None:
    bomb = gzip.compress(b"\0" * 200_000_000, compresslevel=1)
    started = time.process_time()
    outcome = await failure(probe, sends(OK_HEAD, b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb), bomb))
    assert outcome.reason is HttpReason.TOO_LARGE
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(repeats(b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n"), id="many headers"),
        pytest.param(repeats(b"", b"HTTP/1.1 100 Continue\r\nX-Header: " + b"x" * 1000 + b"\r\n\r\n"), id="many interim answers"),
    ],
)
async def test_endless_headers_are_cut_off(probe: CurlProbe, behaviour: Behaviour) -> None:
    outcome = await failure(probe, behaviour)
    assert outcome.reason is HttpReason.HEADERS_TOO_LARGE
    assert str(MAX_HEADER_BYTES) in outcome.detail


async def test_one_endless_header_line_is_cut_off(probe: CurlProbe) -> None:
    outcome = await failure(probe, repeats(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536))
    assert outcome.reason in {HttpReason.HEADERS_TOO_LARGE, HttpReason.GARBAGE}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param(sends(b"\x16\x03\x01 not http at all\r\n\r\n"), HttpReason.GARBAGE, id="binary"),
        pytest.param(sends(b"SSH-2.0-OpenSSH_9.2\r\n"), HttpReason.GARBAGE, id="ssh"),
        pytest.param(sends(b"HTTP/1.1 abc OK\r\n\r\n"), HttpReason.GARBAGE, id="no status code"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nContent-Length: banana\r\n\r\n"), HttpReason.GARBAGE, id="bad length"),
        pytest.param(sends(OK_HEAD, b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n12345"), HttpReason.GARBAGE, id="bad gzip"),
        pytest.param(sends(OK_HEAD, b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n"), HttpReason.GARBAGE, id="bad chunk"),
        pytest.param(sends(OK_HEAD, b"Content-Length: 100\r\n\r\nshort"), HttpReason.RESET, id="truncated"),
        pytest.param(sends(), HttpReason.RESET, id="closed without a word"),
        pytest.param(resets, HttpReason.RESET, id="reset"),
    ],
)
async def test_broken_answers_are_told_apart(probe: CurlProbe, behaviour: Behaviour, reason: HttpReason) -> None:
    outcome = await failure(probe, behaviour, deadline_s=2)
    assert outcome.reason is reason, outcome
    assert outcome.detail.isprintable()


# --- our own side ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_probe_leaves_the_wire(probe: CurlProbe) -> None:
    left = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()
        left.set()

    arrived = asyncio.Event()
    async with serving(watch) as url:
        task = asyncio.create_task(probe.fetch(HttpRequest(url, deadline_s=60)))
        async with asyncio.timeout(5):
            await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await left.wait()


async def test_waiting_in_our_own_queue_is_not_the_targets_fault() -> None:
    probe = CurlProbe(SystemClock(), concurrency=1)
    async with serving(never) as url:
        blocker = asyncio.create_task(probe.fetch(HttpRequest(url, deadline_s=60)))
        await asyncio.sleep(0)  # it is asked first
        with pytest.raises(CannotLook, match="our own queue"):
            await probe.fetch(HttpRequest(url, deadline_s=0.2))
        blocker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocker
    await probe.close()


async def test_a_timeout_after_a_long_wait_in_our_own_queue_is_not_the_targets_fault() -> None:
    probe = CurlProbe(SystemClock(), concurrency=1)
    async with serving(never) as url:
        first = asyncio.create_task(probe.fetch(HttpRequest(url, deadline_s=0.5)))
        await asyncio.sleep(0)  # it is asked first
        with pytest.raises(CannotLook, match="our own queue"):
            await probe.fetch(HttpRequest(url, deadline_s=1))
        assert isinstance(await first, HttpFailure)
    await probe.close()


def test_an_answer_in_time_counts_although_our_own_loop_comes_to_it_late(uvicorn_url: str) -> None:
    async def ask() -> HttpAnswer | HttpFailure:
        probe = CurlProbe(SystemClock())
        asking = asyncio.create_task(probe.fetch(HttpRequest(f"{uvicorn_url}/health", deadline_s=1.0)))
        await asyncio.sleep(0)  # it is on its way
        threading.Event().wait(1.0 + GRACE_S + 0.2)  # something holds the loop
        try:
            return await asking
        finally:
            await probe.close()

    outcome = uvloop.run(ask())  # the program's loop: timers that are due come before what other threads have to say
    assert isinstance(outcome, HttpAnswer), outcome


async def test_many_at_once_all_get_their_own_answer(probe: CurlProbe) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(OK_HEAD + b"Connection: close\r\n\r\n" + head.split()[1])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    answers = await asyncio.gather(*(probe.fetch(HttpRequest(f"{url}/{number}", deadline_s=30)) for number in range(800)))
    assert [answer.body for answer in answers if isinstance(answer, HttpAnswer)] == [f"/{number}".encode() for number in range(800)]
    server.close()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (HttpRequest("file:///etc/passwd"), "not an http"),
        (HttpRequest("http://127.0.0.1/\r\nX-Evil: 1"), "control characters"),
        (HttpRequest("http://127.0.0.1/", headers=(("X", "a\r\nX-Evil: 1"),)), "control characters"),
        (HttpRequest("http://"), "malformed|cannot be"),
        (HttpRequest("http://127.0.0.1:99999/"), "malformed|cannot be"),
    ],
)
async def test_requests_that_cannot_be_made_are_our_own_fault(probe: CurlProbe, request_: HttpRequest, words: str) -> None:
    with pytest.raises(CannotLook, match=words):
        await probe.fetch(request_)


async def test_an_unreadable_ca_file_is_our_own_fault(probe: CurlProbe) -> None:
    async with serving(never) as url:
        with pytest.raises(CannotLook, match="CA file"):
            await probe.fetch(HttpRequest(url.replace("http:", "https:"), ca_file="/nowhere/ca.pem"))


async def test_close_tells_those_who_wait_and_ends_the_thread() -> None:
    before = threading.active_count()
    probe = CurlProbe(SystemClock())
    async with serving(never) as url:
        task = asyncio.create_task(probe.fetch(HttpRequest(url, deadline_s=60)))
        await asyncio.sleep(0)
        await probe.close()
        with pytest.raises(CannotLook, match="closed"):
            await task
    with pytest.raises(CannotLook, match="closed"):
        await probe.fetch(HttpRequest("http://127.0.0.1/"))
    assert not [thread for thread in threading.enumerate() if thread.name == "http-probes"]
    assert threading.active_count() <= before + 1  # asyncio's own thread pool


async def test_a_dead_thread_is_told_to_those_who_wait_and_to_the_next() -> None:
    probe = CurlProbe(SystemClock())
    async with serving(never) as url:
        waiting = asyncio.create_task(probe.fetch(HttpRequest(url, deadline_s=60)))
        await asyncio.sleep(0)
        probe._curl._epoll.close()  # the thread's world breaks down
        another = asyncio.create_task(probe.fetch(HttpRequest(url, deadline_s=60)))
        for task in (waiting, another):
            with pytest.raises(CannotLook, match="probe thread died"):
                await task
        with pytest.raises(CannotLook, match="restart the monitor"):
            await probe.fetch(HttpRequest(url))
    await probe.close()


async def test_open_files_do_not_grow(probe: CurlProbe) -> None:
    async with serving(sends(OK_HEAD, b"Content-Length: 0\r\n\r\n")) as url:
        await asyncio.gather(*(probe.fetch(HttpRequest(url)) for _ in range(50)))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await asyncio.gather(*(probe.fetch(HttpRequest(url)) for _ in range(50)))
        assert len(os.listdir("/proc/self/fd")) <= before + 60
