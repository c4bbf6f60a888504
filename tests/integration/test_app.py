"""The running monitor as a child process: its HTTP face, reload, signals, and bad days."""

import asyncio
import gzip
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from services.externals import pagerduty
from tests.conftest import tool
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import Target, child, free_port, ready, write_config
from tests.support.world import until, until_async

TOKEN = "let-me-reload"


@dataclass
class Running:
    """A monitor that is up, its target and its pager."""

    folder: Path
    config: Path
    process: asyncio.subprocess.Process
    http: httpx2.AsyncClient
    target: Target
    pager: Fake

    def log(self) -> str:
        return (self.folder / "monitor.log").read_text()

    async def metric(self, line: str) -> bool:
        return f"{line}.0" in (await self.http.get("/metrics")).text.splitlines()

    def rewrite(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    authority, target, port = Authority.create(tmp_path), Target(), free_port()
    await target.up()
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(tmp_path, target=target.url, pager_url=pager.url, ca_file=authority.ca_file, port=port, token=TOKEN)
        async with child(tmp_path, "run", "--config", str(config)) as process:
            await ready(port, process, tmp_path)
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http:
                yield Running(tmp_path, config, process, http, target, pager)
    await target.down()


async def test_health_metrics_and_pages(running: Running) -> None:
    await until_async(lambda: running.metric('monitor_check_outcome{check="http_health",service="web",outcome="ok"} 1'))
    assert (await running.http.get("/-/healthy")).text == "healthy\n"
    assert (await running.http.head("/-/ready")).status_code == 200
    page = await running.http.get("/")
    assert "web" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert (await running.http.get("/fragment")).status_code == 200
    assert (await running.http.get("/incidents/ffffffffffff")).status_code == 404
    metrics = await running.http.get("/metrics", headers={"Accept-Encoding": "identity"})
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    checked = subprocess.run([tool("promtool"), "check", "metrics"], input=metrics.content, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()
    raw = await running.http.send(running.http.build_request("GET", "/metrics", headers={"Accept-Encoding": "gzip"}), stream=True)
    assert gzip.decompress(b"".join([chunk async for chunk in raw.aiter_raw()])).startswith(b"# HELP")


async def test_an_incident_has_a_page_and_is_shown(running: Running) -> None:
    await running.target.down()
    await until_async(lambda: running.metric('monitor_incidents{severity="P1",state="open"} 1'))
    page = (await running.http.get("/")).text
    incident_id = page.split("/incidents/")[1][:12]
    shown = (await running.http.get(f"/incidents/{incident_id}")).text
    assert "does not answer" in shown
    assert "told at once" in shown


async def test_reload_needs_the_token_and_keeps_the_old_configuration_on_error(running: Running) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert (await running.http.get("/-/reload")).status_code == 405
    assert (await running.http.post("/-/reload")).status_code == 401
    assert (await running.http.post("/-/reload", headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (await running.http.post("/-/reload", headers=bearer)).text == "reloaded\n"
    running.rewrite('every = "1s"', 'evry = "1s"')
    refused = await running.http.post("/-/reload", headers=bearer)
    assert refused.status_code == 422
    assert "evry" in refused.text
    assert "every" in refused.text
    assert await running.metric("monitor_config_last_reload_successful 0")
    assert (await running.http.get("/-/ready")).status_code == 200
    running.rewrite('evry = "1s"', 'every = "2s"')
    assert (await running.http.post("/-/reload", headers=bearer)).status_code == 200
    assert await running.metric("monitor_config_last_reload_successful 1")
    running.rewrite('listen = "127.0.0.1:', 'listen = "127.0.0.2:')
    assert "restart it" in (await running.http.post("/-/reload", headers=bearer)).text


async def test_hangup_reloads_and_a_removed_check_ends_its_incident(running: Running) -> None:
    await running.target.down()
    await until_async(lambda: running.metric('monitor_incidents{severity="P1",state="open"} 1'))
    running.rewrite("[checks.http_health]", "[checks.renamed]\ncheck = 'http_health'")
    running.rewrite("fail_after = 1", "fail_after = 1000")
    running.process.send_signal(signal.SIGHUP)
    await until(lambda: "no longer watched" in running.log())

    async def resolved() -> bool:
        return any(call["event_action"] == "resolve" for call in (await running.pager.received())["events"])

    await until_async(resolved)
    assert 'check="http_health"' not in (await running.http.get("/metrics")).text


async def test_a_state_that_cannot_be_written_is_said_and_ends_when_it_can(running: Running) -> None:
    import sqlite3

    holder = sqlite3.connect(running.folder / "state" / "monitor.db", isolation_level=None, timeout=30)
    holder.execute("BEGIN EXCLUSIVE")
    try:

        async def unready() -> bool:
            return (await running.http.get("/-/ready")).status_code == 503

        await until_async(unready)
        assert "locked" in (await running.http.get("/-/ready")).text
        assert (await running.http.get("/-/healthy")).status_code == 200
        await until_async(lambda: running.metric("monitor_store_up 0"))
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    await until_async(lambda: running.metric("monitor_store_up 1"))
    assert running.process.returncode is None


async def test_terminate_ends_it_cleanly(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(running.process.wait(), 10) == 0
    assert "Traceback" not in running.log()


# --- bad starts ------------------------------------------------------------------------------------------------------


def start(folder: Path, *changes: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    authority = Authority.create(folder)
    config = write_config(folder, target="http://127.0.0.1:1", pager_url="https://127.0.0.1:1", ca_file=authority.ca_file, port=free_port())
    text = config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    command = [sys.executable, "-m", "monitor", "run", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("[services.web]", "[services.wob]")], ("config.toml:", "web", "wob")),
        ([("[checks.http_health]", "[checks.http_health")], ("config.toml:",)),
        ([('state = "state/monitor.db"', 'state = "/dev/null/monitor.db"')], ("/dev/null/monitor.db", "folder cannot be made")),
        ([('state = "state/monitor.db"', 'state = "."')], ("state",)),
    ],
)
def test_a_bad_start_is_one_clear_error(tmp_path: Path, changes: list[tuple[str, str]], said: tuple[str, ...]) -> None:
    ended = start(tmp_path, *changes)
    assert ended.returncode == 3
    assert all(words in ended.stderr for words in said), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        authority = Authority.create(tmp_path)
        config = write_config(tmp_path, target="http://127.0.0.1:1", pager_url="https://127.0.0.1:1", ca_file=authority.ca_file, port=port)
        command = [sys.executable, "-m", "monitor", "run", "--config", str(config)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
