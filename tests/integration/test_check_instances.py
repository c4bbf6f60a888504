"""Real instances of a service behind real nginx: one is killed, one is restarted again and again, one is of another version and time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from checks.service_instances import service_instances
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import Service
from services import nginx
from services.cluster import free_port
from tests.conftest import tool
from tests.platform_parts import serving, until
from tests.support.looking import after, look, looking_at

ROOT = Path(__file__).parents[2]


@dataclass
class Instance:
    """One auth service of the platform, in a process of its own. It serves /health while everything else is away."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it is healthy."""
        environment = {**os.environ, "LOG_DIR": str(self.folder), "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1", "IDP_URL": ""}
        argv = [sys.executable, "-m", "uvicorn", "services.auth_service:app", "--port", str(self.port), "--log-level", "error"]
        with (self.folder / f"{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=log, stderr=log)
        until(lambda: answers(f"{self.url}/health"), "the instance is healthy")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def answers(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(url, trust_env=False).status_code == 200
    return False


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Instance, Instance]]:
    both = (Instance(tmp_path), Instance(tmp_path))
    try:
        for one in both:
            one.start()
        yield both
    finally:
        for one in both:
            one.kill()


@contextmanager
def proxy(folder: Path, to: int) -> Iterator[str]:
    """nginx as the platform configures it, before the instance at this port; the value is its address."""
    program, port = tool("nginx"), free_port()
    process = subprocess.Popen(
        nginx.command(program, nginx.configure(folder, folder, port=port, upstreams={"auth": to})), stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/"), "nginx is up")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def told(observed: Observed) -> list[tuple[str, dict[str, str]]]:
    return [(finding.kind.name, dict(finding.labels)) for finding in observed.findings]


async def test_instances_that_die_and_are_restarted_behind_a_proxy(pair: tuple[Instance, Instance], tmp_path: Path) -> None:
    first, second = pair
    with proxy(tmp_path / "nginx", first.port) as front:
        async with looking_at(Service("auth", url=front, instances=(first.url, second.url))) as ctx:

            async def seen(before: Observed | None = None) -> Observed:
                here = ctx if before is None else after(ctx, before)
                return await look(service_instances, here, front_path="/auth/health", max_restarts=1)

            well = await seen()
            assert told(well) == []
            second.kill()
            down = await seen(well)
            assert told(down) == [("InstanceDown", {"target": second.address})]
            assert "refused" in dict(down.findings[0].facts)["said"]
            second.start()
            once = await seen(down)
            assert told(once) == []
            second.kill()
            second.start()
            twice = await seen(once)
            assert told(twice) == [("InstanceRestarts", {"target": second.address})]
            # The proxy passes everything to the instance that is gone, and the other one is well.
            first.kill()
            assert told(await seen(twice))[:2] == [("InstanceDown", {"target": first.address}), ("ProxyFailing", {})]
            second.kill()
            assert told(await seen(twice))[:1] == [("AllInstancesDown", {})]


def other(health: Callable[[], dict[str, object]]) -> FastAPI:
    app = FastAPI()
    app.get("/health")(health)
    return app


async def test_an_instance_of_another_version_with_another_clock(tmp_path: Path) -> None:
    def ahead() -> dict[str, object]:
        return {"status": "healthy", "version": "0.0.2", "timestamp": time.time() + 30, "started_at": time.time() - 60}

    ours = Instance(tmp_path)
    try:
        ours.start()
        with serving(other(ahead)) as url:
            async with looking_at(Service("auth", instances=(ours.url, url))) as ctx:
                observed = await look(service_instances, ctx, version_skew_after="0s")
                assert told(observed) == [("VersionSkew", {}), ("ClockSkew", {"target": url.removeprefix("http://")})]
                assert "run 2 versions" in observed.findings[0].summary
                assert "is 30.0 s ahead of the monitor's" in observed.findings[1].summary
        with serving(other(lambda: {"status": "healthy"})) as url:
            async with looking_at(Service("auth", instances=(ours.url, url))) as ctx:
                with pytest.raises(CannotLook, match="has no version and no timestamp and no started_at"):
                    await look(service_instances, ctx)
                assert told(await look(service_instances, ctx, compare=[])) == []
    finally:
        ours.kill()
