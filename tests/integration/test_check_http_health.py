"""``http_health`` through the real probe against a real server that changes its mind."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from pydantic import SecretStr

from checks.http_health import Config, http_health
from monitor.clock import SystemClock
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import Service
from monitor.probes.http import CurlProbe
from tests.support.looking import with_parts


@dataclass
class Target:
    """A server that sends ``answer`` after ``after_s``, and remembers the last request's head."""

    answer: bytes = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"status": "healthy"}'
    after_s: float = 0.0
    head: bytes = b""
    port: int = 0
    server: asyncio.Server | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self.server
        for _ in range(5):  # a connection accepted just now reaches _serve() some turns of the loop later
            await asyncio.sleep(0)
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.create_task(self._answer(reader, writer)))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.head = await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(self.after_s)
            writer.write(self.answer)
            writer.close()
            await writer.wait_closed()
        finally:
            writer.transport.abort()


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    target = Target()
    await target.start()
    yield target
    await target.stop()


@pytest.fixture
async def probe() -> AsyncIterator[CurlProbe]:
    probe = CurlProbe(SystemClock())
    yield probe
    await probe.close()


async def look(probe: CurlProbe, port: int, config: Config | None = None, *, host: str = "127.0.0.1") -> Observed:
    service = Service("analytics", url=f"http://{host}:{port}")
    ctx = with_parts(service, http=probe)
    return await http_health.run(ctx, config or Config(expect_json={"status": "healthy"}))


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


async def test_healthy_then_refused_then_healthy(probe: CurlProbe, target: Target) -> None:
    assert kinds(await look(probe, target.port)) == []
    assert target.head.startswith(b"GET /health HTTP/1.1\r\n")
    await target.stop()
    down = await look(probe, target.port)
    assert kinds(down) == ["ServiceDown"]
    assert dict(down.findings[0].facts)["reason"] == "refused"
    await target.start()
    assert kinds(await look(probe, target.port)) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nboom", "with status 500 instead of 200"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"status": "sick"}', "its status is 'sick' instead of 'healthy'"),
        (b"\x00\x01\x02\r\n\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2_000_000, "too_large"),
    ],
)
async def test_wrong_answers(probe: CurlProbe, target: Target, answer: bytes, reason: str) -> None:
    target.answer = answer
    (finding,) = (await look(probe, target.port)).findings
    assert finding.kind.name == "ServiceDown"
    assert dict(finding.facts)["reason"] == reason


async def test_slow_and_too_slow(probe: CurlProbe, target: Target) -> None:
    target.after_s = 0.15
    assert kinds(await look(probe, target.port, Config(slow_after=0.1))) == ["ServiceSlow"]
    late = await look(probe, target.port, Config(slow_after=0.05, deadline=0.1))
    assert kinds(late) == ["ServiceDown"]
    assert dict(late.findings[0].facts)["reason"] == "timeout"


async def test_secrets_are_sent_and_not_shown(probe: CurlProbe, target: Target) -> None:
    target.answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    config = Config(headers={"X-Tenant-Id": "t1"}, secret_headers={"Authorization": SecretStr("Bearer hush-hush")})
    observed = await look(probe, target.port, config, host="user:hush-hush@127.0.0.1")
    assert b"Authorization: Bearer hush-hush" in target.head
    assert b"X-Tenant-Id: t1" in target.head
    assert "hush-hush" not in repr(observed) + repr(config)


async def test_our_own_fault_is_blind(probe: CurlProbe, target: Target) -> None:
    with pytest.raises(CannotLook, match="cannot be"):
        await look(probe, 99_999)
