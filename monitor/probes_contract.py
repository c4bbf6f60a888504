"""What checks see of the outside world: HTTP exchanges, a watched PostgreSQL, log files, this host, heartbeats, as values and protocols.

The implementations are in ``monitor/probes/``; checks know only these types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, LiteralString, NamedTuple, Protocol

from psycopg.sql import Composed

Row = dict[str, Any]
Statement = LiteralString | Composed
"""SQL of our own making: a literal, or a literal composed with ``psycopg.sql.Identifier`` where a name is configured."""
Asked = Statement | tuple[Statement, Mapping[str, object]]
"""A statement without values, or with them."""


class HttpReason(StrEnum):
    """Why an exchange failed, as a label value."""

    DNS = "dns"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    """Not one byte of an answer within the deadline."""
    TOO_SLOW = "too_slow"
    """It began to answer, and was not done within the deadline."""
    RESET = "reset"
    TLS = "tls"
    TLS_EXPIRED = "tls_expired"
    TLS_WRONG_HOST = "tls_wrong_host"
    TLS_UNTRUSTED = "tls_untrusted"
    TOO_LARGE = "too_large"
    """The decoded body is larger than allowed."""
    HEADERS_TOO_LARGE = "headers_too_large"
    GARBAGE = "garbage"
    """It answered, but not with HTTP."""
    OTHER = "other"


class HttpRequest(NamedTuple):
    """One exchange to make. ``deadline_s`` covers all of it; the decoded body is cut off beyond ``max_body_bytes``.

    Redirects are never followed. Every probe uses a new connection. This and what comes back are named tuples: they are made hundreds
    of times a second, in a third of the time of frozen dataclasses.
    """

    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    deadline_s: float = 5.0
    max_body_bytes: int = 1_048_576
    ca_file: str | None = None


class HttpPhases(NamedTuple):
    """Seconds spent in each phase; a phase that did not happen is 0."""

    dns_s: float = 0.0
    connect_s: float = 0.0
    tls_s: float = 0.0
    wait_s: float = 0.0
    """From the request sent to the first byte of the answer."""
    transfer_s: float = 0.0
    total_s: float = 0.0


class HttpAnswer(NamedTuple):
    """A whole answer."""

    status: int
    header_lines: tuple[bytes, ...]
    """As they came; those of informational answers before them, trailers behind them."""
    body: bytes
    phases: HttpPhases
    tls_days_left: float | None = None

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Names in lower case, and values. Read when asked for: nobody asks for those of most answers."""
        found: list[tuple[str, str]] = []
        for line in self.header_lines:
            if line.startswith(b"HTTP/"):  # those before are of an informational answer
                found.clear()
                continue
            name, colon, value = line.decode("latin-1").partition(":")
            if colon:
                found.append((name.strip().lower(), value.strip()))
        return tuple(found)


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

    async def fetch_many(self, statements: Sequence[Asked]) -> list[list[Row]]:
        """Run several statements in one round trip (pipelined). Raises ``CannotLook``."""
        ...

    async def ask(self, query: str, *, limit: int) -> list[Row]:
        """The first ``limit`` rows of one SELECT that somebody wrote in the configuration.

        It runs in a read-only transaction of its own that is rolled back, and cannot be more than one statement. Raises ``CannotLook``.
        """
        ...

    async def version(self) -> int:
        """The server's version as a number, such as 180006. Raises ``CannotLook`` when there is no connection to be had."""
        ...

    async def login(self) -> Login:
        """Open and close one fresh connection as the canary role. Failures are values."""
        ...


# --- log files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far a log file was read. It names the file by inode, so that it is found again after a rotation."""

    inode: int
    offset: int
    mark: int = 0
    """Digest of the last bytes in front of ``offset``. Inode numbers are used again, and a truncated file grows again: what stands
    there tells whether it is still the same text."""


@dataclass(frozen=True, slots=True)
class LogPiece:
    """What was added to a log since a position, in whole lines, decoded with replacement characters, without their ends."""

    lines: tuple[str, ...]
    position: LogPosition
    """Where the next reading goes on."""
    size_bytes: int
    """Of the current file."""
    rotated: bool = False
    """Another file took the place of the one read before; what was left in that one is in ``lines`` when it could be found."""
    truncated: bool = False
    """The file became shorter than what was read of it."""
    missed_bytes: int = 0
    """Left out: too far behind, the rest of a line that is too long, or what a rotated file held that was compressed since. What a
    deleted file held is not known and not counted."""
    more: bool = False
    """There is more to read at once."""


