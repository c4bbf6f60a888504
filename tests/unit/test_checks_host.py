"""What the figures of a machine mean: trends of disks, kills for want of memory, restarts that systemd did."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.disk import POINTS, full_in
from checks.disk import Config as DiskConfig
from checks.disk import judge as judge_disk
from checks.load import Config as LoadConfig
from checks.load import judge as judge_load
from checks.memory import Config as MemoryConfig
from checks.memory import judge as judge_memory
from checks.processes import Config as ProcessesConfig
from checks.processes import judge as judge_processes
from checks.processes import unseen as unseen_of_processes
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.probes_contract import Disk, HostProcess, Load, Memory, Unit

GIB = 2**30
NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def filling(free_by_hour: list[float], cfg: DiskConfig, *, size: int = 100 * GIB, step_s: float = 3600) -> Observed:
    """The last of a series of looks at one disk, whose free space is given in GiB."""
    kept: Any = {}
    for number, free in enumerate(free_by_hour):
        one = Disk("/dev/sda1", "/data", size, int(free * GIB), 1000, 900, read_only=False)
        observed = judge_disk([one], kept, cfg, now=NOW + timedelta(seconds=number * step_s), service="host")
        kept = observed.keep
    return observed


def test_a_disk_that_fills_up_is_told_before_it_is_full() -> None:
    observed = filling([50, 45, 40, 35, 30, 25.0], DiskConfig())
    (finding,) = observed.findings
    assert finding.kind.name == "DiskFilling"
    assert finding.summary == "/data on host fills up: full in 5.0 h if it goes on like this (25 % free now)"


def test_a_trend_is_said_with_low_space_not_beside_it() -> None:
    (finding,) = filling([40, 35, 30, 25, 20, 15.0], DiskConfig()).findings
    assert finding.summary == "/data on host has 15 % of its space left, full in 3.0 h if it goes on like this"


@pytest.mark.parametrize("free", [[50.0] * 6, [50, 45], [25, 30, 35, 40, 45, 50], [90, 89, 88, 87, 86, 85]])
def test_no_trend(free: list[float]) -> None:
    assert kinds(filling(free, DiskConfig(full_within=48 * 3600))) == []


def test_a_look_every_few_seconds_keeps_few_points_and_the_same_line() -> None:
    observed = filling([50 - 5 * n / 360 for n in range(6 * 360)], DiskConfig(), step_s=10)
    assert len(observed.keep["/data"]) <= POINTS + 2
    (finding,) = observed.findings
    assert finding.value == pytest.approx(20 / 5 * 3600, rel=0.02)


def test_a_clock_that_was_set_back_begins_anew() -> None:
    one = Disk("", "/", 100, 50, 0, 0, read_only=False)
    kept = {"/": [[NOW.timestamp() + 3600 * n, 60.0] for n in range(10)]}
    assert len(judge_disk([one], kept, DiskConfig(), now=NOW, service="host").keep["/"]) == 1


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**15)), max_size=30))
def test_any_points_make_a_time_or_none(points: list[tuple[int, int]]) -> None:
    full_in_s = full_in(sorted([float(at), float(free)] for at, free in points), window_s=3600)
    assert full_in_s is None or full_in_s >= 0


def test_a_kill_is_told_for_an_hour() -> None:
    calm = Memory(100, 90, 0, 0, oom_kills=7)
    first = judge_memory(calm, {}, MemoryConfig(), now_s=1000, service="host")
    assert kinds(first) == []  # what happened before the first look is nobody's news
    killed = judge_memory(replace(calm, oom_kills=9), first.keep, MemoryConfig(), now_s=1060, service="host")
    assert kinds(killed) == ["OomKill"]
    assert killed.findings[0].summary == "the kernel of host killed 2 processes for want of memory"
    later = judge_memory(replace(calm, oom_kills=9), killed.keep, MemoryConfig(), now_s=4000, service="host")
    assert kinds(later) == ["OomKill"]
    over = judge_memory(replace(calm, oom_kills=9), later.keep, MemoryConfig(), now_s=4661, service="host")
    assert kinds(over) == []
    started_anew = judge_memory(replace(calm, oom_kills=1), over.keep, MemoryConfig(), now_s=9000, service="host")
    assert started_anew.findings[0].value == 1


def test_a_kernel_that_does_not_tell_of_kills_is_blind_and_hides_no_finding() -> None:
    seen = Memory(100, 90, 0, 0, oom_kills=7)
    before = judge_memory(seen, {}, MemoryConfig(), now_s=1000, service="host").keep
    with pytest.raises(CannotLook, match="no oom_kill in /proc/vmstat"):
        judge_memory(replace(seen, oom_kills=None), before, MemoryConfig(), now_s=1060, service="host")
    low = judge_memory(replace(seen, oom_kills=None, available_bytes=1), before, MemoryConfig(), now_s=1060, service="host")
    assert kinds(low) == ["MemoryLow"]
    assert "no oom_kill" in dict(low.findings[0].facts)["not seen"]
    # The count from before is not forgotten: what was killed meanwhile is told when the kernel tells again.
    assert kinds(judge_memory(replace(seen, oom_kills=8), low.keep, MemoryConfig(), now_s=1120, service="host")) == ["OomKill"]


@pytest.mark.parametrize(("available", "swap", "found"), [(50, 0, []), (9, 0, ["MemoryLow"]), (4, 90, ["MemoryLow", "SwapFull"])])
def test_memory(available: int, swap: int, found: list[str]) -> None:
    observed = judge_memory(Memory(100, available, 100, swap, 0), {}, MemoryConfig(), now_s=0, service="host")
    assert kinds(observed) == found
    assert not found or observed.findings[0].severity is (Severity.P2 if available < 5 else None)


def test_load() -> None:
    assert kinds(judge_load(Load(9, 5, 1, 2, 850, 1000), LoadConfig(), service="host")) == ["LoadHigh", "OpenFilesHigh"]
    assert kinds(judge_load(Load(9, 4, 1, 2, None, None), LoadConfig(), service="host")) == []


WORKER = HostProcess(10, 1, "worker", NOW - timedelta(hours=1), 1000, 5.0, 10, 1000, ())
UP = Unit("shop.service", "active", "running", 3, "success")


def judged(found: list[HostProcess], unit: Unit | None, before: dict[str, Any], *, after_s: float = 0) -> Observed:
    return judge_processes(found, unit, before, ProcessesConfig(command="x"), port=None, now_s=NOW.timestamp() + after_s, service="shop")


def test_restarts_that_systemd_counted_between_two_looks() -> None:
    first = judged([WORKER], UP, {})
    assert kinds(first) == []
    looping = judged([replace(WORKER, pid=11, started_at=NOW)], replace(UP, restarts=8), first.keep, after_s=60)
    assert kinds(looping) == ["RestartLoop"]
    assert kinds(judged([WORKER], UP, looping.keep, after_s=60 + 1801)) == []


def test_a_unit_that_failed() -> None:
    observed = judged([], replace(UP, active="failed", sub="failed", result="exit-code"), {})
    assert kinds(observed) == ["UnitNotActive", "ProcessMissing"]
    assert "journalctl -u shop.service" in dict(observed.findings[0].facts)["first"]


def test_workers_that_come_and_go_are_no_restart() -> None:
    before: dict[str, Any] = judged([WORKER], None, {}).keep
    for number in range(20):
        child = replace(WORKER, pid=100 + number, parent=10, started_at=NOW + timedelta(seconds=number))
        observed = judged([WORKER, child], None, before, after_s=number + 1)
        assert kinds(observed) == []
        before = observed.keep


def test_processor_time_of_a_process_that_came_with_the_same_number() -> None:
    before = judged([replace(WORKER, cpu_s=500.0)], None, {}).keep
    observed = judged([replace(WORKER, started_at=NOW, cpu_s=1.0)], None, before, after_s=10)
    assert next(sample.value for sample in observed.samples if sample.metric.name.endswith("cpu_ratio")) == pytest.approx(0.1)


HIDDEN = replace(WORKER, pid=12, open_files=None, max_open_files=None)


@pytest.mark.parametrize(
    ("found", "keys", "missing"),
    [
        ([HIDDEN], {}, ["whether they listen on port 80", "the open files of 1 of 1 process"]),
        ([HIDDEN], {"port": 0}, ["the open files of 1 of 1 process"]),
        ([HIDDEN], {"warn_files_percent": 0}, ["whether they listen on port 80"]),
        ([HIDDEN], {"port": 0, "warn_files_percent": 0}, []),
        ([WORKER, HIDDEN], {}, ["whether they listen on port 80", "the open files of 1 of 2 processes"]),
        ([replace(WORKER, listens_on=(80,)), HIDDEN], {"warn_files_percent": 0}, []),
        ([WORKER], {}, []),
        ([], {}, []),
    ],
)
def test_what_cannot_be_seen_of_processes(found: list[HostProcess], keys: dict[str, Any], missing: list[str]) -> None:
    cfg = ProcessesConfig.model_validate({"command": "x", "port": 80, **keys})
    told = unseen_of_processes(found, cfg, cfg.port)
    assert len(told) == bool(missing)
    assert all(part in told[0] for part in missing)
    assert not told or "CAP_SYS_PTRACE" in told[0]
    # A port that may be bound by a process that cannot be seen is not called unbound.
    judged = judge_processes(found, None, {}, cfg, port=cfg.port, now_s=NOW.timestamp(), service="shop")
    assert kinds(judged) == (["ProcessMissing"] if not found else ["PortNotBound"] if found == [WORKER] else [])


def test_no_port_needs_a_command() -> None:
    with pytest.raises(ValueError, match="port = 0 needs a command"):
        ProcessesConfig(port=0)
