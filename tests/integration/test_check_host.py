"""The checks of the machine, on this machine: file systems that fill up, processes that come and go, a backup job's own list."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from checks.backups import backups
from checks.disk import disk
from checks.due_dates import due_dates
from checks.load import load
from checks.memory import memory
from monitor.clock import SystemClock
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Kept, Service
from monitor.probes.host import LocalHost
from monitor.probes_contract import Disk
from tests.conftest import tool
from tests.support.looking import look, looking_at


@pytest.fixture
async def host() -> AsyncIterator[CheckContext]:
    async with looking_at(Service("host")) as ctx:
        yield ctx


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def value(observed: Observed, name: str) -> float:
    return next(sample.value for sample in observed.samples if sample.metric.name == name)


# --- disks -----------------------------------------------------------------------------------------------------------


OF_ONE_OWN = "test_disks_of_a_namespace_of_ones_own"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own: 4 MiB and 40 inodes."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40", "small", str(tmp_path)]
    made = subprocess.run(mount, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this user may not mount ({made.stderr.splitlines()[0]}): {OF_ONE_OWN} tries it in a user namespace")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_disks_of_a_namespace_of_ones_own(tmp_path: Path) -> None:
    """A user who may not mount may do so in a user namespace, mostly: there the tests of disks run too, in a process of their own."""
    mount = ["mount", "-t", "tmpfs", "small", str(tmp_path)]
    namespace = [tool("unshare"), "-Urm"]
    made = subprocess.run([*namespace, *mount], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"nothing on this machine lets this user mount, a user namespace neither: {made.stderr.splitlines()[0]}")
    those = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__, "-k", "disk and not namespace"]
    done = subprocess.run([*namespace, *those], cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


async def test_an_empty_disk_is_fine_and_measured(small_disk: Path, host: CheckContext) -> None:
    observed = await look(disk, host, paths=[str(small_disk), str(small_disk / ".")])
    assert observed.findings == ()
    assert value(observed, "monitor_disk_size_bytes") == 4 * 1024 * 1024
    assert {sample.labels for sample in observed.samples} == {(str(small_disk),)}  # one file system, told once


async def test_a_disk_that_is_almost_full(small_disk: Path, host: CheckContext) -> None:
    (small_disk / "big").write_bytes(b"x" * 3_500_000)
    (finding,) = (await look(disk, host, paths=[str(small_disk)])).findings
    assert (finding.kind.name, finding.severity) == ("DiskSpaceLow", None)
    assert f"{small_disk} on host has 17 % of its space left" in finding.summary
    (small_disk / "more").write_bytes(b"x" * 600_000)
    (finding,) = (await look(disk, host, paths=[str(small_disk)])).findings
    assert finding.severity is Severity.P2


async def test_a_full_disk_is_seen_not_suffered(small_disk: Path, host: CheckContext) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "big").write_bytes(b"x" * 5_000_000)
    (finding,) = (await look(disk, host, paths=[str(small_disk)])).findings
    assert "0 % of its space left" in finding.summary


async def test_a_disk_whose_inodes_run_out_while_there_is_space(small_disk: Path, host: CheckContext) -> None:
    for number in range(35):
        (small_disk / str(number)).touch()
    assert kinds(await look(disk, host, paths=[str(small_disk)])) == ["DiskInodesLow"]


async def test_a_disk_that_became_read_only(small_disk: Path, host: CheckContext) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert kinds(await look(disk, host, paths=[str(small_disk)])) == ["DiskReadOnly"]
    assert kinds(await look(disk, host, paths=[str(small_disk)], may_be_read_only=True)) == []


async def test_a_missing_path_is_blind_not_fine(host: CheckContext) -> None:
    fine = {"warn_free_percent": 0, "critical_free_percent": 0, "full_within": 0, "may_be_read_only": True}
    with pytest.raises(CannotLook, match=r"the file system of /no/such/place cannot be seen: No such file"):
        await look(disk, host, paths=["/proc", "/no/such/place"], **fine)


async def test_a_missing_path_does_not_hide_a_disk_that_is_full(small_disk: Path, host: CheckContext) -> None:
    (small_disk / "big").write_bytes(b"x" * 3_500_000)
    (finding,) = (await look(disk, host, paths=["/no/such/place", str(small_disk)])).findings
    assert finding.kind.name == "DiskSpaceLow"
    assert "the file system of /no/such/place cannot be seen" in dict(finding.facts)["not seen"]
    # What was not seen this time keeps the points of its trend.
    before = host._replace(kept=Kept(at=host.clock.now(), value={"/gone": [[1.0, 2.0]]}))
    observed = await look(disk, before, paths=["/no/such/place", str(small_disk)])
    assert set(cast(dict[str, Any], observed.keep)) == {"/gone", str(small_disk)}


async def test_a_path_that_hangs_does_not_hide_a_disk_that_is_full(host: CheckContext) -> None:
    """The hanging one is answered for after the other was seen, and only then: they are asked at once."""
    seen = asyncio.Event()

    class Machine(LocalHost):
        async def disk(self, path: str) -> Disk:
            if path == "/hangs":
                await seen.wait()
                raise CannotLook("asking for the space on /hangs took longer than 5 s")
            seen.set()
            return Disk("/dev/sda1", path, 100, 5, 0, 0, read_only=False)

    (finding,) = (await look(disk, host._replace(host=Machine()), paths=["/hangs", "/full"])).findings
    assert dict(finding.facts)["not seen"] == "asking for the space on /hangs took longer than 5 s"


# --- memory and load -------------------------------------------------------------------------------------------------


async def test_memory_of_this_machine(host: CheckContext) -> None:
    observed = await look(memory, host, warn_available_percent=0, critical_available_percent=0)
    assert kinds(observed) == []
    told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()}
    assert value(observed, "monitor_memory_size_bytes") == told["MemTotal"]
    assert 0 < value(observed, "monitor_memory_available_bytes") < told["MemTotal"]
    killed = re.findall(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    assert [(await host.host.memory()).oom_kills] == [int(count) for count in killed]
    assert value(observed, "monitor_oom_kills_total") == int(killed[0])
    assert kinds(await look(memory, host, warn_available_percent=99.9, critical_available_percent=0)) == ["MemoryLow"]


async def test_load_of_this_machine(host: CheckContext) -> None:
    observed = await look(load, host, warn_per_cpu=1e6, warn_files_percent=100)
    assert kinds(observed) == []
    assert value(observed, "monitor_cpus") == os.cpu_count()
    assert value(observed, "monitor_open_files") > 0


# --- backups ---------------------------------------------------------------------------------------------------------

Listed = dict[str, Any]


def run_line(kind: str = "backup", *, hours_ago: float, ok: bool = True, **more: object) -> Listed:
    """A line of the list, so long before the test that writes it."""
    return {"hours_ago": hours_ago, "kind": kind, "ok": ok, **more}


async def looked(runs: Path, ctx: CheckContext, *lines: Listed | str, **config: object) -> Observed:
    def written(line: Listed | str) -> str:
        if isinstance(line, str):
            return line
        at = ctx.clock.now() - timedelta(hours=line["hours_ago"])
        return json.dumps({"at": at.isoformat(), **{key: value for key, value in line.items() if key != "hours_ago"}}) + "\n"

    runs.write_text("".join(map(written, lines)))
    return await look(backups, ctx, runs=str(runs), **config)


async def test_backups_that_are_made_and_proven(tmp_path: Path, host: CheckContext) -> None:
    lines = [run_line(hours_ago=24 * day + 1, size_bytes=1000 + day, duration_s=5) for day in reversed(range(10))]
    observed = await looked(tmp_path / "runs", host, run_line("restore", hours_ago=90), *lines)
    assert kinds(observed) == []
    assert value(observed, "monitor_backup_age_seconds") == pytest.approx(3600, abs=60)
    assert value(observed, "monitor_backup_restore_age_seconds") == pytest.approx(90 * 3600, abs=60)
    assert value(observed, "monitor_backup_size_bytes") == 1000


@pytest.mark.parametrize(
    ("lines", "found", "words"),
    [
        ([run_line(hours_ago=30)], "BackupTooOld", "is 30.0 h old"),
        ([run_line(hours_ago=1, ok=False)], "BackupTooOld", "no good backup of host is known"),
        (
            [run_line(hours_ago=20), run_line(hours_ago=1, ok=False, detail="disk\x1b[2J full")],
            "BackupFailed",
            "the latest backup of host failed",
        ),
        ([run_line("restore", hours_ago=290), run_line(hours_ago=1)], "RestoreNotVerified", "last restored and verified 12 d ago"),
        ([run_line(hours_ago=1)], "RestoreNotVerified", "no backup of host was ever restored"),
        ([run_line("restore", hours_ago=3, ok=False), run_line(hours_ago=1)], "RestoreFailed", "the latest restore of host failed"),
        (
            [*(run_line(hours_ago=24 * d, size_bytes=10**9) for d in (4, 3, 2, 1)), run_line(hours_ago=0, size_bytes=20)],
            "BackupSizeOdd",
            "100 % smaller",
        ),
    ],
)
async def test_backups_that_cannot_be_trusted(tmp_path: Path, host: CheckContext, lines: list[Listed], found: str, words: str) -> None:
    observed = await looked(tmp_path / "runs", host, *lines)
    finding = next(finding for finding in observed.findings if finding.kind.name == found)
    assert words in finding.summary
    assert all(text.isprintable() for pair in finding.facts for text in pair)


async def test_a_list_of_backups_that_says_nothing_is_blind(tmp_path: Path, host: CheckContext) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(CannotLook, match="No such file"):
        await look(backups, host, runs=str(runs))
    for last, why in (
        ("backup done\n", "Invalid JSON"),
        (json.dumps({"at": "yesterday", "kind": "backup", "ok": True}) + "\n", "at: "),
        (json.dumps({"at": "2026-11-24T03:00:00", "kind": "backup", "ok": True}) + "\n", "timezone"),
        (run_line(hours_ago=-48), "it ends in the future"),
    ):
        with pytest.raises(CannotLook, match=f"the latest line is no run of a backup: .*{why}"):
            await looked(runs, host, run_line(hours_ago=2), last)
    # An older line that is none, such as one that was cut when the list was, does not hide the newer ones.
    assert "BackupTooOld" not in kinds(await looked(runs, host, "rubbish\n", run_line(hours_ago=2)))
    assert kinds(await looked(runs, host)) == ["BackupTooOld", "RestoreNotVerified"]


# --- dates -----------------------------------------------------------------------------------------------------------


async def test_dates_that_come_near(host: CheckContext) -> None:
    today = SystemClock().now().date()
    observed = await look(
        due_dates,
        host,
        dates=[
            {"what": "SFTP key", "changed": today - timedelta(days=400), "max_age": "365d", "how": "ssh-keygen, then mail the customer"},
            {"what": "contract", "due": today + timedelta(days=10)},
            {"what": "domain", "due": today + timedelta(days=200)},
            {"what": "audit", "due": today, "warn_before": "0s"},
        ],
    )
    assert kinds(observed) == ["DateOverdue", "DateDueSoon", "DateDueSoon"]
    assert [finding.summary for finding in observed.findings] == [
        "SFTP key is 35 days overdue (host)",
        "audit is due today (host)",
        "contract is due in 10 days (host)",
    ]
    assert {sample.labels[0]: sample.value / 86_400 for sample in observed.samples}["domain"] == 200


@pytest.mark.parametrize(
    ("dates", "why"),
    [
        ([{"what": "x"}], "either due, or changed and max_age"),
        ([{"what": "x", "due": "2027-01-01", "changed": "2026-01-01", "max_age": "1d"}], "either due, or changed and max_age"),
        ([{"what": "x", "due": "2027-02-30"}], "date"),
        ([{"what": "x", "due": "2027-01-01"}, {"what": "x", "due": "2027-01-02"}], "stands there twice"),
    ],
)
def test_dates_that_are_none(dates: list[dict[str, str]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        due_dates.config.model_validate({"dates": dates})
