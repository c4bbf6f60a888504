"""Mails: incidents as text and HTML, threaded and safe to repeat; reports leave through the same door.

Owns the mail's headers and the SMTP exchange; what it says is in ``message.py``, how it looks in ``templates/``.
"""

import asyncio
import contextlib
import hashlib
import re
import socket
from collections.abc import Mapping
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from functools import cache
from typing import Annotated, Literal, Self

import aiosmtplib
from aiosmtplib import SMTPResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import AfterValidator, Field, model_validator

from alerts.digest_message import DigestMessage, compose_digest
from alerts.digest_text import SHOWN, by_service, digest_text
from alerts.message import Message, as_text, clean, compose
from alerts.templates import FOLDER
from alerts.transport import tls_context
from monitor.domain import Digest, Notification, Receipt, Severity, Transition, pairs
from monitor.errors import DeliveryError
from monitor.plugins import Digesting, LocalPath, NotifyContext, PluginConfig, Secret, notifier

SUBJECT_CHARS = 200
QUIT_S = 1.0
REPEATABLE = frozenset({Transition.ESCALATED, Transition.RAISED, Transition.REMINDED})
"""Transitions an incident may see several times on one channel: their Message-IDs carry the outbox row too."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _address(text: str) -> str:
    try:
        found = Address(addr_spec=text)
    except (HeaderParseError, ValueError, IndexError) as exc:
        raise ValueError("expected a plain mail address such as ops@example.com") from exc
    if not found.username or not found.domain or clean(text, 254) != text or " " in text:
        raise ValueError("expected a plain mail address such as ops@example.com")
    return text


MailAddress = Annotated[str, AfterValidator(_address)]


class EmailConfig(PluginConfig):
    """A mail server and who is told. ``security`` is how the connection is protected; ``none`` is for a relay on this machine."""

    host: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._:-]+$")
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password: Secret | None = None
    sender: MailAddress
    to: tuple[MailAddress, ...] = Field(min_length=1, max_length=50)
    ca_file: LocalPath | None = None

    @model_validator(mode="after")
    def _login_is_whole_and_protected(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password are given together or not at all")
        if self.password and self.security == "none" and self.host not in LOOPBACK:
            raise ValueError('a password needs security = "starttls" or "tls": it never travels in clear')
        return self


async def email_digest(ctx: NotifyContext, cfg: EmailConfig, digest: Digest) -> Receipt:
    """Mails many incidents at once, and later what became of them in the same thread."""
    message = compose_digest(digest, ctx.clock.now(), SHOWN)
    first = digest.first_receipt.reference if digest.first_receipt else ""
    subject = f"All over: {message.title}" if message.over else f"{'Re: ' if first else ''}{message.title}: {message.news}"
    return await send_mail(
        ctx,
        cfg,
        subject=subject,
        text=digest_text(message, by_service(message), digest.home),
        html=render_digest(message, digest.home),
        message_id=stable_message_id(cfg, digest.key, digest.channel),
        in_reply_to=first,
        urgent=message.urgent and message.severity <= Severity.P2,
    )


@notifier("email", config=EmailConfig, digest=Digesting(email_digest, gather_s=30))
async def email(ctx: NotifyContext, cfg: EmailConfig, notification: Notification) -> Receipt:
    """Mails each transition of an incident, text and HTML, one thread per incident."""
    message = compose(notification, ctx.clock.now())
    first = notification.first_receipt.reference if notification.first_receipt else ""
    over = "Resolved: " if message.transition is Transition.RESOLVED else ""
    return await send_mail(
        ctx,
        cfg,
        subject=f"{'Re: ' if first and not over else ''}{over}{message.title}",
        text=as_text(message),
        html=render_html(message),
        message_id=incident_message_id(cfg, notification),
        in_reply_to=first,
        urgent=message.severity <= Severity.P2 and message.transition not in {Transition.ACKED, Transition.RESOLVED},
    )


async def send_mail(
    ctx: NotifyContext,
    cfg: EmailConfig,
    *,
    subject: str,
    text: str,
    html: str,
    message_id: str,
    in_reply_to: str = "",
    urgent: bool = False,
) -> Receipt:
    """Send one mail once. ``message_id`` comes from :func:`stable_message_id`, so that a repeated mail is recognised as the same.

    The receipt's reference is the Message-ID, and its note names the recipients that were refused while others were not: to send the
    mail again would only repeat it to those who have it. Raises ``DeliveryError`` when nobody got it; only a 5xx is final, a broken
    connection or the deadline is not.
    """
    mail = build_mail(ctx, cfg, subject=subject, text=text, html=html, message_id=message_id, in_reply_to=in_reply_to, urgent=urgent)
    where = f"mail server {cfg.host}:{cfg.port}"
    try:
        refused = await _submit(ctx, cfg, mail)
    except TimeoutError as exc:  # ours, and aiosmtplib's own timeouts
        raise DeliveryError(f"{where} did not answer within {ctx.deadline_s:g} s", retryable=True) from exc
    except aiosmtplib.SMTPRecipientsRefused as exc:
        refused = {one.recipient: SMTPResponse(one.code, one.message) for one in exc.recipients}
        retryable = any(_may_pass(answer.code) for answer in refused.values())
        raise DeliveryError(f"the mail server refused every recipient: {_refusals(refused)}", retryable=retryable) from exc
    except aiosmtplib.SMTPAuthenticationError as exc:
        raise DeliveryError(f"{where} refused the login: {_answer(exc.code, exc.message)}", retryable=_may_pass(exc.code)) from exc
    except aiosmtplib.SMTPResponseException as exc:
        raise DeliveryError(f"{where} answered {_answer(exc.code, exc.message)}", retryable=_may_pass(exc.code)) from exc
    except OSError as exc:  # aiosmtplib's connection errors are OSErrors too
        raise DeliveryError(f"{where} is not reachable: {clean(str(exc), 200) or type(exc).__name__}", retryable=True) from exc
    except aiosmtplib.SMTPException as exc:  # what is left: the server lacks what the configuration asks for
        raise DeliveryError(f"{where}: {clean(exc.message, 200)} (check security and username)", retryable=False) from exc
    note = f"the mail server refused {len(refused)} of {len(cfg.to)} recipients: {_refusals(refused)}" if refused else ""
    return Receipt(reference=message_id, detail=pairs({"recipients": len(cfg.to) - len(refused)}), note=note)


def build_mail(
    ctx: NotifyContext, cfg: EmailConfig, *, subject: str, text: str, html: str, message_id: str, in_reply_to: str, urgent: bool
) -> EmailMessage:
    """The whole mail: text first, HTML as the alternative. Header values are cleaned, so none can add a header."""
    mail = EmailMessage()
    mail["Subject"] = clean(subject, SUBJECT_CHARS)
    mail["From"] = Address("Platform monitor", addr_spec=cfg.sender)
    mail["To"] = ", ".join(cfg.to)
    mail["Date"] = format_datetime(ctx.clock.now())
    mail["Message-ID"] = message_id
    if in_reply_to:
        mail["In-Reply-To"] = in_reply_to
        mail["References"] = in_reply_to
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    mail["List-Id"] = f"Platform monitor <alerts.monitor.{_domain(cfg)}>"
    if urgent:
        mail["Importance"] = "high"
    mail.set_content(text)
    mail.add_alternative(html, subtype="html")
    return mail


def incident_message_id(cfg: EmailConfig, notification: Notification) -> str:
    """The same for every attempt at one (incident, channel, transition)."""
    row = (str(notification.id),) if notification.transition in REPEATABLE else ()
    return stable_message_id(cfg, notification.incident.id, notification.channel, notification.transition.value, *row)


def stable_message_id(cfg: EmailConfig, *parts: str) -> str:
    """A Message-ID derived from ``parts`` alone, such as a report's name and period."""
    digest = hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", parts[0])[:32].strip("-") if parts else ""
    return f"<{readable or 'monitor'}.{digest}@{_domain(cfg)}>"


