"""Every way to write a wrong configuration, one row each: its line, key, message and hint. All are said at once."""

# ruff: noqa: E501 - one row of the table is one line

import os
import re
from pathlib import Path

import pytest
from pydantic import Field

from alerts.email import email
from monitor import config
from monitor.domain import Notification, Observed, Receipt
from monitor.errors import ConfigError, Problem
from monitor.plugins import CheckContext, Duration, NotifyContext, PluginConfig, Secret, check, notifier


class PingConfig(PluginConfig):
    path: str = Field("/", pattern="^/")
    older_than: Duration = 60.0
    ratio: float = Field(0.8, gt=0, le=1)
    tries: int = 1
    codes: tuple[int, ...] = (200,)
    either: int | bool = 1
    headers: dict[str, str] = Field(default_factory=dict)
    nested: list["Nested"] = Field(default_factory=list)


class Nested(PluginConfig):
    depth: int


class RowsConfig(PluginConfig):
    pass


class PagerConfig(PluginConfig):
    key: Secret
    region: str = "eu"


@check("ping", config=PingConfig, needs=("url",))
async def ping(ctx: CheckContext, cfg: PingConfig) -> Observed:
    """Asks once."""
    return Observed()


@check("row_count", config=RowsConfig, needs=("dsn", "canary_dsn"))
async def row_count(ctx: CheckContext, cfg: RowsConfig) -> Observed:
    """Counts rows."""
    return Observed()


@notifier("pager", config=PagerConfig)
async def pager(ctx: NotifyContext, cfg: PagerConfig, notification: Notification) -> Receipt:
    """Pages."""
    return Receipt()


GOOD = """\
[monitor]
listen = "127.0.0.1:8010"
state = "var/monitor.db"
timezone = "Europe/Berlin"
history = "14d"

[services.auth]
url = "http://127.0.0.1:8003"
[services.data]
url = "http://127.0.0.1:8002"
[services.postgres]
dsn = {env = "DSN"}

[checks.ping]
services = ["auth", "data"]
every = "15s"
path = "/health"

[channels.oncall]
notifier = "pager"
key = {env = "KEY"}
[channels.mail]
notifier = "email"
host = "mail.example.com"
sender = "monitor@example.com"
to = ["ops@example.com"]

[escalation]
P1 = [
  {after = "0s", who = "on-call", channels = ["oncall"]},
  {after = "15m", who = "lead", channels = ["mail"]},
]
P2 = [{after = "0s", who = "on-call", channels = ["oncall"]}]
P3 = [{after = "0s", who = "on-call", channels = ["oncall"]}]
P4 = [{after = "0s", who = "on-call", channels = ["oncall"]}]

[reports.daily]
at = "08:00"
channel = "mail"
"""
ENVIRON = {"DSN": "postgresql://m:pw@db/app", "KEY": "sesame", "EMPTY": "", "URL": "postgresql://m:pw@db/state", "BAD_DSN": "host = = x"}
CHECKS = {plugin.name: plugin for plugin in (ping, row_count)}
NOTIFIERS = {plugin.name: plugin for plugin in (pager, email)}
DURATION = 'expected a duration such as "15s", "5m", "1h30m" or a number of seconds'
SECRET = 'a secret is never written in the file: write {env = "NAME"} or {file = "path"}'
STATE_PASSWORD = 'a URL with a password is a secret: write state = {env = "NAME"}'
ADDRESS = 'expected "host:port" with a port from 1 to 65535, such as "127.0.0.1:8010"'
URL = 'expected a URL such as "http://127.0.0.1:8003" or "https://idp.example.com"'
DSN = 'not a PostgreSQL connection string: expected "postgresql://user:password@host:5432/database"'
NAME = "a name has 1 to 63 letters, digits, dots, dashes or underscores, and begins with a letter or digit"
TIME = 'expected a time of day such as "08:00", from "00:00" to "23:59"'
PING_KEYS = (
    "valid here: blind_after, blind_severity, check, codes, depends_on, either, every, fail_after, fail_for, headers, linger, nested, "
)
PING_KEYS += "older_than, path, ratio, recheck, recover_after, recover_for, services, severity, timeout, tries"


