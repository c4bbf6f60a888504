"""The kinds of values that only this product's own tables use: addresses, URLs, DSNs, times of day, timezones.

Each raises ``ValueError`` saying what is expected, and never repeats what was written.
"""

import ipaddress
import re
from datetime import time
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from psycopg import Error, conninfo
from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from monitor.config.document import nearest
from monitor.plugins import Duration, Secret, SecretSources, parse_duration_s, read_secret

DAY_S = 86_400
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


class Misfit(ValueError):
    """A value that does not fit, with a hint that stands beside the message."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Address(NamedTuple):
    """Where to listen. ``host`` is without the brackets of IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Read ``"127.0.0.1:8010"`` or ``"[::1]:8010"``."""
    if isinstance(value, Address):
        return value
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if not found or not 1 <= int(found["port"]) <= 65_535:
        raise ValueError('expected "host:port" with a port from 1 to 65535, such as "127.0.0.1:8010"')
    if found["six"]:
        try:
            ipaddress.IPv6Address(found["six"])
        except ValueError:
            raise ValueError("the host in brackets is not an IPv6 address") from None
    elif not _HOST.fullmatch(found["host"]):
        raise ValueError("the host is neither a name nor an IP address")
    return Address(found["six"] or found["host"], int(found["port"]))


def parse_url(value: str) -> str:
    """Read an ``http://`` or ``https://`` URL; a slash at its end is dropped."""
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError("a URL holds no spaces or control characters")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not a valid URL: check its host and port") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError('expected a URL such as "http://127.0.0.1:8003" or "https://idp.example.com"')
    if port == 0:
        raise ValueError("not a valid URL: check its host and port")
    if "@" in parts.netloc:
        raise ValueError("a URL must not hold a user name or password")
    if parts.query or parts.fragment:
        raise ValueError('expected a base URL, without "?" and "#"')
    return value.rstrip("/")


def parse_time(value: object) -> time:
    """Read ``"08:00"``, or TOML's own ``08:00:00``."""
    if isinstance(value, time):
        return value
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", value) if isinstance(value, str) else None
    if not found:
        raise ValueError('expected a time of day such as "08:00", from "00:00" to "23:59"')
    return time(int(found[1]), int(found[2]))


def parse_timezone(value: object) -> ZoneInfo:
    """Read an IANA name such as ``"Europe/Berlin"``."""
    if isinstance(value, ZoneInfo):
        return value
    if not isinstance(value, str):
        raise ValueError('expected the name of a timezone, such as "Europe/Berlin"')
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        close = nearest(value, available_timezones())
        raise Misfit("unknown timezone", close if close.startswith("did") else 'names look like "Europe/Berlin" or "UTC"') from None


def parse_days(value: object) -> int:
    """Read a duration of whole days."""
    seconds = parse_duration_s(value)
    if not DAY_S <= seconds <= 3660 * DAY_S or seconds % DAY_S:
        raise ValueError('expected a whole number of days, such as "14d", at least "1d"')
    return int(seconds // DAY_S)


def check_interval(seconds: float) -> float:
    """An interval or deadline, at least a tenth of a second, so that nothing spins."""
    if seconds < 0.1:
        raise ValueError('must be at least "100ms"')
    return seconds


def check_dsn(secret: SecretStr) -> SecretStr:
    """A connection string that PostgreSQL's own library understands."""
    try:
        conninfo.conninfo_to_dict(secret.get_secret_value())
    except Error:
        # The library's words repeat the string, which holds the password.
        raise ValueError('not a PostgreSQL connection string: expected "postgresql://user:password@host:5432/database"') from None
    return secret


def read_state(value: object, info: ValidationInfo) -> SecretStr:
    """Turn a path, ``sqlite:///path``, a PostgreSQL URL or ``{env = …}`` into a URL for SQLAlchemy."""
    written = value.strip() if isinstance(value, str) else read_secret(value, info).get_secret_value()
    if not written or "\0" in written:
        raise ValueError("expected the path of a file or a PostgreSQL URL")
    folder = info.context.folder if isinstance(info.context, SecretSources) else None
    if "://" not in written:
        url = URL.create("sqlite", database=str(folder / written if folder else written))
        return SecretStr(url.render_as_string(hide_password=False))
    try:
        url = make_url(written)
    except (ArgumentError, ValueError):
        raise ValueError('not a database URL: expected "postgresql+psycopg://user@host/database"') from None
    if isinstance(value, str) and (url.password is not None or "password" in url.query):
        raise ValueError('a URL with a password is a secret: write state = {env = "NAME"}')
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        url = url.set(drivername="sqlite", database=str(folder / url.database if folder else url.database))
    elif url.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        url = url.set(drivername="postgresql+psycopg")
    else:
        raise ValueError("the state lives in SQLite (the path of a file) or PostgreSQL (postgresql+psycopg://…)")
    return SecretStr(url.render_as_string(hide_password=False))


Listen = Annotated[Address, BeforeValidator(parse_address)]
Url = Annotated[str, AfterValidator(parse_url)]
TimeOfDay = Annotated[time, BeforeValidator(parse_time)]
Timezone = Annotated[ZoneInfo, BeforeValidator(parse_timezone)]
Days = Annotated[int, BeforeValidator(parse_days)]
Interval = Annotated[Duration, AfterValidator(check_interval)]
Dsn = Annotated[Secret, AfterValidator(check_dsn)]
State = Annotated[SecretStr, BeforeValidator(read_state)]
