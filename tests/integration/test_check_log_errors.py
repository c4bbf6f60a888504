"""The error log of a service, as it is written while somebody looks: counted by shape, new ones first."""

import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, FastAPI

from checks.log_errors import log_errors
from monitor.clock import SystemClock
from monitor.domain import Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Kept, Service
from services.common import build_app
from services.settings import Settings
from tests.platform_parts import serving
from tests.support.looking import after, look, looking_at


@dataclass
class SetClock(SystemClock):
    """The machine's clock, set forward."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data-service-error.log"
    path.touch()
    return path


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def ctx(path: Path, clock: SetClock) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("data", error_log=str(path), log=str(path)), clock=clock) as context:
        yield context


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def values(observed: Observed) -> dict[str, float]:
    return {sample.metric.name: sample.value for sample in observed.samples if not sample.labels}


def add(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def line(text: str, *, at: datetime | None = None, level: str = "ERROR") -> str:
    return f"{(at or SystemClock().now()).isoformat()} {level} {text}"


async def test_an_empty_log_is_ok(ctx: CheckContext) -> None:
    observed = await look(log_errors, ctx)
    assert observed.findings == ()
    assert values(observed)["monitor_log_errors"] == 0


async def test_errors_of_the_last_day_are_found_by_shape(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    now = clock.now()
    add(path, line("long ago", at=now - timedelta(hours=30)), *(line(f"job {n} failed", at=now - timedelta(hours=n)) for n in range(1, 6)))
    add(path, line("fine", level="INFO"), line("disk 'a' is slow", at=now - timedelta(hours=2)))
    observed = await look(log_errors, ctx)
    (finding,) = observed.findings
    assert (finding.kind.name, finding.kind.severity, finding.value) == ("LogErrors", Severity.P4, 6)
    assert finding.summary == "data logged 6 errors of 2 kinds in the last 24 hours, most often: error: job <n> failed"
    facts = dict(finding.facts)
    assert facts["error: job <n> failed"].startswith("5 in 24 h, last at ")
    assert facts["error: disk <text> is slow"].endswith(": disk 'a' is slow")
    clock.ahead = timedelta(hours=22)
    (later,) = (await look(log_errors, after(ctx, observed))).findings
    assert later.value == 1
    clock.ahead = timedelta(hours=40)
    assert (await look(log_errors, after(ctx, observed))).findings == ()


async def test_a_new_shape_is_told_first_and_only_while_it_is_new(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    add(path, *[line(f"job {number} failed") for number in range(50)])
    first = await look(log_errors, ctx, burst_per_minute=1000)
    assert kinds(first) == ["LogErrors"], "at the first look everything is new, so nothing is"
    add(path, line("job 99 failed"), line("the disk is full"))
    second = await look(log_errors, after(ctx, first), burst_per_minute=1000)
    assert kinds(second) == ["NewErrorShape", "LogErrors"]
    assert second.findings[0].summary == "data logs an error not seen before: error: the disk is full"
    assert second.findings[0].kind.severity == Severity.P3
    assert second.findings[1].facts[0][0] == "error: the disk is full", "before the fifty others"
    assert kinds(await look(log_errors, after(ctx, second))) == ["ErrorBurst", "NewErrorShape", "LogErrors"]
    clock.ahead = timedelta(hours=2)
    third = await look(log_errors, after(ctx, second))
    assert kinds(third) == ["LogErrors"]
    clock.ahead = timedelta(hours=48)
    gone = await look(log_errors, after(ctx, third))
    assert kinds(gone) == []
    add(path, line("the disk is full", at=clock.now()))
    assert kinds(await look(log_errors, after(ctx, gone))) == ["LogErrors"], "seen before, though not today"


async def test_a_burst_is_found_by_the_times_of_the_lines(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    observed = await look(log_errors, ctx)
    now = clock.now()
    add(path, *[line(f"old {number}", at=now - timedelta(hours=2)) for number in range(500)])
    observed = await look(log_errors, after(ctx, observed), max_errors=1000, new_for="60s")
    assert "ErrorBurst" not in kinds(observed)
    add(path, *[line(f"try {number}") for number in range(60)])
    observed = await look(log_errors, after(ctx, observed), max_errors=1000)
    (burst, _) = observed.findings
    assert (burst.kind.name, burst.value, burst.kind.severity) == ("ErrorBurst", 12.0, Severity.P2)
    assert dict(burst.facts)["errors"] == "60 within 5 min"


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  too many connections for role "x"',
        "FATAL: sorry, too many clients already",
        "FATAL:  Remaining connection slots are reserved for roles",
    ],
)
async def test_the_runbooks_texts_lead_to_their_incident(ctx: CheckContext, path: Path, clock: SetClock, text: str) -> None:
    add(path, line(f"connection failed: {text}", level="WARNING"))
    observed = await look(log_errors, ctx)
    (finding,) = observed.findings
    assert (finding.kind.name, finding.kind.incident, finding.kind.severity) == ("ConnectionsExhaustedLogged", "INC-002", Severity.P1)
    assert finding.summary.startswith("the log of data says once within 5 min: connection failed: FATAL")
    clock.ahead = timedelta(minutes=7)
    assert (await look(log_errors, after(ctx, observed))).findings == ()


async def test_own_patterns(ctx: CheckContext, path: Path) -> None:
    add(path, line("SMTP server says 535"), line("a request for /smtp SERVER says", level="INFO"))
    observed = await look(log_errors, ctx, patterns={"INC-004": ["smtp server says"]}, max_errors=5)
    (finding,) = observed.findings
    assert (finding.kind.incident, finding.value) == ("INC-004", 1)


async def test_a_traceback_is_one_error_also_when_it_is_written_in_two_halves(ctx: CheckContext, path: Path) -> None:
    observed = await look(log_errors, ctx)
    add(path, line("crashed"), "Traceback (most recent call last):", '  File "a.py", line 1, in f')
    observed = await look(log_errors, after(ctx, observed))
    assert observed.findings == ()
    add(path, "    g()", "ValueError: 42 is bad", line("fine", level="INFO"))
    observed = await look(log_errors, after(ctx, observed))
    assert values(observed)["monitor_log_errors"] == 1
    assert dict(observed.findings[-1].facts)["error: ValueError: <n> is bad"]


async def test_what_was_written_while_the_monitor_was_off_is_caught_up_across_rotations(ctx: CheckContext, path: Path) -> None:
    add(path, line("a 1"))
    observed = await look(log_errors, ctx)
    add(path, line("a 2"))
    path.rename(path.with_name("data-service-error.log.1"))
    add(path, line("a 3"))
    observed = await look(log_errors, after(ctx, observed))
    assert values(observed)["monitor_log_errors"] == 3
    path.write_text(line("a 4") + "\n")
    observed = await look(log_errors, after(ctx, observed))
    assert values(observed)["monitor_log_errors"] == 4
    path.unlink()
    with pytest.raises(CannotLook, match="No such file"):
        await look(log_errors, after(ctx, observed))
    add(path, line("a 5"))
    assert values(await look(log_errors, after(ctx, observed)))["monitor_log_errors"] == 5


async def test_lines_without_a_time_were_written_since_the_last_look(ctx: CheckContext, path: Path, clock: SetClock) -> None:
    add(path, "boom 1", "boom 2")
    observed = await look(log_errors, ctx)
    assert values(observed)["monitor_log_errors"] == 0, "nobody knows when"
    long_ago = after(ctx, observed)
    assert long_ago.kept
    long_ago = long_ago._replace(kept=Kept(clock.now() - timedelta(hours=48), long_ago.kept.value))
    add(path, *(f"boom {number}" for number in range(100)))
    observed = await look(log_errors, long_ago)
    assert kinds(observed) == ["LogErrors"], "known, and spread over two days: no burst"
    assert 48 <= values(observed)["monitor_log_errors"] <= 52


async def test_the_whole_log_counts_only_what_is_an_error(ctx: CheckContext, path: Path) -> None:
    add(path, line("fine", level="INFO"), "words without a level", line("bad"), line("careful", level="WARNING"))
    assert values(await look(log_errors, ctx, source="log"))["monitor_log_errors"] == 1
    assert values(await look(log_errors, ctx, source="log", min_level="warning"))["monitor_log_errors"] == 2


async def test_hostile_text_stays_one_line_and_bounded(ctx: CheckContext, path: Path) -> None:
    observed = await look(log_errors, ctx)
    rows = [
        {"level": "error", "event": f"\u202e\x1b[31m\n{chr(0x4E00 + n)}{chr(0x5E00 + n)} \ud800" + "\U0001f525" * 300} for n in range(3000)
    ]
    add(path, *map(json.dumps, rows))
    with path.open("ab") as file:
        file.write(os.urandom(200_000) + b"\n")
    observed = await look(log_errors, after(ctx, observed), max_shapes=120, deadline="30s", within_s=30)
    assert len(json.dumps(observed.keep, ensure_ascii=False).encode()) < 262_144
    assert values(observed)["monitor_log_errors"] >= 3000
    assert values(observed)["monitor_log_error_shapes"] == 120
    for finding in observed.findings:
        assert finding.labels == ()
        for text in (finding.summary, *(part for fact in finding.facts for part in fact)):
            assert text.isprintable()
            assert len(text) < 400


async def test_200_mb_do_not_take_longer_than_the_deadline(ctx: CheckContext, path: Path) -> None:
    observed = await look(log_errors, ctx)
    block = "".join(line(f"job {number} failed") + "\n" for number in range(20_000))
    with path.open("a") as file:
        for _ in range(200_000_000 // len(block)):
            file.write(block)
    for _ in range(2):
        observed = await look(log_errors, after(ctx, observed), deadline="2s", within_s=2.5)
        assert values(observed)["monitor_log_errors"] > 1000
        assert values(observed)["monitor_log_missed_bytes_total"] > 130_000_000
        assert values(observed)["monitor_log_behind"] == 1


async def test_no_such_log_is_blind(tmp_path: Path) -> None:
    async with looking_at(Service("data", error_log=str(tmp_path / "none.log"))) as ctx:
        with pytest.raises(CannotLook, match=r"none\.log cannot be read: No such file"):
            await look(log_errors, ctx)
        with pytest.raises(CannotLook, match=r"service data has no log: set log in \[services.data\]"):
            await look(log_errors, ctx, source="log")


async def test_what_our_services_write_is_understood(tmp_path: Path) -> None:
    router = APIRouter()

    @router.get("/crash")
    async def crash() -> None:
        raise ValueError("no 42")

    app: FastAPI = build_app("data-service", router, Settings(log_dir=tmp_path, postgres_port=1))
    with serving(app) as url:
        async with looking_at(Service("data", error_log=str(tmp_path / "data-service-error.log"))) as ctx:
            before = await look(log_errors, ctx)
            for _ in range(3):
                async with httpx2.AsyncClient(trust_env=False) as client:
                    assert (await client.get(f"{url}/api/v1/crash")).status_code == 500
            logging.getLogger("psycopg.pool").warning("error connecting: FATAL: sorry, too many clients already")
            observed = await look(log_errors, after(ctx, before))
    assert "NewErrorShape" in kinds(observed)
    assert "ConnectionsExhaustedLogged" in kinds(observed)
    shapes = dict(observed.findings[-1].facts)
    assert any("ValueError: no <n>" in name and text.startswith(("new, ", "3 in")) for name, text in shapes.items())