def problems(folder: Path, text: str | bytes) -> tuple[Problem, ...]:
    """What is wrong with the file, written into ``folder``; nothing when it loads."""
    path = folder / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        config.load(path, checks=CHECKS, notifiers=NOTIFIERS, environ=ENVIRON)
    except ConfigError as exc:
        return exc.problems
    return ()


def test_the_sample_itself_is_good(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD) == ()


# (what is replaced, by what; "#!" marks the line that must be named, key, message, hint)
ROWS = [
    # unknown tables and keys
    ("[monitor]", "[moniter] #!", "moniter", "unknown table", 'did you mean "monitor"?'),
    ("[monitor]", "[zzz] #!\n[monitor]", "zzz", "unknown table", "valid here: alertmanager, business_hours, channels, checks, contacts, deadman, escalation, inhibit, maintenance, monitor, reports, response, rotations, services"),
    ("listen =", "listn = 'x' #!\nlisten =", "monitor.listn", "unknown key", 'did you mean "listen"?'),
    ("url = ", "URL = 'x' #!\nurl = ", "services.auth.URL", "unknown key", 'did you mean "url"?'),
    ('every = "15s"', 'evry = "15s" #!', "checks.ping.evry", "unknown key", 'did you mean "every"?'),
    ('path = "/health"', "pth = '/' #!", "checks.ping.pth", "unknown key", 'did you mean "path"?'),
    ('path = "/health"', "xyz = 1 #!", "checks.ping.xyz", "unknown key", PING_KEYS),
    ('path = "/health"', "nested = [\n{depth = 1},\n{depth = 2, dpth = 3}, #!\n]", "checks.ping.nested[1].dpth", "unknown key", ""),
    ('notifier = "pager"', 'notifier = "pager"\nregio = "us" #!', "channels.oncall.regio", "unknown key", 'did you mean "region"?'),
    ('{after = "15m",', '{afer = 1, after = "15m", ', "escalation.P1[1].afer", "unknown key", 'did you mean "after"?', 31),
    ("P4 = ", "P5 = [] #!\nP4 = ", "escalation.P5", "unknown key", 'valid here: P1, P2, P3, P4'),
    ("[reports.daily]", "[reports.daly] #!", "reports.daly", "unknown key", 'did you mean "daily"?'),
    # wrong types
    ("[services.auth]\nurl", "[services]\nauth = 1 #!\n[services.old]\nurl", "services.auth", "must be a table, written [services.auth]", ""),
    ('every = "15s"', "every = true #!", "checks.ping.every", DURATION, ""),
    ('every = "15s"', 'every = "15 sec" #!', "checks.ping.every", DURATION, ""),
    ('every = "15s"', "every = -1 #!", "checks.ping.every", "a duration must be at least 0 and less than ten years", ""),
    ('every = "15s"', "every = nan #!", "checks.ping.every", "a duration must be at least 0 and less than ten years", ""),
    ('every = "15s"', "every = 0 #!", "checks.ping.every", 'must be at least "100ms"', ""),
    ('path = "/health"', 'older_than = "1 day" #!', "checks.ping.older_than", DURATION, ""),
    ('path = "/health"', "path = 7 #!", "checks.ping.path", "must be text in quotes", ""),
    ('path = "/health"', 'tries = "two" #!', "checks.ping.tries", "must be a whole number", ""),
    ('path = "/health"', "ratio = 1.5 #!", "checks.ping.ratio", "must be at most 1.0", ""),
    ('path = "/health"', "ratio = 0 #!", "checks.ping.ratio", "must be greater than 0.0", ""),
    ('path = "/health"', "codes = 200 #!", "checks.ping.codes", 'must be a list, written ["a", "b"]', ""),
    ('path = "/health"', "codes = [\n 200,\n 'x', #!\n]", "checks.ping.codes[1]", "must be a whole number", ""),
    ('path = "/health"', "either = 'x' #!", "checks.ping.either", "must be a whole number, or must be true or false", ""),
    ('path = "/health"', 'headers = "x" #!', "checks.ping.headers", 'must be a table, written {key = "value"}', ""),
    ('path = "/health"', "headers.\"a b\" = 1 #!", 'checks.ping.headers."a b"', "must be text in quotes", ""),
    ('path = "/health"', "[checks.ping.headers]\n\nX = 1 #!", "checks.ping.headers.X", "must be text in quotes", ""),
    ('path = "/health"', "[[checks.ping.nested]]\ndepth = 1\n[[checks.ping.nested]] #!", "checks.ping.nested[1].depth", "is required and missing", ""),
    ('path = "/health"', "[[checks.ping.nested]]\ndepth = 1\n[[checks.ping.nested]]\n\ndepth = 'x' #!", "checks.ping.nested[1].depth", "must be a whole number", ""),
    ('path = "/health"', 'fail_after = "2" #!', "checks.ping.fail_after", "must be a whole number", ""),
    ('path = "/health"', "fail_after = 0 #!", "checks.ping.fail_after", "must be at least 1", ""),
    ('path = "/health"', 'blind_severity = "P9" #!', "checks.ping.blind_severity", "must be 'P1', 'P2', 'P3' or 'P4'", ""),
    # monitor
    ('listen = "127.0.0.1:8010"', 'listen = "8010" #!', "monitor.listen", ADDRESS, ""),
    ('listen = "127.0.0.1:8010"', "listen = 8010 #!", "monitor.listen", ADDRESS, ""),
    ('listen = "127.0.0.1:8010"', 'listen = "127.0.0.1:70000" #!', "monitor.listen", ADDRESS, ""),
    ('listen = "127.0.0.1:8010"', 'listen = "a b:80" #!', "monitor.listen", "the host is neither a name nor an IP address", ""),
    ('listen = "127.0.0.1:8010"', 'listen = "[::x]:80" #!', "monitor.listen", ADDRESS, ""),
    ('listen = "127.0.0.1:8010"', 'listen = "[:::1]:80" #!', "monitor.listen", "the host in brackets is not an IPv6 address", ""),
    ('listen = "127.0.0.1:8010"', 'external_url = "monitor.example.com" #!', "monitor.external_url", URL, ""),
    ('timezone = "Europe/Berlin"', 'timezone = "Europe/Berln" #!', "monitor.timezone", "unknown timezone", 'did you mean "Europe/Berlin"?'),
    ('timezone = "Europe/Berlin"', 'timezone = "/etc" #!', "monitor.timezone", "unknown timezone", 'names look like "Europe/Berlin" or "UTC"'),
    ('timezone = "Europe/Berlin"', "timezone = 1 #!", "monitor.timezone", 'expected the name of a timezone, such as "Europe/Berlin"', ""),
    ('history = "14d"', 'history = "36h" #!', "monitor.history", 'expected a whole number of days, such as "14d", at least "1d"', ""),
    ('history = "14d"', 'history = "0d" #!', "monitor.history", 'expected a whole number of days, such as "14d", at least "1d"', ""),
    ('history = "14d"', 'token = "abc" #!', "monitor.token", SECRET, ""),
    ('state = "var/monitor.db"', 'state = "" #!', "monitor.state", "expected the path of a file or a PostgreSQL URL", ""),
    ('state = "var/monitor.db"', 'state = "postgresql://u:pw@h/d" #!', "monitor.state", STATE_PASSWORD, ""),
    ('state = "var/monitor.db"', 'state = "postgresql://h/d?password=pw" #!', "monitor.state", STATE_PASSWORD, ""),
    ('state = "var/monitor.db"', 'state = "postgresql://h:port/d" #!', "monitor.state", 'not a database URL: expected "postgresql+psycopg://user@host/database"', ""),
    ('state = "var/monitor.db"', 'state = "mysql://h/d" #!', "monitor.state", "the state lives in SQLite (the path of a file) or PostgreSQL (postgresql+psycopg://…)", ""),
    ('state = "var/monitor.db"', 'state = {env = "NOPE"} #!', "monitor.state", "the environment variable NOPE is not set", ""),
    # services
    ('url = "http://127.0.0.1:8003"', 'url = "ftp://h" #!', "services.auth.url", URL, ""),
    ('url = "http://127.0.0.1:8003"', 'url = "127.0.0.1:8003" #!', "services.auth.url", URL, ""),
    ('url = "http://127.0.0.1:8003"', 'url = "http://h:99999" #!', "services.auth.url", "not a valid URL: check its host and port", ""),
    ('url = "http://127.0.0.1:8003"', 'url = "http://h/a b" #!', "services.auth.url", "a URL holds no spaces or control characters", ""),
    ('url = "http://127.0.0.1:8003"', 'url = "http://u:pw@h" #!', "services.auth.url", "a URL must not hold a user name or password", ""),
    ('url = "http://127.0.0.1:8003"', 'url = "http://h/?q=1" #!', "services.auth.url", 'expected a base URL, without "?" and "#"', ""),
    ('url = "http://127.0.0.1:8003"', 'url = "http://localhost:8010" #!', "services.auth.url", "this is the monitor's own address, 127.0.0.1:8010", "change it, or monitor.listen"),
    ('dsn = {env = "DSN"}', 'dsn = "host=db password=pw" #!', "services.postgres.dsn", SECRET, ""),
    ('dsn = {env = "DSN"}', 'dsn = {env = "NOPE"} #!', "services.postgres.dsn", "the environment variable NOPE is not set", ""),
    ('dsn = {env = "DSN"}', 'dsn = {env = "EMPTY"} #!', "services.postgres.dsn", "the environment variable EMPTY is empty", ""),
    ('dsn = {env = "DSN"}', 'dsn = {env = "pasted-by-mistake"} #!', "services.postgres.dsn", "the environment variable named here is not set", ""),
    ('dsn = {env = "DSN"}', 'dsn = {env = "DSN", file = "x"} #!', "services.postgres.dsn", SECRET, ""),
    ('dsn = {env = "DSN"}', 'dsn = {file = "nope"} #!', "services.postgres.dsn", "the secret's file cannot be read: No such file or directory", ""),
    ('dsn = {env = "DSN"}', 'dsn = {file = "."} #!', "services.postgres.dsn", "the secret's file cannot be read: Is a directory", ""),
    ('dsn = {env = "DSN"}', 'dsn = {env = "BAD_DSN"} #!', "services.postgres.dsn", DSN, ""),
    ('dsn = {env = "DSN"}', 'log = " " #!', "services.postgres.log", "expected the path of a file", ""),
    ("[services.auth]", '[services."a/b"] #!\n[services.auth]', 'services."a/b"', NAME, ""),
    ("[services.auth]", '[services.""] #!\n[services.auth]', 'services.""', NAME, ""),
    # references
    ("[checks.ping]", "[checks.pin] #!", "checks.pin", 'there is no check "pin"', 'did you mean "ping"?; or say which one it is: check = "NAME"'),
    ('path = "/health"', 'check = "rowcount" #!', "checks.ping.check", 'there is no check "rowcount"', 'did you mean "row_count"?'),
    ('path = "/health"', "check = 1 #!", "checks.ping.check", "must be text in quotes", ""),
    ('services = ["auth", "data"]', "services = [] #!", "checks.ping.services", "a check needs at least one service", "known services: auth, data, postgres"),
    ('services = ["auth", "data"]', "", "checks.ping.services", "a check needs at least one service", "known services: auth, data, postgres", 14),
    ('services = ["auth", "data"]', 'services = "auth" #!', "checks.ping.services", 'must be a list, written ["a", "b"]', ""),
    ('services = ["auth", "data"]', 'services = [\n "auth",\n "dta", #!\n]', "checks.ping.services[1]", 'there is no service "dta"', 'did you mean "data"?'),
    ('services = ["auth", "data"]', 'services = ["auth", "auth"] #!', "checks.ping.services[1]", 'the service "auth" is named twice', ""),
    ('services = ["auth", "data"]', 'services = ["auth", "postgres"] #!', "checks.ping.services[1]", 'the service "postgres" has no url, which ping needs', "add url to [services.postgres]"),
    ("[channels.oncall]", '[checks.row_count]\nservices = ["postgres"] #!\n[channels.oncall]', "checks.row_count.services[0]", 'the service "postgres" has no canary_dsn, which row_count needs', "add canary_dsn to [services.postgres]"),
    ('notifier = "pager"', 'notifier = "pagr" #!', "channels.oncall.notifier", 'there is no notifier "pagr"', 'did you mean "pager"?'),
    ('notifier = "pager"', "", "channels.oncall.notifier", "is required and missing", "", 19),
    ('key = {env = "KEY"}', "", "channels.oncall.key", "is required and missing", "", 19),
    ('key = {env = "KEY"}', 'key = "sesame" #!', "channels.oncall.key", SECRET, ""),
    ('who = "lead", channels = ["mail"]', 'who = "lead", channels = ["maill"]', "escalation.P1[1].channels[0]", 'there is no channel "maill"', 'did you mean "mail"?', 31),
    ('at = "08:00"\nchannel = "mail"', 'at = "08:00"\nchannel = "pagers" #!', "reports.daily.channel", 'there is no channel "pagers"', "valid here: mail, oncall"),
    ('at = "08:00"\nchannel = "mail"', 'at = "08:00"\nchannel = "oncall" #!', "reports.daily.channel", 'the channel "oncall" cannot carry a report: only e-mail can', "e-mail channels: mail"),
    ('at = "08:00"', 'at = "24:00" #!', "reports.daily.at", TIME, ""),
    ('at = "08:00"', "at = 8 #!", "reports.daily.at", TIME, ""),
    ('at = "08:00"', "", "reports.daily.at", "is required and missing", "", 37),
    # times and steps
    ('every = "15s"', 'every = "15s"\ntimeout = "15s" #!', "checks.ping.timeout", "must be shorter than every, which is 15s", "a run must end before the next begins"),
    ('every = "15s"', 'every = "15s"\nrecheck = "16s" #!', "checks.ping.recheck", "must not be longer than every, which is 15s", ""),
    ('{after = "15m",', '{after = "0s",', "escalation.P1[1].after", "must be later than the step before", "write the steps in ascending order", 31),
    ('after = "15m", ', "", "escalation.P1[1].after", "is required and missing", "", 31),
    ('who = "lead"', 'who = ""', "escalation.P1[1].who", "must not be empty", "", 31),
    ('channels = ["mail"]}', "channels = []}", "escalation.P1[1].channels", "must not be empty: the step reaches nobody", "name channels, or contacts", 31),
    ("P2 = [{", "P2 = [] #!\n#", "escalation.P2", "must have at least one step: every severity must reach somebody", 'P2 = [{after = "0s", who = "on-call", channels = ["NAME"]}]'),
    ("P2 = [{", "#", "escalation.P2", "is required and missing: every severity must reach somebody", 'P2 = [{after = "0s", who = "on-call", channels = ["NAME"]}]', 28),
    ("P2 = [{", "P2 = 'x' #!\n#", "escalation.P2", "must be a list of steps", 'P2 = [{after = "0s", who = "on-call", channels = ["NAME"]}]'),
    ("P2 = [{", "P2 = ['x', {", "escalation.P2[0]", "must be a step", '{after = "0s", who = "on-call", channels = ["NAME"]}', 33),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[2]}: {row[1][:30]}" for row in ROWS])
