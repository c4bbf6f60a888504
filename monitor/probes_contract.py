"""What checks see of the outside world: HTTP exchanges and a watched PostgreSQL, as values and protocols.

The implementations are in ``monitor/probes/``; checks know only these types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, LiteralString, Protocol

from psycopg.sql import Composed

Row = dict[str, Any]
Statement = LiteralString | Composed
"""SQL of our own making: a literal, or a literal composed with ``psycopg.sql.Identifier`` where a name is configured."""


class HttpReason(StrEnum):
    """Why an exchange failed, as a label value."""

    DNS = "dns"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    RESET = "reset"
    TLS = "tls"
    TLS_EXPIRED = "tls_expired"
    TLS_WRONG_HOST = "tls_wrong_host"
    TLS_UNTRUSTED = "tls_untrusted"
    TOO_LARGE = "too_large"
    GARBAGE = "garbage"
    """It answered, but not with HTTP."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One exchange to make. ``deadline_s`` covers all of it; the decoded body is cut off beyond ``max_body_bytes``.

    Redirects are never followed. Every probe uses a new connection.
    """

    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    deadline_s: float = 5.0
    max_body_bytes: int = 1_048_576
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class HttpPhases:
    """Seconds spent in each phase; a phase that did not happen is 0."""

    dns_s: float = 0.0
    connect_s: float = 0.0
    tls_s: float = 0.0
    wait_s: float = 0.0
    """From the request sent to the first byte of the answer."""
    transfer_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer. Header names are lower-case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    phases: HttpPhases
    tls_days_left: float | None = None


@dataclass(frozen=True, slots=True)
class HttpFailure:
    """No whole answer within the deadline; ``detail`` is one line for a person."""

    reason: HttpReason
    detail: str
    phases: HttpPhases


class HttpProbe(Protocol):
    async def fetch(self, request: HttpRequest) -> HttpAnswer | HttpFailure:
        """Make one exchange. Failures of the target are values, never exceptions."""
        ...


class LoginState(StrEnum):
    """What a fresh login told about the server."""

    OK = "ok"
    EXHAUSTED = "exhausted"
    """No slot left: too many clients, or only reserved slots remain."""
    ROLE_LIMIT = "role_limit"
    DATABASE_LIMIT = "database_limit"
    HANDSHAKE_STUCK = "handshake_stuck"
    """The server accepts the connection but does not answer."""
    DOWN = "down"
    """Nothing listens, or the server is starting or stopping."""
    REJECTED = "rejected"
    """Wrong password, unknown role or database, or refused by pg_hba.conf: our own configuration."""
    UNCLASSIFIED = "unclassified"


@dataclass(frozen=True, slots=True)
class Login:
    """One canary login. ``detail`` is the server's words on one line, without credentials."""

    state: LoginState
    duration_s: float
    detail: str = ""


class Postgres(Protocol):
    """One watched cluster through one held connection: autocommit, read-only, statement and lock timeouts set."""

    async def fetch(self, sql: Statement, params: Mapping[str, object] | None = None) -> list[Row]:
        """Run one statement. Raises ``CannotLook`` when the connection or the statement fails, naming a missing grant."""
        ...

    async def fetch_many(self, statements: Sequence[tuple[Statement, Mapping[str, object]]]) -> list[list[Row]]:
        """Run several statements in one round trip (pipelined). Raises ``CannotLook``."""
        ...

    async def login(self) -> Login:
        """Open and close one fresh connection as the canary role. Failures are values."""
        ...
