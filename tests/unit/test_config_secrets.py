"""Secrets: where they may come from, and that nothing ever shows one."""

import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import alerts
import checks
from monitor import config
from monitor.errors import ConfigError
from monitor.plugins import PluginConfig, Secret, SecretSources

TEMPLATE = """\
[monitor]
{monitor}
[services.auth]
url = "http://127.0.0.1:8003"
[services.postgres]
{postgres}
[checks.http_health]
services = ["auth"]
{check}
[channels.oncall]
notifier = "pagerduty"
{oncall}
[channels.slack]
notifier = "slack"
channel = "#ops"
{slack}
[channels.mail]
notifier = "email"
host = "mail.example.com"
sender = "monitor@example.com"
username = "monitor"
to = ["ops@example.com"]
{mail}
[escalation]
P1 = [{{after = "0s", who = "ops", channels = ["oncall"]}}]
P2 = [{{after = "0s", who = "ops", channels = ["slack"]}}]
P3 = [{{after = "0s", who = "ops", channels = ["mail"]}}]
P4 = [{{after = "0s", who = "ops", channels = ["mail"]}}]
"""
PLACES = {
    "monitor": ("token", "state", "listen", "external_url", "history", "timezone", "tokn"),
    "postgres": ("dsn", "canary_dsn", "fix_dsn", "url"),
    "check": ("every", "timeout", "fail_after", "slow_after", "blind_severity", "headers", "expect_status", "pasword"),
    "oncall": ("routing_key", "base_url"),
    "slack": ("token", "base_url"),
    "mail": ("password", "port", "security"),
}
FORMS = (
    "'{secret}'",
    "['{secret}']",
    "{{env = '{secret}'}}",
    "{{env = 'S', file = '{secret}'}}",
    "{{file = '{secret}'}}",
    "{{value = '{secret}'}}",
    "{{env = ['{secret}']}}",
    "'postgresql://user:{secret}@db/app'",
    "'postgresql://user@{secret}:port/app'",
    "'https://user:{secret}@example.com'",
    "'host=db password={secret} ='",
    "{{env = 'S'}}",
    "{{env = 'DSN'}}",
    "{{env = 'BROKEN'}}",
)
# A capital inside, and the same word never in a message: what is found in a text was put there.
secrets = st.text("abcdefghijk0123456789-_.~+/%", min_size=8, max_size=40).map(lambda text: f"zQ{text}")
choices = st.fixed_dictionaries({table: st.tuples(st.sampled_from(keys), st.sampled_from(FORMS)) for table, keys in PLACES.items()})


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=secrets, chosen=choices)
@example(secret="zQ" + "a1" * 15, chosen={table: (keys[0], "{{env = 'S'}}") for table, keys in PLACES.items()})
def test_no_secret_shows_in_any_error_or_repr(tmp_path: Path, secret: str, chosen: dict[str, tuple[str, str]]) -> None:
    path = tmp_path / "config.toml"
    lines = {table: f"{key} = {form.format(secret=secret)}" for table, (key, form) in chosen.items()}
    path.write_text(TEMPLATE.format(**lines))
    environ = {"S": secret, "DSN": f"postgresql://user:{secret}@db/app", "BROKEN": f"host=db = {secret} = x"}
    try:
        shown = repr(
            config.load(
                path,
                checks={plugin.name: plugin for plugin in checks.BUILTINS},
                notifiers={plugin.name: plugin for plugin in alerts.BUILTINS},
                environ=environ,
            )
        )
    except ConfigError as exc:
        shown = "\n".join([str(exc), repr(exc), *map(repr, exc.problems), *traceback.format_exception(exc)])
    assert secret not in shown
    assert "zQ" not in shown


class Config(PluginConfig):
    key: Secret


def read(folder: Path, written: object, **environ: str) -> str:
    return Config.model_validate({"key": written}, context=SecretSources(environ, folder)).key.get_secret_value()


def test_a_secret_comes_from_the_environment_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  from the file\n")
    file.chmod(0o640)
    (tmp_path / "link").symlink_to(file)
    assert read(tmp_path, {"env": "KEY"}, KEY="from the environment\n") == "from the environment"
    assert read(tmp_path, {"file": "key"}) == "from the file"
    assert read(tmp_path, {"file": str(file)}) == "from the file"
    assert read(tmp_path, {"file": "link"}) == "from the file"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o642, 0o777, 0o601])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text("sesame")
    file.chmod(mode)
    with pytest.raises(ValueError, match=rf"open to others \(mode {mode:04o}\): set its mode to 0600 or 0640"):
        read(tmp_path, {"file": "key"})


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o440])
def test_a_file_of_its_owner_and_group_is_read(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text("sesame")
    file.chmod(mode)
    assert read(tmp_path, {"file": "key"}) == "sesame"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8 text"), (b"x" * 65_537, "is larger than 64 KiB")],
)
def test_a_file_without_a_secret_in_it_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {"file": "key"})


@pytest.mark.parametrize("written", ["plain", "", 7, True, None, [], {}, {"env": ""}, {"file": ""}, {"env": 1}, {"ENV": "A"}, ["env", "A"]])
def test_any_other_form_is_refused_and_says_how_to_write_it(tmp_path: Path, written: object) -> None:
    with pytest.raises(ValueError, match=r'write \{env = "NAME"\} or \{file = "path"\}'):
        read(tmp_path, written)
