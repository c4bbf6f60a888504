"""``monitor demo``: the whole platform and the monitor on this machine, until Ctrl-C; drills on request."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from pathlib import Path

import httpx2
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from monitor.app import ListenError, listen
from monitor.clock import SystemClock
from monitor.demo.configuration import write_configuration
from monitor.demo.drills import DrillError, find_drill, run_drill
from monitor.errors import MonitorError, UsageError
from services.faults import FaultError
from services.nginx import find_nginx
from services.platform import Platform, PlatformError
from services.ports import Ports
from services.processes import Child, Guard, ProcessError

UP_WITHIN_S = 20.0
MARKER = ".monitor-demo"
"""The file by which a demo knows its own folder again."""
console = Console(highlight=False)


class DemoError(MonitorError):
    """The demo cannot be started, or something it needs went away."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What was asked for. ``ports_from`` takes consecutive ports, the monitor's first, instead of the usual ones."""

    folder: Path
    dsn: str | None = None
    monitor_port: int = 8010
    ports_from: int | None = None
    drill: str | None = None
    exit_after: bool = False

    def ports(self) -> tuple[int, Ports]:
        """The monitor's port and the platform's. Raises ``UsageError`` when they do not fit below 65536."""
        if self.ports_from is None:
            return self.monitor_port, Ports()
        names = [known.name for known in fields(Ports)]
        if not 1 <= self.ports_from <= 65535 - len(names):
            raise UsageError(f"--ports-from needs {len(names) + 1} ports from 1 to 65535: choose a smaller one")
        return self.ports_from, Ports(**{name: self.ports_from + 1 + number for number, name in enumerate(names)})


async def run_demo(asked: Demo) -> bool:
    """Run until Ctrl-C, or until the drill has ended. True unless a drill failed. Raises ``MonitorError``."""
    if asked.exit_after and asked.drill is None:
        raise UsageError("--exit ends the demo after a drill: say which with --drill")
    drill = None if asked.drill is None else find_drill(asked.drill)
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    passed = drill is None
    try:
        async with _everything(asked) as (platform, config):
            if drill is not None:
                passed = await run_drill(drill, platform, config, console)
            if not asked.exit_after:
                console.print("[dim]Ctrl-C stops everything.[/]")
                await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        console.print("[green]✓[/] stopped: nothing is left running")
    except (PlatformError, ProcessError, FaultError, DrillError) as exc:
        raise DemoError(str(exc)) from exc
    return passed


@contextlib.asynccontextmanager
async def _everything(asked: Demo) -> AsyncIterator[tuple[Platform, Path]]:
    """The platform and the monitor, up; both are stopped at the end, whatever happens."""
    monitor_port, ports = asked.ports()
    _refuse_taken_ports(asked, monitor_port, ports)
    _take_folder(asked.folder)
    clock = SystemClock()
    began = clock.monotonic()
    with console.status("starting") as status:

        def say(line: str) -> None:
            status.update(escape(line))
            console.print(f"[green]✓[/] {escape(line)}")

        platform = Platform(asked.folder / "platform", ports, dsn=asked.dsn, on_progress=say, traffic=True)
        try:
            await platform.start()
            guard = Guard()
            try:
                config = write_configuration(platform, asked.folder, monitor_port)
                monitor = await _start_monitor(config, asked.folder, monitor_port, guard)
                try:
                    say(f"the monitor is up ({clock.monotonic() - began:.1f} s after the start)")
                    status.stop()
                    _show_addresses(platform, monitor_port, config)
                    yield platform, config
                finally:
                    status.update("stopping")
                    status.start()
                    await asyncio.shield(asyncio.to_thread(monitor.stop))
            finally:
                guard.close()
        finally:
            await platform.stop()


def _refuse_taken_ports(asked: Demo, monitor_port: int, ports: Ports) -> None:
    """Before anything is touched: another demo may be running. Raises ``ListenError``."""
    try:
        listen("127.0.0.1", monitor_port).close()
    except ListenError as exc:
        raise ListenError(f"port {monitor_port} of 127.0.0.1 is taken: end what uses it, or choose others with --ports-from") from exc
    unused = {name for name, here in (("postgres", asked.dsn is None), ("nginx", find_nginx() is not None)) if not here}
    if taken := [f"{name} ({port})" for name, port in ports.taken() if name not in unused]:
        raise ListenError(f"ports of 127.0.0.1 are taken: {', '.join(taken)}: end what uses them, or choose others with --ports-from")


def _take_folder(folder: Path) -> None:
    """Make or empty the demo's folder; never one that a demo did not make. Raises ``DemoError``."""
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise DemoError(f"the folder {folder} is not a demo's and not empty: choose another with --folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
        shutil.rmtree(folder / "platform", ignore_errors=True)
    except OSError as exc:
        raise DemoError(f"the folder {folder} cannot be used: {exc.strerror}; choose another with --folder") from exc


async def _start_monitor(config: Path, folder: Path, port: int, guard: Guard) -> Child:
    log = folder / "monitor.log"
    log.unlink(missing_ok=True)
    child = Child(
        "monitor",
        [sys.executable, "-m", "monitor", "run", "--config", str(config)],
        log=log,
        environment=dict(os.environ),
        cwd=Path.cwd(),
        guard=guard,
    )
    child.start()

    async def is_up() -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            async with httpx2.AsyncClient(trust_env=False, timeout=2) as http:
                return (await http.get(f"http://127.0.0.1:{port}/-/ready")).status_code == 200
        return False

    try:
        await child.wait_until(is_up, UP_WITHIN_S, "ready answer")
    except BaseException:
        await asyncio.to_thread(child.stop)
        raise
    return child


def _show_addresses(platform: Platform, port: int, config: Path) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(style="cyan")
    rows = {"status page": f"http://127.0.0.1:{port}/", "metrics": f"http://127.0.0.1:{port}/metrics", **platform.addresses}
    for name, url in rows.items():
        table.add_row(name, url)
    console.print(Panel(table, title="look", title_align="left", border_style="green", expand=False))
    shown = config if not config.is_relative_to(Path.cwd()) else config.relative_to(Path.cwd())
    console.print("\n[bold]try, in another terminal[/]")
    for what, command in (
        ("break it", f"python -m services.faults --root {shown.parent}/platform provoke service-down"),
        ("what is wrong", f"monitor incidents --config {shown}"),
        ("look once", f"monitor check --config {shown}"),
    ):
        console.print(f"  [dim]# {what}[/]\n  .venv/bin/{escape(command)}", soft_wrap=True)
    console.print()
