"""Real nginx in front of real servers: what its logs tell of the requests, and the services' own logs without it."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Response

from checks.access_log import access_log
from monitor.clock import SystemClock
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from services import nginx
from services.cluster import free_port
from services.common import build_app
from services.settings import Settings
from tests.conftest import tool
from tests.platform_parts import serving, until
from tests.support.looking import after, look, looking_at


@dataclass
class SetClock(SystemClock):
    """The machine's clock, set forward."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@dataclass
class Front:
    """nginx with its logs; ``auth`` is a server of ours, ``data`` a port where nobody listens."""

    url: str
    logs: Path
    down: str
    process: subprocess.Popen[bytes]
    sent: int = field(default=0)

    async def ask(self, *paths: str, headers: dict[str, str] | None = None) -> list[int]:
        """The statuses; returns when nginx has logged all of them."""
        async with httpx2.AsyncClient(trust_env=False, headers=headers) as client:
            statuses = [answer.status_code for answer in await asyncio.gather(*(client.get(self.url + path) for path in paths))]
        self.sent += len(paths)
        log = self.logs / "nginx-access.log"
        await asyncio.to_thread(until, lambda: log.read_bytes().count(b"\n") >= self.sent, "nginx logged all requests")
        return statuses

    def reopen(self) -> None:
        """As logrotate's postrotate does; returns when nginx writes to the new file."""
        subprocess.run([tool("nginx"), "-p", self.logs, "-c", self.logs / "nginx.conf", "-e", "stderr", "-s", "reopen"], check=True)
        until((self.logs / "nginx-access.log").exists, "nginx opened a new log")
        self.sent = 0


@pytest.fixture
def upstream() -> Iterator[str]:
    app = FastAPI()

    @app.get("/took/{seconds}")
    async def took(seconds: float) -> Response:
        return Response("", 200, headers={"X-Process-Time": f"{seconds}"})

    @app.get("/status/{code}")
    async def status(code: int) -> Response:
        return Response("", code, headers={"X-Process-Time": "0.001"})

    @app.get("/bare/{code}")
    async def bare(code: int) -> Response:
        return Response("", code)

    with serving(app) as url:
        yield url


@pytest.fixture
def front(tmp_path: Path, upstream: str) -> Iterator[Front]:
    program, port, nowhere = tool("nginx"), free_port(), free_port()
    config = nginx.configure(tmp_path, tmp_path, port=port, upstreams={"auth": int(upstream.rpartition(":")[2]), "data": nowhere})
    process = subprocess.Popen(nginx.command(program, config), stderr=subprocess.DEVNULL)
    front = Front(f"http://127.0.0.1:{port}", tmp_path, f"127.0.0.1:{nowhere}", process)
    try:
        with httpx2.Client(trust_env=False) as client:
            until(lambda: _answers(client, front.url), "nginx is up")
        until(lambda: (tmp_path / "nginx-access.log").read_bytes().endswith(b"\n"), "nginx logged it")
        front.sent = (tmp_path / "nginx-access.log").read_bytes().count(b"\n")
        yield front
    finally:
        process.terminate()
        process.wait(10)


def _answers(client: httpx2.Client, url: str) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return client.get(url).status_code == 200
    return False


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def ctx(front: Front, clock: SetClock) -> AsyncIterator[CheckContext]:
    service = Service("nginx", access_log=str(front.logs / "nginx-access.log"), error_log=str(front.logs / "nginx-error.log"))
    async with looking_at(service, clock=clock) as context:
        yield context


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def values(observed: Observed) -> dict[str, float]:
    return {":".join((sample.metric.name.removeprefix("monitor_"), *sample.labels)): sample.value for sample in observed.samples}


async def test_healthy_requests_are_counted_and_measured(front: Front, ctx: CheckContext, upstream: str) -> None:
    first = await look(access_log, ctx)
    assert await front.ask(*["/auth/took/0.5?token=secret"] * 19, "/auth/took/1.5", "/auth/health") == [200] * 20 + [404]
    observed = await look(access_log, after(ctx, first))
    assert observed.findings == ()
    seen, name = values(observed), upstream.removeprefix("http://")
    assert seen["requests_total:2xx"] - values(first)["requests_total:2xx"] == 20
    assert seen["requests_total:4xx"] == 0, "/health is not counted"
    assert seen["requests_duration_seconds:process:50"] == pytest.approx(0.5, rel=0.05)
    assert seen["requests_duration_seconds:process:99"] == pytest.approx(1.5, rel=0.05)
    assert 0 < seen["requests_duration_seconds:request:95"] < 0.5
    assert 0 < seen["requests_duration_seconds:upstream:95"] < 0.5
    assert seen[f"upstream_requests_recent:{name}"] == 20
    assert seen[f"upstream_up:{name}"] == 1
    assert seen["access_log_lines_unparsed_total"] == 0
    assert "secret" not in json.dumps(observed.keep)


