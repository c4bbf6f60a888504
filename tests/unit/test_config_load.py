"""What a good configuration becomes: numbers, paths, URLs and references, resolved."""

from datetime import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import make_url

from monitor import config
from monitor.config.settings import DailyReport, Settings
from monitor.domain import AlertPolicy, EscalationStep, Severity
from monitor.errors import ConfigError
from tests.support import configured
from tests.support.configured import AUTH, MAIL

SMALL = (
    f"""\
{AUTH}{MAIL}"""
    """\
[escalation]
P1 = [{after = "0s", who = "ops", channels = ["mail"]}]
P2 = [{after = 0, who = "ops", channels = ["mail"]}, {after = "1h30m", who = "lead", channels = ["mail", "mail"]}]
[[escalation.P3]]
after = "0s"
who = "ops"
channels = ["mail"]
[[escalation.P4]]
after = "0s"
who = "ops"
channels = ["mail"]
"""
)
ENVIRON = {"URL": "postgresql://m:p%40w@db:5433/state", "PATH_OF_STATE": "kept.db", "DSN": " host=db password=pw\n", "TOKEN": "sesame"}


def load(folder: Path, text: str = SMALL) -> Settings:
    return configured.load(folder, text, ENVIRON)


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.source == tmp_path / "config.toml"
    assert (settings.listen_host, settings.listen_port, settings.external_url) == ("127.0.0.1", 8010, "http://127.0.0.1:8010")
    assert make_url(settings.state_url).database == str(tmp_path / "var/monitor.db")
    assert (settings.timezone, settings.history_days, settings.token, settings.daily_report) == (ZoneInfo("UTC"), 14, None, None)
    assert settings.services["auth"].url == "http://127.0.0.1:8003"
    (instance,) = settings.instances
    assert (instance.key, instance.name, instance.check.name, instance.service.name) == (
        "http_health/auth",
        "http_health",
        "http_health",
        "auth",
    )
    assert (instance.every_s, instance.timeout_s, instance.recheck_s, instance.policy) == (30.0, 10.0, 2.0, AlertPolicy())
    assert settings.escalation[Severity.P2] == (EscalationStep(0.0, "ops", ("mail",)), EscalationStep(5400.0, "lead", ("mail",)))
    assert set(settings.escalation) == set(Severity)


@pytest.mark.parametrize(
    ("written", "means"), [("", 20), ("digest_from = 50", 50), ("digest_from = 0", None), ("digest_from = false", None)]
)
def test_from_how_many_on_a_channel_tells_together(tmp_path: Path, written: str, means: int | None) -> None:
    settings = load(tmp_path, SMALL.replace("[channels.mail]\n", f"[channels.mail]\n{written}\n"))
    assert settings.channels["mail"].digest_from == means


@pytest.mark.parametrize("wrong", ["true", "-1", '"many"', "1.5"])
def test_a_number_of_incidents_is_a_number_or_never(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL.replace("[channels.mail]\n", f"[channels.mail]\ndigest_from = {wrong}\n"))
    assert {problem.key for problem in caught.value.problems} == {"channels.mail.digest_from"}


def test_a_channel_that_tells_everything_alone_has_no_such_number(tmp_path: Path) -> None:
    peer = '[channels.peer]\nnotifier = "alertmanager"\nurls = ["http://127.0.0.1:9093"]\ndigest_from = 5\n'
    with pytest.raises(ConfigError, match="the notifier alertmanager tells every incident alone"):
        load(tmp_path, SMALL + peer)
    load(tmp_path, SMALL + peer.replace("= 5", "= false"))


def test_the_same_check_under_another_name_on_two_services(tmp_path: Path) -> None:
    text = SMALL.replace(
        "[checks.http_health]\nservices = ",
        """[services.data]
url = "https://data.example.com:8443/base"
[checks.slow]
check = "http_health"
every = "5s"
recheck = "500ms"
fail_after = 1
recover_after = 4
fail_for = "5m"
recover_for = "90s"
blind_after = 5
blind_severity = "P1"
path = "/slow"
services = ["data", "auth"]
[checks.http_health]
services = """,
    )
    slow_data, slow_auth, plain = load(tmp_path, text).instances
    assert [instance.key for instance in (slow_data, slow_auth, plain)] == ["slow/data", "slow/auth", "http_health/auth"]
    assert (slow_data.check.name, slow_data.timeout_s, slow_data.recheck_s) == ("http_health", 4.0, 0.5)
    assert slow_data.policy == AlertPolicy(1, 4, fail_for_s=300, recover_for_s=90, blind_after=5, blind_severity=Severity.P1)
    assert (slow_data.config.path, plain.config.path) == ("/slow", "/health")  # type: ignore[attr-defined]