def test_one_problem_is_said_with_its_line(tmp_path: Path, row: tuple[str | int, ...]) -> None:
    old, new, key, message, hint, *rest = row
    assert isinstance(old, str)
    assert isinstance(new, str)
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    line = rest[0] if rest else 1 + next(number for number, line in enumerate(text.split("\n")) if "#!" in line)
    assert problems(tmp_path, text) == (Problem(str(tmp_path / "config.toml"), line, key, message, hint),)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", ["services", "checks", "channels", "escalation"])
def test_a_table_that_is_not_there_has_no_line(tmp_path: Path, table: str) -> None:
    text = re.sub(rf"(?ms)^\[{table}[\].].*?(?=^\[(?!{table})|\Z)", "", GOOD)
    found = problems(tmp_path, text)
    assert Problem(str(tmp_path / "config.toml"), None, table, "this table is missing") in found


@pytest.mark.parametrize("table", ["monitor", "services", "checks", "channels", "escalation", "reports"])
@pytest.mark.parametrize("value", ["3", "[]", '"x"'])
def test_a_table_that_is_no_table(tmp_path: Path, table: str, value: str) -> None:
    text = f"{table} = {value}\n" + re.sub(rf"(?ms)^\[{table}[\].].*?(?=^\[(?!{table})|\Z)", "", GOOD)
    found = problems(tmp_path, text)
    assert found[0] == Problem(str(tmp_path / "config.toml"), 1, table, f"must be a table, written [{table}]")
    assert all(problem.key != table for problem in found[1:])