async def test_x_process_time_of_real_requests_is_judged(front: Front, ctx: CheckContext, clock: SetClock) -> None:
    first = await look(access_log, ctx)
    await front.ask(*["/auth/took/0.1"] * 10, *["/auth/took/2.5"] * 2)
    second = await look(access_log, after(ctx, first))
    assert kinds(second) == [], "two are few"
    await front.ask("/auth/took/12.5?user=1")
    third = await look(access_log, after(ctx, second))
    (finding,) = third.findings
    assert (finding.kind.name, finding.kind.incident, finding.kind.severity) == ("SlowRequests", "INC-005", Severity.P3)
    assert finding.summary == "21 % of the requests to nginx took longer than 2 s in the last 5 min"
    facts = dict(finding.facts)
    assert facts["slow"] == "3 of 14"
    assert facts["slowest"] == "12.5 s, GET /auth/took/12.5"
    assert facts["process time"].startswith("p50 0.1")
    clock.ahead = timedelta(minutes=6)
    later = await look(access_log, after(ctx, third))
    assert later.findings == ()
    assert values(later)["requests_recent"] == 0
    assert values(later)["requests_slow_total"] == 3


async def test_401_on_all_requests(front: Front, ctx: CheckContext) -> None:
    await front.ask(*["/auth/status/401"] * 12)
    (finding,) = (await look(access_log, ctx)).findings
    assert (finding.kind.name, finding.kind.incident, finding.kind.severity) == ("UnauthorizedRequests", "INC-006", Severity.P2)
    assert "answered with 401 in the last 5 min" in finding.summary


async def test_server_errors_of_a_service_do_not_mean_that_it_is_gone(front: Front, ctx: CheckContext) -> None:
    await front.ask(*["/auth/took/0.1"] * 12, "/auth/status/500", "/auth/status/503", "/auth/status/502", "/auth/status/502")
    (finding,) = (await look(access_log, ctx)).findings
    assert (finding.kind.name, finding.kind.incident) == ("ServerErrors", None)
    assert dict(finding.facts)["failed"] == "4 of 17"


async def test_server_errors_that_are_mostly_timeouts(front: Front, ctx: CheckContext) -> None:
    await front.ask(*["/auth/took/0.1"] * 12, "/auth/status/500", "/auth/status/503", "/auth/status/504", "/auth/status/503")
    (finding,) = (await look(access_log, ctx)).findings
    assert (finding.kind.name, finding.kind.incident, finding.kind.severity) == ("TimeoutErrors", "INC-005", Severity.P2)
    assert dict(finding.facts)["503 or 504"] == "3 of 4"


async def test_an_upstream_server_that_is_down_is_named(front: Front, ctx: CheckContext, clock: SetClock) -> None:
    first = await look(access_log, ctx)
    await front.ask(*["/auth/took/0.1"] * 80)
    assert await front.ask("/data/a", "/data/b", "/data/c") == [502] * 3
    observed = await look(access_log, after(ctx, first))
    (finding,) = observed.findings
    assert (finding.kind.name, finding.kind.incident, finding.kind.severity) == ("UpstreamDown", "INC-001", Severity.P1)
    assert finding.labels == (("upstream", front.down),)
    assert finding.summary == f"nginx gets no answer from data ({front.down}): connect() failed (111: Connection refused)"
    assert dict(finding.facts)["not answered"] == "3 in a row, 3 of 3 in the window"
    assert values(observed)[f"upstream_up:{front.down}"] == 0
    port = int(front.down.rpartition(":")[2])
    server = await asyncio.start_server(_answer_204, "127.0.0.1", port)
    async with server:
        assert await front.ask("/data/d") == [204]
    over = await look(access_log, after(ctx, observed))
    assert over.findings == ()
    assert values(over)[f"upstream_up:{front.down}"] == 1


