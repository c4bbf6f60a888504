"""The configuration that ships: it loads, it is short, and it says what the runbook says."""

import re
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from monitor import config
from monitor.config.settings import Settings
from monitor.domain import Severity
from monitor.errors import ConfigError
from monitor.registry import load_registry

SHIPPED = Path(__file__).parents[2] / "config.toml"
ENVIRON = {
    "MONITOR_POSTGRES_DSN": "postgresql://monitor@localhost/google_analytics_db",
    "MONITOR_POSTGRES_CANARY_DSN": "postgresql://canary@localhost/google_analytics_db",
    "MONITOR_POSTGRES_FIX_DSN": "postgresql://fixer@localhost/google_analytics_db",
    "PAGERDUTY_ONCALL_KEY": "a" * 32,
    "PAGERDUTY_TEAM_LEAD_KEY": "b" * 32,
    "PAGERDUTY_MANAGER_KEY": "c" * 32,
    "SLACK_BOT_TOKEN": "xoxb-1-2-3",
    "SMTP_PASSWORD": "sesame",
    "SYNTHETIC_USER_PASSWORD": "horse",
}
MINUTE_S, HOUR_S = 60, 3600


def load(environ: dict[str, str]) -> Settings:
    registry = load_registry()
    return config.load(SHIPPED, checks=registry.checks, notifiers=registry.notifiers, environ=environ)


@pytest.fixture(scope="module")
def shipped() -> Settings:
    return load(ENVIRON)


def test_it_is_short_enough_to_read() -> None:
    lines = SHIPPED.read_text().splitlines()
    assert len(lines) < 400
    assert max(map(len, lines)) <= 110


def test_it_describes_the_platform_of_the_runbook(shipped: Settings) -> None:
    assert (shipped.listen_host, shipped.listen_port, shipped.timezone) == ("127.0.0.1", 8010, ZoneInfo("Europe/Berlin"))
    urls = {name: service.url for name, service in shipped.services.items() if service.url}
    assert urls == {
        "auth": "http://127.0.0.1:8003",
        "data": "http://127.0.0.1:8002",
        "analytics": "http://127.0.0.1:8001",
        "nginx": "http://127.0.0.1:8080",
        "idp": "https://idp.example.com",
    }
    assert [instance.key for instance in shipped.instances] == [
        "http_health/auth",
        "http_health/data",
        "http_health/analytics",
        "nginx_health/nginx",
        "idp_health/idp",
        "instances/auth",
        "instances/data",
        "instances/analytics",
        "login/auth",
        "sources/data",
        "processes/auth",
        "processes/data",
        "processes/analytics",
        "pg_connections/postgres",
        "pg_long_queries/postgres",
        "pg_idle_in_transaction/postgres",
        "pg_blocking/postgres",
        "pg_vacuum/postgres",
        "pg_counters/postgres",
        "pg_wraparound/postgres",
        "pg_checkpoints/postgres",
        "pg_wal/postgres",
        "pg_replication/postgres",
        "pg_prepared_transactions/postgres",
        "pg_sizes/postgres",
        "pg_indexes/postgres",
        "pg_bloat/postgres",
        "pg_sequences/postgres",
        "pg_settings/postgres",
        "stuck_jobs/postgres",
        "job_progress/postgres",
        "data_freshness/postgres",
        "failed_jobs/postgres",
        "job_queue/postgres",
        "email_jobs/postgres",
        "smtp_server/postgres",
        "tenants/postgres",
        "access_log/nginx",
        "service_requests/auth",
        "service_requests/data",
        "service_requests/analytics",
        "log_errors/auth",
        "log_errors/data",
        "log_errors/analytics",
        "log_errors/nginx",
        "log_rotation/auth",
        "log_rotation/data",
        "log_rotation/analytics",
        "log_rotation/nginx",
        "disk/host",
        "memory/host",
        "load/host",
    ]
    assert {instance.service.name for instance in shipped.instances} == set(shipped.services)


def test_it_escalates_as_the_runbook_says(shipped: Settings) -> None:
    ladder = {
        severity: [(step.after_s, step.channels, shipped.channels[step.channels[0]].notifier.name) for step in steps]
        for severity, steps in shipped.escalation.items()
    }
    assert ladder == {
        Severity.P1: [
            (0, ("oncall",), "pagerduty"),
            (15 * MINUTE_S, ("team_lead",), "pagerduty"),
            (30 * MINUTE_S, ("manager",), "pagerduty"),
        ],
        Severity.P2: [(0, ("slack_ops",), "slack"), (HOUR_S, ("oncall",), "pagerduty")],
        Severity.P3: [(0, ("tickets",), "email"), (4 * HOUR_S, ("oncall",), "pagerduty")],
        Severity.P4: [(0, ("tickets",), "email"), (24 * HOUR_S, ("team",), "email")],
    }


def test_a_checks_own_deadline_ends_before_its_run_does(shipped: Settings) -> None:
    for instance in shipped.instances:
        assert getattr(instance.config, "deadline", 0) < instance.timeout_s < instance.every_s


def test_every_missing_variable_is_named_at_its_line() -> None:
    with pytest.raises(ConfigError) as raised:
        load({})
    lines = SHIPPED.read_text().splitlines()
    named = set()
    for problem in raised.value.problems:
        assert problem.line is not None
        found = re.fullmatch(r"the environment variable (\w+) is not set", problem.message)
        assert found
        assert f'{problem.key.split(".")[-1]} = {{env = "{found[1]}"}}' in lines[problem.line - 1]
        named.add(found[1])
    assert named == set(ENVIRON)
