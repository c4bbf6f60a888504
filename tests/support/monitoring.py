"""The real monitor as a child process, with a small configuration: one HTTP target, one pager."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import tomli_w

PAGER_KEY = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def black_hole(port: int = 0) -> Iterator[str]:
    """An address that never answers a new connection, as behind a dead network: its backlog is full; the value is "host:port"."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def secret(folder: Path, name: str, text: str) -> dict[str, str]:
    """A secret file that only its owner reads, and how a configuration beside it refers to it."""
    (folder / name).touch(mode=0o600)
    (folder / name).write_text(text)
    return {"file": name}


def write_config(folder: Path, *, target: str, pager_url: str, ca_file: str, port: int, token: str = "", **more: object) -> Path:
    """A configuration that looks at ``target`` every second and pages at the first failure. ``more`` replaces whole tables.

    With a ``token`` people and programs may change things over HTTP.
    """
    base = f"127.0.0.1:{port}"
    key = secret(folder, "pager.key", PAGER_KEY)
    chain = [{"after": "0s", "who": "on-call", "channels": ["oncall"]}]
    check = {"services": ["web"], "every": "1s", "timeout": "900ms", "deadline": "500ms", "slow_after": "400ms"}
    config: dict[str, object] = {
        "monitor": {
            "listen": base,
            "external_url": f"http://{base}",
            "state": "state/monitor.db",
            **({"token": secret(folder, "token", token)} if token else {}),
        },
        "services": {"web": {"url": target}},
        "checks": {"http_health": {**check, "fail_after": 1, "recover_after": 1, "blind_after": 3, "recheck": "200ms"}},
        "channels": {"oncall": {"notifier": "pagerduty", "routing_key": key, "base_url": pager_url, "ca_file": ca_file}},
        "escalation": {f"P{number}": chain for number in range(1, 5)},
        **more,
    }
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(config))
    return path


@asynccontextmanager
async def child(
    folder: Path, *arguments: str, module: str = "monitor", env: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """``python -m MODULE …`` with its output in ``folder/monitor.log``; stopped at the end, if it still runs."""
    with (folder / "monitor.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments, stdout=log, stderr=log, env={**os.environ, **(env or {})}
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()


async def ready(port: int, process: asyncio.subprocess.Process, folder: Path) -> None:
    """Wait until the monitor says that it is ready; its log is the message when it does not."""
    async with httpx2.AsyncClient(trust_env=False, timeout=2) as http:
        for _ in range(1200):
            assert process.returncode is None, (folder / "monitor.log").read_text()
            with contextlib.suppress(httpx2.HTTPError):
                if (await http.get(f"http://127.0.0.1:{port}/-/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise AssertionError((folder / "monitor.log").read_text())


class Target:
    """A small HTTP service on a fixed port that can be up or down."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    @staticmethod
    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