def test_all_problems_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD
    for old, new in (
        ('"127.0.0.1:8010"', '"nowhere"'),
        ('"http://127.0.0.1:8003"', '"nowhere"'),
        ('"http://127.0.0.1:8002"', '"nowhere"'),
        ('["auth", "data"]', '["auth", "dat"]'),
        ('path = "/health"', 'older_than = "x"'),
        ('notifier = "pager"', 'notifier = "x"'),
        ('channels = ["oncall"]', 'channels = ["x"]'),
    ):
        text = text.replace(old, new, 1)
    found = problems(tmp_path, text)
    assert [(problem.line, problem.key) for problem in found] == [
        (2, "monitor.listen"),
        (8, "services.auth.url"),
        (10, "services.data.url"),
        (15, "checks.ping.services[1]"),
        (17, "checks.ping.older_than"),
        (20, "channels.oncall.notifier"),
        (30, "escalation.P1[0].channels[0]"),
    ]


def test_a_broken_service_or_channel_is_one_problem_not_one_per_reference(tmp_path: Path) -> None:
    text = GOOD.replace('"http://127.0.0.1:8003"', "3").replace('notifier = "email"', "notifier = 3")
    assert [problem.key for problem in problems(tmp_path, text)] == ["services.auth.url", "channels.mail.notifier"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[monitor]\nurl = http://x\n", 2, "not valid TOML: Invalid value, column 7"),
        ("[monitor]\na = 1\na = 2\n", 3, "not valid TOML: Cannot overwrite a value, column 6"),
        ("[a]\n\n[a]\n", 3, "not valid TOML: Cannot declare ('a',) twice, column 3"),
        ('[a]\nb = "x\nc = 1\n', 2, "not valid TOML: Illegal character '\\n', column 7"),
        ("[a]\nb = [1,\nc", 3, "not valid TOML: Invalid value, column 1"),
        ("[a]\nb = [1,\n", 3, "not valid TOML: Invalid value, at the end of the file"),
        ("a = " + "[" * 5000 + "]" * 5000, None, "lists or tables are nested too deeply"),
        (b"[a]\nb = '\xff'\n", 2, "the file is not UTF-8 text"),
        (b" " * (1024 * 1024 + 1), None, "the file is larger than 1 MiB"),
    ],
)
def test_a_file_without_toml_in_it_is_one_problem(tmp_path: Path, text: str | bytes, line: int | None, message: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert (problem.line, problem.key, problem.message) == (line, "file", message)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    text = GOOD.replace('every = "15s"', "every = 0").replace("\n", "\r\n")
    (problem,) = problems(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert (problem.line, problem.key) == (16, "checks.ping.every")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.toml", "there is no such file"),
        ("folder", "this is a directory"),
        ("pipe", "this is not a regular file"),
        ("file/below", "the file cannot be read: Not a directory"),
        ("nul\0", "the file cannot be read: not a valid path"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as raised:
        config.load(tmp_path / name, checks=CHECKS, notifiers=NOTIFIERS, environ=ENVIRON)
    (problem,) = raised.value.problems
    assert (problem.file, problem.line, problem.key, problem.message) == (str(tmp_path / name), None, "file", message)


def test_an_overlong_key_is_cut_and_control_characters_are_not_repeated(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("[monitor]", f'[monitor]\n{"k" * 9000} = 1\n"a\\u001b[31m" = 1', 1))
    assert max(len(problem.key) for problem in found) < 100
    assert all(str(problem).isprintable() for problem in found)
