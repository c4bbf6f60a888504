"""Every drill, as a person runs it: the demo starts, breaks, pages, mends, resolves, and leaves nothing behind."""

import asyncio
import os
import random
import socket
import sys
from pathlib import Path

import psutil
import pytest

from monitor.demo.drills import DRILLS

NEEDED = 13


def free_ports() -> int:
    """The first of enough consecutive free ports."""
    for _ in range(100):
        first = random.randrange(20_000, 30_000)
        sockets: list[socket.socket] = []
        try:
            for port in range(first, first + NEEDED):
                sockets.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        else:
            return first
        finally:
            for held in sockets:
                held.close()
    raise AssertionError("no free ports")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [drill.fault.name for drill in DRILLS])
async def test_drill(name: str, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "monitor", "demo", "--drill", name, "--exit"),
        *("--ports-from", str(free_ports()), "--folder", str(tmp_path / "demo")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "140"},
    )
    printed = (await asyncio.wait_for(demo.communicate(), 220))[0].decode()
    assert demo.returncode == 0, printed
    assert f"drill {name} passed" in printed
    assert "✗" not in printed
    assert "the page arrived" in printed
    assert "the resolve arrived" in printed
    assert "one fault, one page" in printed
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert left == []
