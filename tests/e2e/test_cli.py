"""The command line against the real platform: what a person types, what is printed, which code comes back."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from monitor.demo.configuration import write_configuration
from services.faults import find_fault
from services.platform import Platform
from services.ports import Ports
from tests.support.monitoring import free_port


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with Platform(tmp_path_factory.mktemp("platform"), Ports.free()) as started:
        yield started


@pytest.fixture
def config(platform: Platform, tmp_path: Path) -> Path:
    return write_configuration(platform, tmp_path, free_port())


async def monitor(config: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "monitor", *arguments, "--config", str(config)]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, "COLUMNS": "160"}
    )


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_check_looks_once_and_says_so(config: Path) -> None:
    # Not all of them: what other tests did to jobs is still found.
    names = ("http_health", "idp_health", "pg_connections", "stuck_jobs")
    looked = await monitor(config, "check", *names, "--json")
    answer = json.loads(looked.stdout)
    assert (looked.returncode, answer["status"]) == (0, "OK"), looked.stdout
    assert {result["check"] for result in answer["results"]} == set(names)
    table = await monitor(config, "check", "http_health")
    assert table.returncode == 0
    assert "analytics" in table.stdout


async def test_check_is_critical_when_a_service_is_gone_and_unknown_when_it_cannot_look(platform: Platform, config: Path) -> None:
    fault = find_fault("service-down")
    await fault.provoke(platform)
    try:
        looked = await monitor(config, "check", "http_health/analytics")
    finally:
        await fault.heal(platform)
    assert looked.returncode == 2
    assert "refused" in looked.stdout
    secret = config.parent / "secrets" / "MONITOR_POSTGRES_DSN"
    secret.write_text(re.sub(r"password=\S+", "password=wrong-but-secret", secret.read_text()))
    blind = await monitor(config, "check", "stuck_jobs")
    assert blind.returncode == 3
    assert "password" in blind.stdout
    assert "wrong-but-secret" not in blind.stdout + blind.stderr
    secret.write_text("host=127.0.0.1 port=1 dbname=x user=y")
    blind = await monitor(config, "check", "stuck_jobs")
    assert blind.returncode == 3
    assert "UNKNOWN" in blind.stdout


@pytest.mark.parametrize("channel", ["oncall", "team_lead", "manager", "slack_ops", "tickets", "team", "reports"])
async def test_notify_test_reaches_every_channel(config: Path, channel: str) -> None:
    sent = await monitor(config, "notify", "test", channel)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.count("delivered") == 2


async def test_notify_test_names_the_nearest_channel_and_a_dead_one(config: Path) -> None:
    wrong = await monitor(config, "notify", "test", "oncal")
    assert wrong.returncode == 3
    assert "did you mean 'oncall'?" in wrong.stderr
    config.write_text(re.sub(r'base_url = "https://127.0.0.1:\d+"', 'base_url = "https://127.0.0.1:1"', config.read_text()))
    dead = await monitor(config, "notify", "test", "oncall")
    assert dead.returncode == 1
    assert "was not delivered" in dead.stderr
    assert "Traceback" not in dead.stderr


async def test_the_daily_report_is_printed_written_and_mailed(platform: Platform, config: Path) -> None:
    printed = await monitor(config, "report", "daily")
    assert printed.returncode == 0, printed.stderr
    assert len(re.findall("not measured", printed.stdout, re.IGNORECASE)) >= 2  # logs and disk: nobody answers them yet
    assert re.search(r"\d+ of \d+ usable", printed.stdout), printed.stdout
    out = config.parent / "daily.html"
    sent = await monitor(config, "report", "daily", "--send", "--out", str(out))
    assert sent.returncode == 0, sent.stderr
    assert "<html" in out.read_text()
    mails = (await platform.http.get(f"{platform.urls['mailbox']}/api/mails")).json()
    assert any("Daily checklist" in json.dumps(mail) for mail in (mails if isinstance(mails, list) else mails["mails"]))


async def test_the_runbook_diagnoses_plans_and_applies_only_what_was_shown(platform: Platform, config: Path) -> None:
    fault = find_fault("stuck-job")
    await fault.provoke(platform)
    try:
        quick = ("--param", "older_than=1s")
        await asyncio.sleep(1.2)  # the fault itself: a job is stuck when it has been silent for a second
        planned = json.loads((await monitor(config, "runbook", "plan", "cancel-stuck-jobs", *quick, "--json")).stdout)
        assert [outcome["status"] for outcome in planned["dry_run"]] == ["would"]
        nobody = await monitor(config, "runbook", "apply", "cancel-stuck-jobs", *quick, "--why", "test")
        assert nobody.returncode == 3
        assert "--plan" in nobody.stderr
        changed = await monitor(config, "runbook", "apply", "cancel-stuck-jobs", *quick, "--why", "test", "--plan", "0" * 64)
        assert changed.returncode == 1
        assert "refused" in changed.stderr
        shown = (await monitor(config, "runbook", "plan", "cancel-stuck-jobs", *quick)).stdout
        line = next(line for line in shown.splitlines() if "monitor runbook apply" in line)
        printed = shlex.split(line[line.index("monitor runbook apply") :])[1:]  # exactly what a person would copy
        done = await monitor(config, *printed[: printed.index("--config")], *printed[printed.index("--config") + 2 :])
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        await fault.heal(platform)
    diagnosed = await monitor(config, "runbook", "diagnose", "inc-003")
    assert diagnosed.returncode == 0, diagnosed.stdout + diagnosed.stderr
    audit = json.loads((await monitor(config, "runbook", "audit", "--json")).stdout)
    assert [entry["phase"] for entry in audit][-3:] == ["intent", "applied", "verified"]
    undiagnosed = await monitor(config, "runbook", "diagnose", "INC-001")
    assert "First step" in undiagnosed.stderr


async def test_nothing_can_be_applied_without_the_role_for_it(config: Path) -> None:
    text = re.sub(r"\[services.postgres.fix_dsn\]\nfile = .*\n", "", config.read_text())
    assert text != config.read_text()
    config.write_text(text)
    refused = await monitor(config, "runbook", "apply", "cancel-stuck-jobs", "--why", "x", "--plan", "0" * 12)
    assert refused.returncode == 1
    assert "fix_dsn is not configured" in refused.stderr


async def test_incidents_need_no_secrets_and_a_state_that_is_not_there_is_said(config: Path) -> None:
    missing = await monitor(config, "incidents")
    assert missing.returncode == 3
    assert "has not run with this configuration yet" in missing.stderr
    for secret in (config.parent / "secrets").iterdir():
        secret.unlink()
    again = await monitor(config, "ack", "abc")
    assert again.returncode == 3
    assert "Traceback" not in again.stderr


async def test_dashboards_are_written(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monitor", "dashboards", "build", "--out", str(tmp_path / "grafana")]
    built = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=90, check=False)
    assert built.returncode == 0, built.stderr
    assert list((tmp_path / "grafana").rglob("*.json"))


async def test_config_check_says_all_problems(config: Path) -> None:
    assert (await monitor(config, "config", "check")).returncode == 0
    config.write_text(config.read_text().replace("[checks.stuck_jobs]", "[checks.stuck_jbs]").replace('timezone = "', 'timezon = "'))
    wrong = await monitor(config, "config", "check")
    assert wrong.returncode == 3
    assert "stuck_jobs" in wrong.stderr
    assert "timezone" in wrong.stderr
