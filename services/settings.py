"""What the platform's services read from their environment, and from ``.env`` at the root where it exists.

The real environment wins over the file. Passwords never show in a repr.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

ROOT = Path(__file__).resolve().parent.parent
CONNECT_TIMEOUT_S = 3


class SettingsError(Exception):
    """A variable holds something unusable; the message names it, and what was expected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One field per variable, named as the variable in lower case; ``{"from": …}`` marks the others."""

    postgres_host: str = "localhost"
    postgres_port: int = 5432
    postgres_db: str = "google_analytics_db"
    postgres_user: str = "analytics_user"
    postgres_password: str = field(default="", repr=False)
    postgres_read_host: str = ""
    """Where report queries go; the primary when empty."""
    postgres_read_port: int = 0
    """The primary's port when 0."""
    database_pool_size: int = 5
    database_max_overflow: int = 3
    idp_url: str = ""
    bigquery_url: str = ""
    bigquery_project: str = "analytics-project"
    bigquery_timeout_s: float = 3600
    sftp_host: str = ""
    sftp_port: int = 22
    sftp_user: str = ""
    sftp_password: str = field(default="", repr=False)
    sftp_known_hosts: str = ""
    """A known_hosts file; the user's own when empty. The host key is checked either way."""
    lease_s: float = 3600
    """How long a worker may hold a job without progress before another worker may take it."""
    log_dir: Path = Path("logs")

    @property
    def pool_max(self) -> int:
        return self.database_pool_size + self.database_max_overflow

    def dsn(self, application_name: str, *, read: bool = False) -> str:
        """The connection string of the primary, or with ``read`` that of the read replica."""
        return make_conninfo(
            host=(self.postgres_read_host if read else "") or self.postgres_host,
            port=(self.postgres_read_port if read else 0) or self.postgres_port,
            dbname=self.postgres_db,
            user=self.postgres_user,
            password=self.postgres_password or None,
            application_name=application_name,
            connect_timeout=CONNECT_TIMEOUT_S,
        )


def read_dotenv(path: Path) -> dict[str, str]:
    """``NAME=value`` lines; blank lines, comments, ``export`` and one pair of quotes are understood. Raises ``SettingsError``."""
    found: dict[str, str] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.removeprefix("export ").partition("=")
        if not equals or not name.strip().isidentifier():
            raise SettingsError(f"{path}:{number}: expected NAME=value")
        value = value.strip()
        quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
        found[name.strip()] = value[1:-1] if quoted else value
    return found


def environment() -> dict[str, str]:
    """The process's environment over that of ``.env``. Raises ``SettingsError``."""
    return {**read_dotenv(ROOT / ".env"), **os.environ}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Raises ``SettingsError`` naming every bad variable; an empty variable counts as absent."""
    source = environment() if environ is None else environ
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, kind in Settings.__annotations__.items():
        text = source.get(name.upper(), "").strip()
        if not text:
            continue
        try:
            values[name] = kind(text)
        except ValueError:
            problems.append(f"{name.upper()}: expected a number, found {text!r}")
    for name, least in (("database_pool_size", 1), ("database_max_overflow", 0), ("bigquery_timeout_s", 0.1), ("lease_s", 1)):
        if values.get(name, least) < least:
            problems.append(f"{name.upper()}: expected {least} or more, found {values[name]}")
    if problems:
        raise SettingsError("; ".join(problems))
    return Settings(**values)


def settings_or_exit() -> Settings:
    """For a program's entry: a bad variable is one line on stderr and exit status 2, not a traceback."""
    try:
        return load_settings()
    except SettingsError as exc:
        print(f"settings: {exc}", file=sys.stderr)
        raise SystemExit(2) from exc