def test_everything_of_the_monitor_and_the_report(tmp_path: Path) -> None:
    head = """[monitor]
listen = "[::1]:9000"
external_url = "https://monitor.example.com/base/"
timezone = "America/New_York"
history = "1d"
token = {env = "TOKEN"}
[reports.daily]
at = 07:30:00
channel = "mail"
"""
    settings = load(tmp_path, head + SMALL)
    assert (settings.listen_host, settings.listen_port, settings.external_url) == ("::1", 9000, "https://monitor.example.com/base")
    assert (settings.timezone, settings.history_days) == (ZoneInfo("America/New_York"), 1)
    assert settings.token is not None
    assert settings.token.get_secret_value() == "sesame"
    assert settings.daily_report == DailyReport(at=time(7, 30), channel="mail")


@pytest.mark.parametrize(
    ("listen", "external_url"),
    [
        ("0.0.0.0:80", "http://localhost:80"),
        ("[::]:80", "http://localhost:80"),
        ("[::1]:80", "http://[::1]:80"),
        ("mon:80", "http://mon:80"),
    ],
)
def test_links_lead_somewhere_without_an_external_url(tmp_path: Path, listen: str, external_url: str) -> None:
    assert load(tmp_path, f'[monitor]\nlisten = "{listen}"\n' + SMALL).external_url == external_url


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ('"state.db"', "sqlite:///{folder}/state.db"),
        ('"sqlite:///state.db"', "sqlite:///{folder}/state.db"),
        ('"/abs/odd ?#%name.db"', "sqlite:////abs/odd ?#%name.db"),
        ('{env = "PATH_OF_STATE"}', "sqlite:///{folder}/kept.db"),
        ('"postgresql://m@db/state"', "postgresql+psycopg://m@db/state"),
        ('{env = "URL"}', "postgresql+psycopg://m:p%40w@db:5433/state"),
    ],
)
def test_where_the_state_lives(tmp_path: Path, state: str, expected: str) -> None:
    text = f"[monitor]\nstate = {state}\n" + SMALL
    url = load(tmp_path, text).state_url
    wanted = expected.format(folder=tmp_path)
    if wanted.startswith("sqlite"):
        assert make_url(url).database == wanted.removeprefix("sqlite:///")
    else:
        assert url == wanted
    assert config.load_state_url(tmp_path / "config.toml", environ=ENVIRON) == url


def test_the_state_is_found_though_other_secrets_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[monitor]\nstate = "s.db"\ntoken = {env = "NOPE"}\n[services.db]\ndsn = {env = "NOPE"}\n')
    assert make_url(config.load_state_url(path, environ={})).database == str(tmp_path / "s.db")
    path.write_text('[monitor]\nstate = {env = "NOPE"}\n')
    with pytest.raises(ConfigError, match=r"config\.toml:2: monitor\.state: the environment variable NOPE is not set"):
        config.load_state_url(path, environ={})


def test_paths_start_at_the_files_folder_whatever_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "linked"
    link.symlink_to(tmp_path / "real")
    text = SMALL.replace("[checks", 'log = "logs/auth.log"\nerror_log = "/var/log/auth.log"\n[checks', 1)
    text = text.replace('notifier = "email"', 'notifier = "email"\nca_file = "ca.pem"')
    settings = load(link, text)
    assert settings.source == link / "config.toml"
    assert (settings.services["auth"].log, settings.services["auth"].error_log) == (str(link / "logs/auth.log"), "/var/log/auth.log")
    assert settings.channels["mail"].config.ca_file == str(link / "ca.pem")  # type: ignore[attr-defined]


def test_dsns_are_stripped_and_the_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load(tmp_path, '[services.db]\ndsn = {env = "DSN"}\n' + SMALL)
    dsn = settings.services["db"].dsn
    assert dsn is not None
    assert dsn.get_secret_value() == "host=db password=pw"
    with pytest.raises(TypeError):
        settings.services["new"] = settings.services["db"]  # type: ignore[index]


def test_two_readings_of_one_file_are_equal(tmp_path: Path) -> None:
    assert load(tmp_path) == load(tmp_path)
