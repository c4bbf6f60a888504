"""What a person on call types: lists, one incident, and what a silence, a window or a rule would mute before it does."""

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from alerts.decide import Policy, decide, groups_of
from monitor.cli import app
from monitor.clock import SystemClock
from monitor.domain import AlertPolicy, CheckResult, EscalationStep, FindingKind, Observed, Outcome, Severity
from monitor.errors import StoreError, UsageError
from monitor.store import Store
from monitor.stretches import Seen, Stretch

CHAIN = (EscalationStep(0, "on-call", ("mail",)),)
CONFIG: dict[str, Any] = {
    "monitor": {"state": "monitor.db", "timezone": "Europe/Berlin"},
    "services": {"web": {"url": "http://127.0.0.1:9/"}, "shop": {"url": "http://127.0.0.1:9/"}},
    "checks": {"http_health": {"services": ["web", "shop"], "fail_for": "5m"}},
    "channels": {"mail": {"notifier": "email", "host": "mail.example.com", "sender": "m@example.com", "to": ["o@example.com"]}},
    "escalation": {f"P{number}": [{"after": "0s", "who": "on-call", "channels": ["mail"]}] for number in range(1, 5)},
    "maintenance": {"web": {"matchers": ["service=web"], "schedule": "0 1 * * *", "lasts": "1h"}},
    "inhibit": [{"source": ["service=web"], "target": ["service=shop"], "equal": ["check"]}],
}
DOWN, SLOW = FindingKind("Down", Severity.P1, "INC-001", "down"), FindingKind("Slow", Severity.P2, "INC-001", "slow")
Cli = Callable[..., str]


def find(store: Store, service: str, *kinds: FindingKind) -> str:
    """Let a check find something that fires at once; the incident's id."""
    now = SystemClock().now()
    found = tuple(kind(f"{kind.name} of {service}") for kind in kinds)
    result = CheckResult(f"tcp/{service}", "tcp", service, Outcome.FOUND, now, 0.1, Observed(findings=found))
    policy = Policy(AlertPolicy(fail_after=1), dict.fromkeys(Severity, CHAIN))
    return store.incidents.decide(result.instance, groups_of(result), lambda known: decide(known, result, policy, now), now).incidents[0].id


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(CONFIG))
    return path


