"""The machine that the monitor runs on, seen through psutil, the kernel's own files and systemd."""

import asyncio
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from monitor.errors import CannotLook
from monitor.plugins import one_line
from monitor.probes.beside import BesideTheLoop, Stopped
from monitor.probes_contract import Disk, HostProcess, Load, Memory, Unit

UNIT_WITHIN_S = 4.0
SHOWN_CHARS = 200
VMSTAT, FILE_NR = Path("/proc/vmstat"), Path("/proc/sys/fs/file-nr")
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")
_ASKED = ("LoadState", "ActiveState", "SubState", "NRestarts", "Result")


class LocalHost:
    """Implements :class:`monitor.probes_contract.Host`."""

    def __init__(self) -> None:
        self._beside = BesideTheLoop()

    async def disk(self, path: str) -> Disk:
        def look(_: Stopped) -> Disk:
            return _disk(path)

        try:
            return await self._beside(f"asking for the space on {path}", look)
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise CannotLook(f"the file system of {path} cannot be seen: {reason}: is the path right, and is it mounted?") from exc

    async def memory(self) -> Memory:
        try:
            now, swap = psutil.virtual_memory(), psutil.swap_memory()
        except (psutil.Error, OSError) as exc:
            raise CannotLook(f"the memory of this machine cannot be seen: {exc}") from exc
        return Memory(now.total, now.available, swap.total, swap.used, _oom_kills())

    async def load(self) -> Load:
        try:
            one, five, fifteen = os.getloadavg()
        except OSError as exc:
            raise CannotLook(f"the load of this machine cannot be seen: {exc}") from exc
        opened, at_most = _file_handles()
        return Load(one, five, fifteen, psutil.cpu_count() or 1, opened, at_most)

    async def processes(self, text: str = "", *, port: int | None = None) -> tuple[HostProcess, ...]:
        def look(stopped: Stopped) -> tuple[HostProcess, ...]:
            owners = _owners(port) if port is not None else None
            return tuple(_processes(text, owners, stopped))

        try:
            return await self._beside("looking through the processes", look)
        except (psutil.Error, OSError) as exc:
            raise CannotLook(f"the processes of this machine cannot be seen: {exc}") from exc

    async def unit(self, name: str) -> Unit:
        if not _UNIT_NAME.fullmatch(name) or name.startswith("-"):
            raise CannotLook(f"{one_line(name, limit=60)!r} is no name of a systemd unit: write one such as nginx.service")
        told = await _ask_systemd(name)
        if told.get("LoadState") != "loaded":
            raise CannotLook(
                f"systemd has no unit {name} ({told.get('LoadState') or 'it says nothing'}): systemctl list-units shows the names"
            )
        restarts = told.get("NRestarts", "")
        return Unit(
            name=name,
            active=told.get("ActiveState", ""),
            sub=told.get("SubState", ""),
            restarts=int(restarts) if restarts.isdigit() else 0,
            result=told.get("Result", ""),
        )


# --- disks -----------------------------------------------------------------------------------------------------------


def _disk(path: str) -> Disk:
    status = os.statvfs(path)
    device, mount_point = _mount_of(path)
    return Disk(
        device=device,
        mount_point=mount_point,
        total_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
        total_inodes=status.f_files,
        free_inodes=status.f_favail,
        read_only=bool(status.f_flag & os.ST_RDONLY),
    )


def _mount_of(path: str) -> tuple[str, str]:
    """Device and mount point: the longest one above the path; the last one mounted there hides those before."""
    real = os.path.realpath(path)
    found = ("", "/")
    for part in psutil.disk_partitions(all=True):
        point = part.mountpoint
        above = real == point or real.startswith(point.rstrip("/") + "/")
        if above and len(point) >= len(found[1]):
            found = (part.device, point)
    return found


# --- memory and files ------------------------------------------------------------------------------------------------


def _oom_kills() -> int | None:
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _file_handles() -> tuple[int | None, int | None]:
    try:
        opened, _, at_most = FILE_NR.read_text().split()
    except (OSError, ValueError):
        return None, None
    return int(opened), int(at_most)


# --- processes -------------------------------------------------------------------------------------------------------


def _owners(port: int) -> set[int | None]:
    """Who listens on the port; None stands for an owner that this user may not see."""
    return {
        found.pid
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port
    }


def _processes(text: str, owners: set[int | None] | None, stopped: Stopped) -> Iterator[HostProcess]:
    if owners is not None and None in owners:
        raise CannotLook(
            "something listens on the port, but this user may not see which process: run the monitor as the services' user or with "
            "CAP_SYS_PTRACE; with command, port = 0 and warn_files_percent = 0 it is watched without its port and open files"
        )
    candidates = (psutil.Process(pid) for pid in _pids(owners)) if owners is not None else psutil.process_iter()
    for process in candidates:
        if stopped():
            return
        if process.pid == os.getpid():
            continue
        try:
            command = " ".join(process.cmdline()) or process.name()
            if text in command:
                yield _process(process, command)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it ended while we looked


def _pids(owners: set[int | None]) -> list[int]:
    return sorted(pid for pid in owners if pid is not None and psutil.pid_exists(pid))


def _process(process: psutil.Process, command: str) -> HostProcess:
    with process.oneshot():
        times = process.cpu_times()
        return HostProcess(
            pid=process.pid,
            parent=process.ppid(),
            command=one_line(command, limit=SHOWN_CHARS),
            started_at=datetime.fromtimestamp(process.create_time(), UTC),
            rss_bytes=process.memory_info().rss,
            cpu_s=times.user + times.system,
            open_files=_or_none(process.num_fds),
            max_open_files=_or_none(lambda: process.rlimit(psutil.RLIMIT_NOFILE)[0]),
            listens_on=_ports(process),
        )


def _or_none(ask: Callable[[], int]) -> int | None:
    try:
        return ask()
    except psutil.AccessDenied:
        return None


def _ports(process: psutil.Process) -> tuple[int, ...]:
    try:
        found = process.net_connections("tcp")
    except psutil.AccessDenied:
        return ()
    return tuple(sorted({one.laddr.port for one in found if one.status == psutil.CONN_LISTEN and one.laddr}))


# --- systemd ---------------------------------------------------------------------------------------------------------


async def _ask_systemd(name: str) -> dict[str, str]:
    command = ("systemctl", "show", f"--property={','.join(_ASKED)}", "--", name)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as exc:
        raise CannotLook(f"systemctl cannot be run: {exc.strerror}: is this machine run by systemd?") from exc
    try:
        async with asyncio.timeout(UNIT_WITHIN_S):
            out, complaint = await process.communicate()
    except TimeoutError:
        raise CannotLook(f"systemctl did not answer within {UNIT_WITHIN_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CannotLook(f"systemctl cannot tell of {name}: {one_line(complaint.decode('utf-8', 'replace'))}")
    return dict(line.partition("=")[::2] for line in out.decode("utf-8", "replace").splitlines())