async def _answer_204(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_without_upstreams_in_the_format_the_error_log_names_them(front: Front, ctx: CheckContext, tmp_path: Path) -> None:
    await front.ask("/data/a", "/data/b", '/data/", upstream: "http://evil:1/', headers={"Referer": 'x", upstream: "http://evil:1/'})
    combined = tmp_path / "combined.log"
    stamp = datetime.now(UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")  # noqa: TID251
    combined.write_text(f'127.0.0.1 - - [{stamp}] "GET /data/a HTTP/1.1" 502 157 "-" "curl/8 \\"x\\""\n' * 3)
    here = ctx._replace(service=replace(ctx.service, access_log=str(combined)))
    (finding,) = (await look(access_log, here, format="combined")).findings
    assert (finding.kind.name, finding.labels) == ("UpstreamDown", (("upstream", front.down),))
    assert finding.value == 3
    assert "evil" not in str(finding)
    assert (await look(access_log, here, format="combined", read_error_log=False)).findings == ()


async def test_it_follows_a_rotation_as_logrotate_makes_it(front: Front, ctx: CheckContext) -> None:
    observed = await look(access_log, ctx)
    await front.ask(*["/auth/took/0.1"] * 3)
    path = front.logs / "nginx-access.log"
    path.rename(front.logs / "nginx-access.log.1")
    await asyncio.to_thread(front.reopen)
    await front.ask(*["/auth/took/0.1"] * 2)
    again = await look(access_log, after(ctx, observed))
    assert values(again)["requests_total:2xx"] - values(observed)["requests_total:2xx"] == 5
    assert values(again)["access_log_missed_bytes_total"] == 0


async def test_a_log_in_another_format_is_blind_until_it_is_right(front: Front, ctx: CheckContext) -> None:
    observed = await look(access_log, ctx)
    path = front.logs / "nginx-access.log"
    with path.open("a") as file:
        file.write("something else \x1b[31m altogether\n" * 40_000)
        front.sent += 40_000
    for _ in range(2):
        with pytest.raises(
            CannotLook, match=r"are not in the format 'timed': set format or pattern; one of them: 'something else \[31m alto"
        ):
            await look(access_log, after(ctx, observed))
    await front.ask(*["/auth/took/0.1"] * 60)
    again = await look(access_log, after(ctx, observed))
    assert values(again)["requests_recent"] >= 60
    assert values(again)["access_log_lines_unparsed_total"] >= 100


async def test_a_few_lines_that_do_not_parse_are_counted(front: Front, ctx: CheckContext) -> None:
    await front.ask(*["/auth/took/0.1"] * 10)
    with (front.logs / "nginx-access.log").open("a") as file:
        file.write("something else\n" * 4)
    observed = await look(access_log, ctx)
    assert values(observed)["access_log_lines_unparsed_total"] == 4
    assert observed.findings == ()


async def test_a_pattern_of_ones_own(front: Front, ctx: CheckContext, tmp_path: Path) -> None:
    own = tmp_path / "own.log"
    now = datetime.now(UTC).timestamp()  # noqa: TID251
    own.write_text("".join(f"{now:.3f}|{'401' if n % 2 else '200'}|/a|{n / 10}|srv{n % 3}\n" for n in range(40)))
    here = ctx._replace(service=replace(ctx.service, access_log=str(own)))
    pattern = r"(?P<time>[\d.]+)\|(?P<status>\d+)\|(?P<path>[^|]*)\|(?P<request_time>[\d.]+)\|(?P<upstream>\S+)"
    observed = await look(access_log, here, pattern=pattern, top=2)
    assert kinds(observed) == ["UnauthorizedRequests", "SlowRequests"]
    assert values(observed)["upstream_requests_recent:(other)"] == 13


async def test_the_services_own_logs_do_without_nginx(tmp_path: Path) -> None:
    router = APIRouter()

    @router.get("/{code}")
    async def answer(code: int) -> Response:
        if code == 500:
            raise ValueError("no")
        return Response("", code)

    path = tmp_path / "data-service.log"
    with serving(build_app("data-service", router, Settings(log_dir=tmp_path, postgres_port=1))) as url:
        async with looking_at(Service("data", access_log=str(path), error_log=str(tmp_path / "data-service-error.log"))) as ctx:
            before = await look(access_log, ctx, format="json")
            for code in [200] * 6 + [401] * 8 + [500] * 3:
                async with httpx2.AsyncClient(trust_env=False) as client:
                    assert (await client.get(f"{url}/api/v1/{code}")).status_code == code
            observed = await look(access_log, after(ctx, before), format="json", max_401_percent=40)
    assert kinds(observed) == ["ServerErrors", "UnauthorizedRequests"]
    seen = values(observed)
    assert [seen[f"requests_total:{status}"] for status in ("2xx", "4xx", "5xx")] == [6, 8, 3]
    assert 0 < seen["requests_duration_seconds:process:50"] < 1
    assert seen["access_log_lines_unparsed_total"] == 0


async def test_many_requests_to_many_servers_stay_bounded(front: Front, ctx: CheckContext, tmp_path: Path) -> None:
    big, now = tmp_path / "big.log", datetime.now(UTC)  # noqa: TID251
    with big.open("w") as file:
        for number in range(60_000):
            stamp, took = (now - timedelta(seconds=number % 290)).isoformat(timespec="seconds"), f"{(1.1 ** (number % 170)) / 1000:.3f}"
            file.write(
                f'10.0.0.1 - [{stamp}] "GET /{number} HTTP/1.1" 200 5 request_time={took} upstream_time={took}'
                f' upstream=10.0.{number % 97}.1:80 upstream_status=200 proxy=p process_time="{took}"\n'
            )
    here = ctx._replace(service=replace(ctx.service, access_log=str(big)))
    observed = await look(access_log, here, top=12)
    assert len(json.dumps(observed.keep)) < 262_144
    assert len([name for name in values(observed) if name.startswith("upstream_requests_recent")]) == 13
    assert values(observed)["requests_recent"] > 5_000


async def test_missing_logs_are_blind(front: Front, ctx: CheckContext, tmp_path: Path) -> None:
    for name in ("access_log", "error_log"):
        service = replace(ctx.service, **{name: str(tmp_path / "none.log")})
        with pytest.raises(CannotLook, match=r"none\.log cannot be read: No such file"):
            await look(access_log, ctx._replace(service=service))


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "not a regular"), ("(?P<time>.)", "group .*status"), (r"(?P<status>.)(?P<x>.)", "unknown groups x")]
)
def test_patterns_are_checked_at_the_start(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        access_log.config(pattern=pattern)