def render_html(message: Message) -> str:
    """The incident's HTML, styles inlined; the dark-mode rules stay in the head for the readers that know them."""
    html = _templates().get_template("incident.html").render(message=message)
    return inline_css(html)


def render_digest(message: DigestMessage, key: str) -> str:
    """The digest's HTML, styles inlined."""
    return inline_css(_templates().get_template("digest.html").render(message=message, services=by_service(message), key=key))


def inline_css(html: str) -> str:
    """Move styles onto the elements, as mail readers need it. Fetches nothing."""
    import css_inline  # noqa: PLC0415 - 2 MiB, and not needed before the first mail

    return css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False).inline(html)


@cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


async def _submit(ctx: NotifyContext, cfg: EmailConfig, mail: EmailMessage) -> Mapping[str, SMTPResponse]:
    """One SMTP exchange; returns the recipients that were refused while others were accepted."""
    client = aiosmtplib.SMTP(
        hostname=cfg.host,
        port=cfg.port,
        local_hostname=_own_name(),
        timeout=ctx.deadline_s,
        use_tls=cfg.security == "tls",
        start_tls=cfg.security == "starttls",
        tls_context=tls_context(cfg.ca_file, "smtp") if cfg.security != "none" else None,
    )
    try:
        async with asyncio.timeout(ctx.deadline_s):
            await client.connect()
            if cfg.username is not None and cfg.password is not None:
                await client.login(cfg.username, cfg.password.get_secret_value())
            refused, _ = await client.send_message(mail, sender=cfg.sender, recipients=list(cfg.to))
        # The mail is accepted: a bad goodbye must not make it look lost.
        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
            await client.quit(timeout=QUIT_S)
        return refused
    finally:
        client.close()


def _refusals(refused: Mapping[str, SMTPResponse]) -> str:
    """Who was refused, and why."""
    return clean("; ".join(f"{clean(name, 100)}: {_answer(answer.code, answer.message)}" for name, answer in sorted(refused.items())), 600)


def _may_pass(code: int) -> bool:
    """Whether another attempt may go better: only a 5xx is the server's last word."""
    return not 500 <= code < 600


def _answer(code: int, text: str) -> str:
    return f"{code} {clean(text, 160)}".strip()


def _domain(cfg: EmailConfig) -> str:
    return cfg.sender.rpartition("@")[2]


def _own_name() -> str:
    """For EHLO. Not the fully qualified name: looking it up may hang on DNS."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    return name.strip("-.") or "localhost"
