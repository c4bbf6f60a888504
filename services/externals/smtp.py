"""The mail server: accepts everything over real SMTP and keeps the last mails instead of forwarding them.

Owns the mailbox, in memory; ``services/externals/mailbox.py`` shows it.
"""

import asyncio
import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

KEPT = 300
MAIL_MAX_BYTES = 5 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Mail:
    """One accepted mail. ``sender`` and ``recipients`` are the envelope's, not the headers'."""

    id: int
    received_at: datetime
    sender: str
    recipients: tuple[str, ...]
    raw: bytes

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.raw, policy=policy.default)

    @property
    def subject(self) -> str:
        return str(self.message.get("Subject", "(no subject)"))

    def part(self, kind: str) -> str:
        """The text of the first ``plain`` or ``html`` part, or nothing."""
        body = self.message.get_body((kind,))
        if body is None:
            return ""
        try:
            return str(body.get_content(errors="replace"))
        except LookupError:  # a charset that nobody knows
            return bytes(body.get_payload(decode=True) or b"").decode("utf-8", "replace")

    def brief(self) -> dict[str, object]:
        return {
            "id": self.id,
            "received_at": self.received_at.isoformat(),
            "from": self.sender,
            "to": list(self.recipients),
            "subject": self.subject,
            "size_bytes": len(self.raw),
        }

    def whole(self) -> dict[str, object]:
        headers = [[name, str(value)] for name, value in self.message.items()]
        return {**self.brief(), "headers": headers, "text": self.part("plain"), "html": self.part("html")}


class Mailbox:
    """The last ``KEPT`` mails, with ids that only grow."""

    def __init__(self) -> None:
        self._mails: deque[Mail] = deque(maxlen=KEPT)
        self._next_id = 1

    def add(self, sender: str, recipients: tuple[str, ...], raw: bytes) -> None:
        self._mails.appendleft(Mail(self._next_id, datetime.now(UTC), sender, recipients, raw))
        self._next_id += 1

    def newest(self, *, to: str = "", after: int = 0) -> list[Mail]:
        """Newest first; only those to an address and with a larger id than ``after``."""
        return [mail for mail in self._mails if mail.id > after and (not to or to in mail.recipients)]

    def get(self, mail_id: int) -> Mail | None:
        return next((mail for mail in self._mails if mail.id == mail_id), None)


class _Handler:
    """aiosmtpd calls this by name."""

    def __init__(self, mailbox: Mailbox, is_refusing: Callable[[], bool]) -> None:
        self._mailbox = mailbox
        self._is_refusing = is_refusing

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if self._is_refusing():
            return "554 5.7.1 this server takes no mail from you"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        raw = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content or "").encode()
        self._mailbox.add(envelope.mail_from or "", tuple(envelope.rcpt_tos), raw)
        return "250 2.0.0 accepted"


def _authenticator(user: str, password: str) -> Callable[..., AuthResult]:
    def decide(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        known = (
            isinstance(data, LoginPassword)
            and hmac.compare_digest(data.login, user.encode())
            and hmac.compare_digest(data.password, password.encode())
        )
        # handled=False lets aiosmtpd answer 535; with the default it would leave the client waiting for ever.
        return AuthResult(success=known, handled=False)

    return decide


MODES = ("ok", "down", "refuse")
"""``down`` listens no more; ``refuse`` refuses every recipient."""


class MailServer:
    """An SMTP server that can be switched off and on. With a ``user``, AUTH is offered (and needed)."""

    def __init__(self, host: str, port: int, mailbox: Mailbox, *, user: str = "", password: str = "") -> None:
        self.mode = MODES[0]
        self.mailbox = mailbox
        self._where = (host, port)
        self._auth: dict[str, Any] = (
            {"authenticator": _authenticator(user, password), "auth_require_tls": False, "auth_required": True}
            if user
            else {"auth_exclude_mechanism": ["LOGIN", "PLAIN"]}
        )
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port listened on. Only while it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def switch(self, mode: str) -> None:
        """Take up a mode; a server that listens again does so on the same port. Raises ``OSError``."""
        self.mode = mode
        if mode == "down":
            self.close()
        elif self._server is None:
            self._server = await asyncio.get_running_loop().create_server(self._session, *self._where, reuse_address=True)
            self._where = (self._where[0], self.port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _session(self) -> SMTP:
        return SMTP(
            _Handler(self.mailbox, lambda: self.mode == "refuse"),
            data_size_limit=MAIL_MAX_BYTES,
            enable_SMTPUTF8=True,
            decode_data=False,
            hostname="mail.platform.test",
            ident="platform mail",
            loop=asyncio.get_running_loop(),
            **self._auth,
        )


async def serve(host: str, port: int, mailbox: Mailbox, *, user: str = "", password: str = "") -> MailServer:
    """A listening server. Raises ``OSError``."""
    server = MailServer(host, port, mailbox, user=user, password=password)
    await server.switch("ok")
    return server