@pytest.fixture
def cli(config: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> str:
        app([*arguments, "--config", str(config)], standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture
def web(tmp_path: Path) -> str:
    """An incident of the web; the shop's is another one."""
    store = Store(f"sqlite:///{tmp_path / 'monitor.db'}")
    try:
        find(store, "shop", DOWN)
        return find(store, "web", DOWN, SLOW)
    finally:
        store.close()


def test_incidents_alone_lists_and_show_shows_one(cli: Cli, web: str) -> None:
    assert [one["service"] for one in json.loads(cli("incidents", "--json"))] == [
        one["service"] for one in json.loads(cli("incidents", "list", "--json"))
    ]
    shown = json.loads(cli("incidents", "show", web[:6], "--json"))
    assert (shown["id"], shown["timeline"][0]["kind"]) == (web, "opened")
    assert f"{DOWN.name} of web" in cli("incidents", "show", web)
    with pytest.raises(UsageError, match=f"incidents show {web}"):
        cli("incidents", web)


def test_a_silence_says_which_incidents_it_makes_quiet_and_which_still_tell(cli: Cli, web: str) -> None:
    assert f"incident {web}" in cli("silence", "add", "service=web", "--dry-run")
    assert "nothing that fires now matches" in cli("silence", "add", "service=none", "--dry-run")
    with pytest.raises(UsageError, match="--comment"):
        cli("silence", "add", "service=web")
    assert "no silences" in cli("silence")
    cli("silence", "add", "service=web", "-m", "known")
    assert "known" in cli("silence")


def test_a_silence_of_one_symptom_of_two_leaves_the_incident_loud(cli: Cli, web: str) -> None:
    assert f"{SLOW.name} is not covered" in " ".join(cli("silence", "add", f"alertname={DOWN.name}", "service=web", "--dry-run").split())


def test_a_window_is_previewed_by_its_own_clock_and_with_what_it_would_mute(cli: Cli, web: str) -> None:
    said = cli("maintenance", "preview", "--days", "2")
    assert said.count("01:00 CE") >= 1
    assert f"incident {web}" in said
    (row,) = json.loads(cli("maintenance", "preview", "--json"))
    assert len(row["openings"]) in {59, 60, 61}
    assert [alert["labels"]["service"] for alert in row["would_mute"]] == ["web", "web"]
    assert json.loads(cli("maintenance", "--json"))[0]["name"] == "web"
    with pytest.raises(UsageError, match="did you mean"):
        cli("maintenance", "preview", "wep")


def test_an_inhibition_rule_shows_its_sources_and_what_it_mutes(cli: Cli, web: str) -> None:
    (row,) = json.loads(cli("inhibition", "--json"))
    assert [alert["labels"]["service"] for alert in row["sources"]] == ["web", "web"]
    assert [alert["labels"]["service"] for alert in row["mutes"]] == ["shop"]
    assert "2 of its sources fire now" in cli("inhibition")


def test_rules_can_be_read_before_the_monitor_has_ever_run(cli: Cli) -> None:
    assert "is not known" in cli("inhibition")
    assert "is not known" in cli("maintenance", "preview")
    with pytest.raises(StoreError, match="has not run"):
        cli("incidents")


def test_checks_are_listed_with_when_they_alert_and_a_wrong_name_is_answered(cli: Cli, web: str) -> None:
    assert "that go on for 5 min" in " ".join(cli("check", "--list").split())
    assert [row["instance"] for row in json.loads(cli("check", "--list", "--json"))] == ["http_health/web", "http_health/shop"]
    with pytest.raises(UsageError, match="did you mean 'http_health/web'"):
        cli("explain", "http_health/wep")


def test_on_call_says_whom_each_severity_tells(cli: Cli) -> None:
    assert "P4\n  at once            on-call by mail" in cli("oncall", "--at", "2026-12-24")


def completed(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    before = dict(os.environ)
    os.environ |= {
        "_MONITOR_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("monitor", *words)),
        "COMP_CWORD": str(len(words)),
        "MONITOR_CONFIG": str(config),
    }
    try:
        with pytest.raises(SystemExit):
            app(prog_name="monitor")
    finally:
        os.environ.clear()
        os.environ |= before
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.split()


def test_the_shell_completes_ids_and_is_silent_when_there_is_nothing_to_ask(
    config: Path, web: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed(config, capsys, "incidents", "show", web[:5]) == [web]
    assert completed(config, capsys, "ack", web[:5]) == [web]
    assert set(completed(config, capsys, "incidents", "")) == {"list", "show"}
    assert completed(config.parent / "none.toml", capsys, "ack", "") == []


def test_another_configuration_is_simulated_and_what_could_not_be_looked_at_is_said(
    cli: Cli, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = SystemClock().now()
    down = (Seen("ServiceDown", (), Severity.P1, None, None, "web does not answer"),)
    began, ended = now - timedelta(hours=3), now - timedelta(hours=2)
    bad = Stretch("http_health/web", began, ended, 241, Outcome.FOUND, down, "", (2_000_000,), "other", starts=True)
    good = Stretch("http_health/web", ended + timedelta(seconds=15), now, 480, Outcome.OK, (), "", (2_000_000,), "other", starts=False)
    with pytest.raises(StoreError, match="--state-of"):
        cli("simulate")
    store = Store(f"sqlite:///{tmp_path / 'monitor.db'}")
    store.stretches.save([bad, good])
    store.close()
    told = json.loads(cli("simulate", "--since", "1d", "--json"))
    assert [(one["status"], one["transition"], one["channel"]) for one in told["notifications"]] == [
        ("only new", "triggered", "mail"),
        ("only new", "resolved", "mail"),
    ]
    after = datetime.fromisoformat(told["notifications"][0]["at"]) - began
    assert timedelta(minutes=5) <= after <= timedelta(minutes=5, seconds=16)  # fail_for
    assert [(row["severity"], row["was"], row["would_be"]) for row in told["counts"]] == [("P1", 0, 1)]
    said = " ".join(told["remarks"])
    assert "without a history: http_health/shop" in said
    assert "other keys than then have http_health/web" in said
    elsewhere = tmp_path / "new" / "config.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(tomli_w.dumps({**CONFIG, "checks": {"http_health": {"services": ["shop"]}}}))
    app(["simulate", "--config", str(elsewhere), "--state-of", str(config)], standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "not watched with this configuration: http_health/web" in shown
    assert "nobody was asked anything" in shown
    with pytest.raises(UsageError, match="--since"):
        cli("simulate", "--since", "yesterday")
