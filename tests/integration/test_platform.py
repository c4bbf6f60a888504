"""The whole platform as one thing: it starts, serves, tells what a monitor needs, and leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx2
import psutil
import psycopg
import pytest

from services.cluster import Cluster, free_port
from services.platform import Platform, PlatformError, Ports
from tests.conftest import tool

ORPHAN = """
import asyncio, sys
from pathlib import Path
from services.platform import Platform, Ports

async def main():
    platform = Platform(Path(sys.argv[1]), Ports.free(), traffic=True)
    await platform.start()
    print(*platform.pids.values(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def wait_gone(pids: Iterable[int], within_s: float = 15) -> None:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=within_s)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def folders(where: Path) -> list[str]:
    return [path.name for path in where.iterdir() if path.name.startswith("platform-db-")]


async def test_starts_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told: list[str] = []
    platform = Platform(tmp_path / "root", Ports.free(), on_progress=told.append, traffic=True)
    async with platform:
        pids = dict(platform.pids)
        assert set(pids) >= {"postgres", "externals", "auth", "data", "analytics"}
        async with httpx2.AsyncClient(verify=False, trust_env=False) as http:
            for name, url in platform.addresses.items():
                assert (await http.get(url)).status_code == 200, name
        headers = await platform.log_in()
        available = await platform.http.get(f"{platform.urls['data']}/api/v1/availability", headers=headers)
        assert available.status_code == 200, available.text
        for name in ("MONITOR_POSTGRES_DSN", "MONITOR_POSTGRES_CANARY_DSN", "MONITOR_POSTGRES_FIX_DSN"):
            with psycopg.connect(platform.environment[name]) as connection:
                assert connection.execute("SELECT current_database()").fetchone() == ("google_analytics_db",)
        state = platform.root / "platform.json"
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        for secret in platform.environment.values():
            assert secret not in state.read_text() + "".join(told)
        log = platform.log_dir / "auth-service.log"
        deadline = time.monotonic() + 20
        while "/api/v1/verify" not in log.read_text():  # traffic
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert platform.pids == {}
    wait_gone(pids.values(), 1)
    assert platform.database_folder is not None
    assert not platform.database_folder.exists()
    assert not state.exists()
    await platform.stop()
    assert any("is up after" in line for line in told)


async def test_can_be_started_again_with_fresh_secrets(tmp_path: Path) -> None:
    ports = Ports.free()
    secrets = set()
    for _ in range(2):
        async with Platform(tmp_path, ports) as platform:
            secrets.add(platform.environment["SLACK_BOT_TOKEN"])
            await platform.log_in()
    assert len(secrets) == 2


async def test_nginx_is_in_front_and_logs_how_long_it_took(tmp_path: Path) -> None:
    tool("nginx")
    async with Platform(tmp_path, Ports.free()) as platform:
        assert platform.has_nginx
        for name in ("auth", "data", "analytics"):
            answer = await platform.http.get(f"{platform.urls['nginx']}/{name}/health")
            assert answer.json()["service"] == f"{name}-service"
        assert (await platform.http.get(f"{platform.urls['nginx']}/other")).status_code == 404
        logged = (platform.log_dir / "nginx-access.log").read_text()
        assert "/auth/health" in logged
        assert "request_time=0." in logged


async def test_taken_ports_are_named_before_anything_starts(tmp_path: Path) -> None:
    ports = Ports.free()
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", ports.data)
    async with taken:
        with pytest.raises(PlatformError, match=rf"data \({ports.data}\)"):
            await Platform(tmp_path / "root", ports).start()
    assert not (tmp_path / "root").exists()


async def test_an_unreachable_server_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    dsn = f"host=127.0.0.1 port={free_port()} user=admin password=top-secret"
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(PlatformError, match="refused") as told:
        await Platform(tmp_path, Ports.free(), dsn=dsn).start()
    assert "top-secret" not in str(told.value)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize("dsn", ["host=localhost password top-secret", "postgresql://u:top-secret@[::1"])
async def test_a_dsn_that_is_none_is_told_without_its_password(tmp_path: Path, dsn: str) -> None:
    with pytest.raises(PlatformError, match="expected host=") as told:
        await Platform(tmp_path, Ports.free(), dsn=dsn).start()
    assert "top-secret" not in str(told.value)


async def test_a_service_that_does_not_come_up_shows_its_log(tmp_path: Path) -> None:
    ports = Ports.free()
    with pytest.raises(PlatformError, match=r"(?s)pagerduty.*cannot listen"):
        # Two listeners on one port: the port is free until the first of them takes it.
        await Platform(tmp_path, Ports(**{**ports.by_name(), "pagerduty": ports.idp})).start()


@pytest.mark.parametrize("line", ["starting", "the externals", "PostgreSQL", "the database", "the auth service"])
async def test_a_cancelled_start_leaves_nothing(tmp_path: Path, line: str) -> None:
    reached = asyncio.Event()
    before = set(psutil.Process().children(recursive=True))
    platform = Platform(tmp_path / "root", Ports.free(), on_progress=lambda told: reached.set() if told.startswith(line) else None)
    starting = asyncio.create_task(platform.start())
    await asyncio.wait_for(reached.wait(), 30)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert set(psutil.Process().children(recursive=True)) <= before
    assert platform.database_folder is None or not platform.database_folder.exists()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that the server's account may enter too; those of pytest are private, and become so again at any moment."""
    folder = Path(tempfile.mkdtemp(prefix="platform-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path, open_folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(open_folder)}
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path / "root")], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        family = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
        assert len(pids) >= 5
        assert folders(open_folder)
        os.kill(pids[1], signal.SIGSTOP)  # even one that hears nothing
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    wait_gone({*pids, *family})
    assert folders(open_folder) == []


@pytest.fixture
def given_server(open_folder: Path) -> Iterator[Cluster]:
    with Cluster(open_folder / "data", password_auth=True) as cluster:
        yield cluster


async def test_uses_a_server_that_is_given(tmp_path: Path, given_server: Cluster) -> None:
    for _ in range(2):  # the second time, database and roles are there
        async with Platform(tmp_path, Ports.free(), dsn=given_server.dsn()) as platform:
            assert "postgres" not in platform.pids
            await platform.log_in()
            with psycopg.connect(platform.environment["MONITOR_POSTGRES_DSN"]) as connection:
                row = connection.execute("SELECT inet_server_port()").fetchone()
                assert row == (given_server.port,)
    with psycopg.connect(given_server.dsn("google_analytics_db")) as connection:
        assert connection.execute("SELECT count(*) FROM tenant_config").fetchone() == (1,)
