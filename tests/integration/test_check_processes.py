"""The processes check, on processes of this machine: they come and go, loop, grow, and belong to others."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from checks.processes import processes
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from monitor.probes.host import LocalHost
from tests.integration.test_check_host import kinds, value
from tests.support.looking import after, look, looking_at

# What is watched lives until its standard input ends, which is when the test ends it, or ends itself.
SERVER = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print('up', flush=True); sys.stdin.read()"
IDLER = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
async def host() -> AsyncIterator[CheckContext]:
    async with looking_at(Service("host")) as ctx:
        yield ctx


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said that it is up; ended at the end."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


async def test_a_service_is_found_by_the_port_of_its_url() -> None:
    port = unused_port()
    async with looking_at(Service("shop", url=f"http://127.0.0.1:{port}")) as ctx:
        (finding,) = (await look(processes, ctx)).findings
        assert finding.kind.name == "ProcessMissing"
        assert finding.summary == f"no process of shop runs, none that listens on port {port}"
        with running(SERVER, port) as server:
            observed = await look(processes, ctx)
            assert kinds(observed) == []
            assert value(observed, "monitor_processes") == 1
            assert value(observed, "monitor_processes_resident_bytes") > 1_000_000
            (told,) = await ctx.host.processes(port=port)
            assert (told.pid, told.listens_on, told.parent) == (server.pid, (port,), os.getpid())


async def test_a_process_that_runs_without_its_port(host: CheckContext) -> None:
    word = f"word{os.urandom(4).hex()}"
    with running(IDLER, word):
        (finding,) = (await look(processes, host, command=word, port=unused_port())).findings
        assert finding.kind.name == "PortNotBound"
        assert dict(finding.facts)["it listens on"] == "none"


async def test_too_many_too_big_and_too_few(host: CheckContext) -> None:
    word = f"word{os.urandom(4).hex()}"
    with running(IDLER, word), running(IDLER, word):
        assert kinds(await look(processes, host, command=word, at_most=1)) == ["TooManyProcesses"]
        assert kinds(await look(processes, host, command=word, at_least=3)) == ["ProcessMissing"]
        assert kinds(await look(processes, host, command=word, max_resident_bytes=1000)) == ["ProcessMemoryHigh"]
        assert kinds(await look(processes, host, command=word, at_least=2)) == []


async def test_a_process_that_keeps_a_processor_busy(host: CheckContext) -> None:
    word = f"word{os.urandom(4).hex()}"
    with running("print('up', flush=True)\nwhile True: pass", word):
        first = await look(processes, host, command=word)
        assert "monitor_processes_cpu_ratio" not in {sample.metric.name for sample in first.samples}
        async with asyncio.timeout(30):
            while kinds(await look(processes, after(host, first), command=word, max_cpus=0.01)) != ["ProcessCpuHigh"]:
                continue


async def test_open_files_near_the_limit(host: CheckContext) -> None:
    word = f"word{os.urandom(4).hex()}"
    greedy = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)); "
        "held = [open('/dev/null') for _ in range(42)]; print('up', flush=True); sys.stdin.read()"
    )
    with running(greedy, word) as process:
        (finding,) = (await look(processes, host, command=word)).findings
        assert finding.kind.name == "ProcessFilesHigh"
        assert str(process.pid) in dict(finding.facts)["process"]


async def test_a_restart_loop_is_found_although_every_look_sees_a_process(host: CheckContext) -> None:
    word, ctx = f"word{os.urandom(4).hex()}", host
    for turn in range(4):
        with running(IDLER, word):
            observed = await look(processes, ctx, command=word, max_restarts=2, restarts_within="1h")
            assert kinds(observed) == (["RestartLoop"] if turn == 3 else [])
            ctx = after(ctx, observed)


LOOKS = """
import asyncio, json, os, pwd, sys
from checks.processes import processes
from monitor.errors import CannotLook
from monitor.plugins import Service
from tests.support.looking import look, looking_at

async def main():
    async with looking_at(Service("shop")) as ctx:
        try:
            return [finding.kind.name for finding in (await look(processes, ctx, **json.loads(sys.argv[1]))).findings]
        except CannotLook as exc:
            return f"BLIND: {exc}"

if os.geteuid() == 0:
    asyncio.run(main())  # imports all that it needs: afterwards Python itself may be out of reach
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
print(json.dumps(asyncio.run(main())))
"""


def seen_by_nobody(**config: object) -> Any:
    """What the check sees when the monitor runs as a user who owns nothing."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKS, json.dumps(config)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_processes_of_another_user_are_blind_not_fine() -> None:
    """The first process of the machine belongs to root; what nobody may see of it is not called fine."""
    command = " ".join(psutil.Process(1).cmdline())
    told = seen_by_nobody(command=command, port=unused_port())
    assert "may not see whether they listen on port" in told
    assert "and the open files of" in told
    assert "CAP_SYS_PTRACE" in told
    assert seen_by_nobody(command=command, port=0, warn_files_percent=0) == []
    assert seen_by_nobody(command=command, port=0, max_resident_bytes=1) == ["ProcessMemoryHigh"]


async def test_what_cannot_be_asked_of_processes(host: CheckContext) -> None:
    with pytest.raises(CannotLook, match="set command or port, or the service's url"):
        await look(processes, host)
    for name in ("--help", "a b", "x;y", "\x1b[2J"):
        with pytest.raises(CannotLook, match="is no name of a systemd unit"):
            await look(processes, host, command="python", unit=name)
    with pytest.raises(CannotLook, match="system"):
        await LocalHost().unit("no-such-unit-anywhere.service")
