"""Logs that are rotated, and logs that are not: size, age, parts, folder, and writers that did not notice."""

import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from shutil import which

import pytest

from checks.log_rotation import log_rotation
from monitor.clock import SystemClock
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import after, look, looking_at


@dataclass
class SetClock(SystemClock):
    """The machine's clock, set forward."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def path(tmp_path: Path, clock: SetClock) -> Path:
    path = tmp_path / "data-service.log"
    path.write_text(f'{{"level": "info", "timestamp": "{clock.now().isoformat()}"}}\n')
    return path


@pytest.fixture
async def ctx(path: Path, clock: SetClock) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("data", log=str(path)), clock=clock) as context:
        yield context


def values(observed: Observed) -> dict[str, float]:
    return {":".join((sample.metric.name.removeprefix("monitor_log_"), *sample.labels)): sample.value for sample in observed.samples}


def written(path: Path, at: datetime, text: str = "x\n") -> None:
    path.write_text(text)
    os.utime(path, (at.timestamp(), at.timestamp()))


async def test_a_young_small_log_is_ok(ctx: CheckContext, path: Path) -> None:
    written(path.with_name("data-service.log.1"), SystemClock().now() - timedelta(hours=1))
    observed = await look(log_rotation, ctx)
    assert observed.findings == ()
    seen = values(observed)
    assert (seen["file_size_bytes:log"], seen["rotated_files:log"]) == (path.stat().st_size, 1)
    assert 0 <= seen["file_age_seconds:log"] < 10
    assert seen["folder_size_bytes"] > 0


async def test_a_log_that_nobody_rotates_is_found_by_its_first_line(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    first = await look(log_rotation, ctx)
    clock.ahead = timedelta(days=2, hours=12)
    with path.open("a") as file:
        file.write("fresh\n")
    observed = await look(log_rotation, after(ctx, first))
    (finding,) = observed.findings
    assert (finding.kind.name, finding.kind.severity, finding.labels) == ("LogNotRotated", Severity.P4, (("file", "log"),))
    assert finding.summary == f"{path} of data is 2.5 days old, more than 2 days: log rotation does not work"
    assert dict(finding.facts)["last rotated"] == "never: there is no rotated file"
    assert (await look(log_rotation, ctx, max_age=0)).findings == ()
    path.write_text("")
    assert (await look(log_rotation, after(ctx, observed))).findings == (), "nothing in it, nothing to rotate"


async def test_without_times_a_log_is_as_old_as_it_is_known(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    path.write_text("no time\n")
    first = await look(log_rotation, ctx)
    clock.ahead = timedelta(days=3)
    (finding,) = (await look(log_rotation, after(ctx, first))).findings
    assert finding.kind.name == "LogNotRotated"
    path.rename(path.with_name("data-service.log.1"))
    path.write_text("no time\n")
    assert (await look(log_rotation, after(ctx, first))).findings == ()


async def test_a_large_log_and_a_large_folder(ctx: CheckContext, path: Path) -> None:
    with path.open("a") as file:
        file.write("x" * 100_000)
    observed = await look(log_rotation, ctx, max_bytes=50_000, max_folder_bytes=60_000)
    assert [finding.kind.name for finding in observed.findings] == ["LogNotRotated", "LogsPiledUp"]
    assert "is 97.7 KiB large, more than 48.8 KiB" in observed.findings[0].summary
    assert observed.findings[1].value == values(observed)["folder_size_bytes"] >= 100_000


async def test_old_parts_that_nobody_deletes(ctx: CheckContext, path: Path) -> None:
    for number in range(1, 6):
        path.with_name(f"data-service.log.{number}.gz").write_text("x")
    assert (await look(log_rotation, ctx)).findings == ()
    (finding,) = (await look(log_rotation, ctx, max_rotated=4)).findings
    assert (finding.kind.name, finding.value) == ("LogsPiledUp", 5)


async def test_a_service_that_writes_on_into_the_rotated_file(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    part = path.with_name("data-service.log.1")
    path.rename(part)
    written(path, clock.now() - timedelta(minutes=10), "")
    (finding,) = (await look(log_rotation, ctx)).findings
    assert (finding.kind.name, finding.kind.severity) == ("LogNotReopened", Severity.P3)
    assert finding.summary == f"data still writes to data-service.log.1, which was rotated: {path} stays empty"
    assert dict(finding.facts)["first"].endswith(f"lsof {part}")
    written(part, clock.now() - timedelta(minutes=11))
    assert (await look(log_rotation, ctx)).findings == ()


@pytest.mark.parametrize("way", ["create", "copytruncate"])
async def test_after_a_rotation_all_is_well(ctx: CheckContext, path: Path, clock: SetClock, way: str) -> None:
    clock.ahead = timedelta(days=3)
    assert len((await look(log_rotation, ctx)).findings) == 1
    program = which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
    if program:
        rules = path.with_name("rules")
        rules.write_text(f"{path} {{\n daily\n rotate 14\n compress\n delaycompress\n {way}\n}}\n")
        rules.chmod(0o644)
        path.parent.chmod(0o755)
        subprocess.run([program, "--force", "--state", path.with_name("state"), rules], check=True, timeout=30)
    else:
        path.rename(path.with_name("data-service.log.1"))
        path.touch()
    observed = await look(log_rotation, ctx)
    assert observed.findings == ()
    assert values(observed)["rotated_files:log"] == 1


async def test_what_cannot_be_looked_at_is_blind(tmp_path: Path) -> None:
    async with looking_at(Service("data")) as ctx:
        with pytest.raises(CannotLook, match=r"service data has no log: set log, error_log or access_log in \[services\.data\]"):
            await look(log_rotation, ctx)
    async with looking_at(Service("data", error_log=str(tmp_path / "none.log"))) as ctx:
        with pytest.raises(CannotLook, match=r"none\.log cannot be read: No such file"):
            await look(log_rotation, ctx)