@dataclass(frozen=True, slots=True)
class RotatedLog:
    """A former part of a log, beside it: ``name.1``, ``name-20261124.gz``."""

    name: str
    size_bytes: int
    written_at: datetime
    """Compressing keeps it."""


@dataclass(frozen=True, slots=True)
class LogFamily:
    """A log file, its rotated parts and the folder they are in."""

    inode: int
    size_bytes: int
    written_at: datetime
    first_line: str
    """Cut; empty when the file is."""
    rotated: tuple[RotatedLog, ...]
    """Latest first."""
    folder_bytes: int
    """What the files of its folder take on the disk, without sub-folders."""


class LogReader(Protocol):
    """Read access to the log files named in the configuration."""

    async def read_on(self, path: str, position: LogPosition | None, *, max_bytes: int = 8_388_608) -> LogPiece:
        """What was added since ``position``; without one, the last ``max_bytes`` of the file. Raises ``CannotLook``.

        A line without its end is left for later, unless it is longer than 64 KiB: then it is cut.
        """
        ...

    async def family(self, path: str) -> LogFamily:
        """The file with its rotated parts. Raises ``CannotLook``."""
        ...


# --- the host --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds a path. ``free_bytes`` and ``free_inodes`` are what an ordinary user may still take."""

    device: str
    mount_point: str
    total_bytes: int
    free_bytes: int
    total_inodes: int
    """0 where the file system has no fixed number."""
    free_inodes: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Memory:
    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int
    oom_kills: int | None
    """Processes that the kernel killed for want of memory since it was started; None where it does not tell."""


@dataclass(frozen=True, slots=True)
class Load:
    """``per_minute``, ``per_five`` and ``per_fifteen`` are the load averages; files are open file handles of the whole system."""

    per_minute: float
    per_five: float
    per_fifteen: float
    cpus: int
    open_files: int | None
    max_open_files: int | None


@dataclass(frozen=True, slots=True)
class HostProcess:
    pid: int
    parent: int
    command: str
    """Its command line on one line."""
    started_at: datetime
    rss_bytes: int
    cpu_s: float
    """User and system time since its start."""
    open_files: int | None
    """None when this user may not count them."""
    max_open_files: int | None
    listens_on: tuple[int, ...]
    """TCP ports; empty as well when this user may not see them."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit."""

    name: str
    active: str
    """active, inactive, failed, activating …"""
    sub: str
    restarts: int
    result: str


class Host(Protocol):
    """The machine that the monitor runs on. Every method raises ``CannotLook`` when it could not see."""

    async def disk(self, path: str) -> Disk: ...

    async def memory(self) -> Memory: ...

    async def load(self) -> Load: ...

    async def processes(self, text: str = "", *, port: int | None = None) -> tuple[HostProcess, ...]:
        """Those whose command line contains ``text`` and that listen on ``port``, where one is given; the monitor itself left out."""
        ...

    async def unit(self, name: str) -> Unit: ...


# --- heartbeats ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Beat:
    """What is known of one heartbeat. Times are None until the first ping of that kind."""

    known_since: datetime
    success_at: datetime | None = None
    started_at: datetime | None = None
    failed_at: datetime | None = None
    exit_code: int | None = None
    """Of the last ping that gave one."""
    duration_s: float | None = None
    """Of the last run whose start and end were both pinged."""
    body: str = ""
    """What the last ping sent with it, cut."""

    @property
    def ended_at(self) -> datetime | None:
        """The latest ping of a run's end, good or bad."""
        return max((at for at in (self.success_at, self.failed_at) if at is not None), default=None)

    @property
    def running(self) -> bool:
        """Whether a start was pinged, and no end since."""
        return self.started_at is not None and (self.ended_at is None or self.ended_at < self.started_at)


@dataclass(frozen=True, slots=True)
class Ping:
    """One sign of life of a job."""

    what: Literal["success", "start", "fail", "log"]
    """A log changes nothing but the body."""
    exit_code: int | None = None
    body: str = ""


class Heartbeats(Protocol):
    async def of(self, check: str) -> Beat:
        """The heartbeat of ``[checks.CHECK]``. Raises ``CannotLook`` when the monitor's state cannot be read."""
        ...
