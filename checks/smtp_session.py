"""One visit to a mail server as a sender would make it: greeting, STARTTLS, login, goodbye. No mail is sent.

Owns the words for what went wrong, and that no password is ever in them.
"""

import asyncio
import base64
import contextlib
import errno
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import aiosmtplib

from monitor.errors import CannotLook
from monitor.plugins import one_line

Security = Literal["starttls", "tls", "none"]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
QUIT_S = 0.5
OUT_OF_SOCKETS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Step(StrEnum):
    """How far a visit came."""

    CONNECT = "connect"
    TLS = "tls"
    LOGIN = "login"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Door:
    """Where mail goes, and how the connection is protected."""

    host: str
    port: int
    security: Security

    @property
    def name(self) -> str:
        """``host:port``, fit to show."""
        return f"{one_line(self.host, limit=80)}:{self.port}"

    def takes_passwords(self) -> bool:
        """A password never travels in clear, except on this machine."""
        return self.security != "none" or self.host in LOOPBACK


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Visit:
    """What became of a visit. ``why`` is one line for a person when ``failed_at`` is not ``DONE``."""

    failed_at: Step
    why: str
    took_s: float
    expires_at: float | None = None
    """When the server's certificate ends, in seconds since the epoch."""
    ran_out: bool = False
    """It was ended by its deadline."""
    final: bool = False
    """The server answered the login with a lasting no."""


async def visit(door: Door, login: Login | None, *, until: float, trust: ssl.SSLContext) -> Visit:
    """Make one visit; it ends at ``until`` on the loop's clock. Raises ``CannotLook`` when this machine has no socket left."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    progress = _Progress()
    client = aiosmtplib.SMTP(
        hostname=door.host,
        port=door.port,
        local_hostname=_own_name(),
        timeout=max(0.1, until - began),
        use_tls=door.security == "tls",
        start_tls=False,
        tls_context=trust if door.security == "tls" else None,
    )
    why, ran_out, final = "", False, False
    try:
        async with asyncio.timeout_at(until):
            await _talk(client, door, login, progress, trust)
    except TimeoutError:
        why, ran_out = f"no answer after {loop.time() - began:.1f} s, {_WAITING[progress.step]}", True
    except (aiosmtplib.SMTPException, OSError, ValueError) as exc:
        if isinstance(exc.__cause__ or exc, OSError) and getattr(exc.__cause__ or exc, "errno", None) in OUT_OF_SOCKETS:
            raise CannotLook(f"the monitor's machine has no socket left to visit mail servers: {one_line(str(exc))}") from exc
        why, final = _redacted(_explain(exc, door), login), isinstance(exc, aiosmtplib.SMTPAuthenticationError) and exc.code >= 500
        if progress.step is Step.CONNECT and _tls_error(exc) is not None:
            progress.step = Step.TLS
    finally:
        client.close()
    return Visit(progress.step, why, loop.time() - began, progress.expires_at, ran_out, final)


@dataclass(slots=True)
class _Progress:
    step: Step = Step.CONNECT
    expires_at: float | None = None


async def _talk(client: aiosmtplib.SMTP, door: Door, login: Login | None, progress: _Progress, trust: ssl.SSLContext) -> None:
    await client.connect()
    await client.ehlo()
    if door.security == "starttls":
        progress.step = Step.TLS
        await client.starttls(tls_context=trust)
        await client.ehlo()
    certificate = client.get_transport_info("peercert") or {}
    if ends := certificate.get("notAfter"):
        progress.expires_at = float(ssl.cert_time_to_seconds(ends))
    if login is not None:
        progress.step = Step.LOGIN
        await client.login(login.username, login.password)
    progress.step = Step.DONE
    # All is proven: a bad goodbye changes nothing.
    with contextlib.suppress(aiosmtplib.SMTPException, OSError):
        await client.quit(timeout=QUIT_S)


_WAITING = {
    Step.CONNECT: "waiting for its greeting",
    Step.TLS: "during the TLS handshake",
    Step.LOGIN: "during the login",
    Step.DONE: "at the goodbye",
}
_CERTIFICATE = {
    10: "its certificate is expired",
    9: "its certificate is not yet valid",
    62: "its certificate is for another host",
    64: "its certificate is for another host",
}


def _explain(exc: Exception, door: Door) -> str:
    tls = _tls_error(exc)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return _CERTIFICATE.get(tls.verify_code, f"its certificate is not trusted: {tls.verify_message}")
    if tls is not None:
        return f"the TLS handshake failed: {tls.reason or tls}"
    cause = exc.__cause__ or exc
    if isinstance(cause, socket.gaierror):
        return f"its name cannot be resolved: {cause.strerror}"
    if isinstance(cause, ConnectionRefusedError):
        return f"connection refused: nothing listens on port {door.port}"
    if isinstance(exc, aiosmtplib.SMTPResponseException):
        return f"it answered {exc.code} {exc.message}"
    return str(exc) or type(exc).__name__


def _tls_error(exc: BaseException) -> ssl.SSLError | None:
    return next((link for link in _chain(exc) if isinstance(link, ssl.SSLError)), None)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = exc
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _redacted(text: str, login: Login | None) -> str:
    """A server may repeat what it was told, in clear or as it was encoded."""
    if login is not None:
        user, password = login.username.encode(), login.password.encode()
        coded = (base64.b64encode(told).decode().rstrip("=") for told in (b"\0" + user + b"\0" + password, password))
        for secret in (*coded, login.password):
            text = text.replace(secret, "***") if secret else text
    return one_line(text, limit=200)


def _own_name() -> str:
    """For EHLO. Not the fully qualified name: looking it up may hang on DNS."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.") or "localhost"


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """The machine's authorities, and those of ``ca_file``. Raises ``CannotLook``."""
    try:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise CannotLook(f"the CA bundle {ca_file} cannot be read: {one_line(str(exc))}: look at the check's ca_file") from exc
    return context
