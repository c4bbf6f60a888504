"""Getting into a PostgreSQL server, or telling why not: connection strings, one fresh login, the server's refusals.

psycopg gives refused logins no SQLSTATE, so this is the one place that reads the server's English words.
"""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from pydantic import SecretStr

from monitor.clock import Clock
from monitor.errors import CannotLook
from monitor.plugins import one_line
from monitor.probes_contract import Login, LoginState, Row

_TCP = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_WORDS = (
    (LoginState.EXHAUSTED, ("too many clients already", "remaining connection slots are reserved")),
    (LoginState.ROLE_LIMIT, ("too many connections for role",)),
    (LoginState.DATABASE_LIMIT, ("too many connections for database",)),
    (LoginState.DOWN, ("the database system is ",)),  # starting up, shutting down, in recovery mode, not accepting connections
    (
        LoginState.REJECTED,
        (
            "authentication failed",
            "no password supplied",
            "no pg_hba.conf entry",
            "pg_hba.conf rejects",
            "does not exist",
            "is not permitted to log in",
            "permission denied for database",
            "server does not support SSL",
            "certificate",
        ),
    ),
)
CURES = {
    LoginState.EXHAUSTED: "no connection slot is left",
    LoginState.ROLE_LIMIT: "the role's connection limit is reached (ALTER ROLE … CONNECTION LIMIT)",
    LoginState.DATABASE_LIMIT: "the database's connection limit is reached (ALTER DATABASE … CONNECTION LIMIT)",
    LoginState.HANDSHAKE_STUCK: "the server accepts connections but does not answer",
    LoginState.DOWN: "the server is down, starting or stopping",
    LoginState.REJECTED: "the server refused the login: look at user, password and database of the dsn, and at pg_hba.conf",
    LoginState.UNCLASSIFIED: "the login failed",
}


@dataclass(frozen=True, slots=True)
class Entrance:
    """A parsed connection string with our own session options, and where it leads."""

    conninfo: SecretStr
    user: str
    database: str
    hosts: tuple[tuple[str, int], ...]
    password: SecretStr

    @property
    def place(self) -> str:
        host, port = self.hosts[0]
        return f"PostgreSQL {host}:{port}/{self.database} as {self.user}"

    def safe(self, text: str) -> str:
        """One printable line without the password, whoever wrote it."""
        secret = self.password.get_secret_value()
        return one_line(text.replace(secret, "***") if secret else text, limit=300)


def entrance(dsn: SecretStr, *, application_name: str, options: str = "") -> Entrance:
    """Parse ``dsn`` and add what every connection of ours carries. Raises ``CannotLook`` without showing the string."""
    try:
        params: dict[str, Any] = conninfo_to_dict(dsn.get_secret_value())
    except psycopg.ProgrammingError:
        raise CannotLook(
            'the dsn is not a PostgreSQL connection string: expected "host=… dbname=… user=…" or "postgresql://…"'
        ) from None  # the parser's words quote the string, and the string holds the password
    options = f"{params.get('options') or ''} {options}".strip()
    extra = {"application_name": application_name, "client_encoding": "utf8", **({"options": options} if options else {})}
    user = params.get("user") or os.environ.get("PGUSER") or "(default user)"
    return Entrance(
        conninfo=SecretStr(make_conninfo(**{**_TCP, **params, **extra})),
        user=str(user),
        database=str(params.get("dbname") or os.environ.get("PGDATABASE") or user),
        hosts=_hosts(params),
        password=SecretStr(str(params.get("password") or "")),
    )


def _hosts(params: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    names = str(params.get("hostaddr") or params.get("host") or os.environ.get("PGHOST") or "/var/run/postgresql").split(",")
    ports = str(params.get("port") or os.environ.get("PGPORT") or 5432).split(",")
    return tuple((name, int(ports[min(index, len(ports) - 1)] or 5432)) for index, name in enumerate(names))


async def connect(where: Entrance) -> psycopg.AsyncConnection[Row]:
    """Open a connection that commits by itself. What is asked again and again is planned once: planning costs a server most of a check."""
    return await psycopg.AsyncConnection.connect(
        where.conninfo.get_secret_value(), autocommit=True, prepare_threshold=2, row_factory=dict_row
    )


async def try_login(where: Entrance, clock: Clock, *, timeout_s: float) -> tuple[psycopg.AsyncConnection[Row] | None, Login]:
    """One fresh login within ``timeout_s``: the open connection when it succeeded, and what it told. Failures are values."""
    started = clock.monotonic()
    connection = None
    try:
        async with asyncio.timeout(0.8 * timeout_s):
            connection = await connect(where)
        state, detail = LoginState.OK, ""
    except TimeoutError:
        reachable = await _reachable(where, 0.2 * timeout_s)
        state = LoginState.HANDSHAKE_STUCK if reachable else LoginState.DOWN
        detail = f"no answer within {0.8 * timeout_s:.1f} s, and TCP {'connects' if reachable else 'does not connect'}"
    except (psycopg.Error, UnicodeError) as exc:
        state, detail = _classify(str(exc)), where.safe(str(exc))
        if state is LoginState.UNCLASSIFIED and await _reachable(where, 0.2 * timeout_s) is False:
            state = LoginState.DOWN
    return connection, Login(state, clock.monotonic() - started, detail)


def _classify(words: str) -> LoginState:
    for state, known in _WORDS:
        if any(text in words for text in known):
            return state
    return LoginState.UNCLASSIFIED


async def _reachable(where: Entrance, timeout_s: float) -> bool | None:
    """Whether anything listens on one of the hosts; None when their names cannot be resolved."""
    unknown = 0
    for host, port in where.hosts:
        try:
            async with asyncio.timeout(timeout_s / len(where.hosts)):
                if host.startswith(("/", "@")):
                    _, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
                else:
                    _, writer = await asyncio.open_connection(host, port)
        except socket.gaierror:
            unknown += 1
        except OSError:  # TimeoutError is one
            continue
        else:
            writer.transport.abort()
            return True
    return None if unknown == len(where.hosts) else False
