"""The e-mail notifier against a real SMTP server: TLS, logins, refusals, hangs; and the mail itself, parsed back."""

import asyncio
import email
import email.policy
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from alerts import DeliveryError
from alerts import email as email_notifier
from alerts.email import EmailConfig, build_mail, incident_message_id, send_mail, stable_message_id
from monitor.config.settings import Channel
from monitor.domain import EscalationStep, Severity, Transition
from monitor.plugins import Notifier
from tests.integration.test_delivery import Switch, running
from tests.notify_parts import Authority, context, notification, unused_port
from tests.support.world import settings as monitor_settings
from tests.support.world import until

PASSWORD = "s3cret-of-the-relay"


@dataclass(slots=True)
class Mailroom:
    """What the server does and what it got."""

    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    refuse_recipient: dict[str, str] = field(default_factory=dict)
    refuse_data: str = ""
    hang_at: str = ""
    drop_at: str = ""

    async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]) -> list[str]:
        session.host_name = hostname
        await self._misbehave("EHLO", server)
        return responses

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if answer := self.refuse_recipient.get(address):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await self._misbehave("DATA", server)
        if self.refuse_data:
            return self.refuse_data
        content = envelope.content
        assert isinstance(content, bytes)
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        self.mails.append((list(envelope.rcpt_tos), parsed))
        return "250 OK"

    async def handle_QUIT(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await self._misbehave("QUIT", server)
        return "221 Bye"

    async def _misbehave(self, where: str, server: SMTP) -> None:
        if self.drop_at == where:
            assert server.transport is not None
            server.transport.abort()
        if self.hang_at == where:
            await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Relay:
    room: Mailroom
    port: int


def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"monitor", PASSWORD.encode())
    return AuthResult(success=right, handled=right)


@asynccontextmanager
async def serving(authority: Authority, *, security: str = "starttls", login: bool = False) -> AsyncIterator[Relay]:
    room, context = Mailroom(), authority.server_context()
    loop = asyncio.get_running_loop()
    connections: list[SMTP] = []

    def connect() -> SMTP:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns of a login that it does not see protected
            return build()

    def build() -> SMTP:
        server = SMTP(
            room,
            hostname="relay.test",
            ident="test",
            loop=loop,
            tls_context=context if security == "starttls" else None,
            require_starttls=security == "starttls",
            auth_required=login,
            auth_require_tls=security == "starttls" or not login,
            authenticator=authenticate if login else None,
        )
        connections.append(server)
        return server

    listener = await loop.create_server(connect, "127.0.0.1", 0, ssl=context if security == "tls" else None)
    try:
        yield Relay(room, listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        for server in connections:
            if server.transport is not None:
                server.transport.abort()
            if server._handler_coroutine is not None:
                server._handler_coroutine.cancel()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


Serve = Callable[..., AbstractAsyncContextManager[Relay]]


def config(relay: Relay | int, authority: Authority, **changes: Any) -> EmailConfig:
    port = relay if isinstance(relay, int) else relay.port
    values = {
        "host": "127.0.0.1",
        "port": port,
        "sender": "monitor@example.com",
        "to": ("oncall@example.com",),
        "ca_file": authority.ca_file,
    }
    return EmailConfig(**{**values, **changes})


@pytest.fixture
async def relay(authority: Authority) -> AsyncIterator[Relay]:
    async with serving(authority) as relay:
        yield relay


async def test_text_first_html_second_and_the_right_headers(relay: Relay, authority: Authority) -> None:
    receipt = await email_notifier.send(context(), config(relay, authority), notification())
    [(recipients, mail)] = relay.room.mails
    assert recipients == ["oncall@example.com"]
    assert mail["Subject"] == "[P1] auth: Service not responding (INC-001)"
    assert mail["From"] == "Platform monitor <monitor@example.com>"
    assert mail["Message-ID"] == receipt.reference
    assert mail["Date"] == "Mon, 23 Nov 2026 08:04:00 +0000"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Id"] == "Platform monitor <alerts.monitor.example.com>"
    assert mail["Importance"] == "high"
    assert mail["In-Reply-To"] is None
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    text, html = (part.get_content() for part in mail.iter_parts())
    assert "connection refused" in text
    assert "connection refused" in html
    assert "prefers-color-scheme: dark" in html
    assert 'style="' in html


async def test_later_mails_join_the_thread_of_the_first(relay: Relay, authority: Authority) -> None:
    cfg = config(relay, authority)
    first = await email_notifier.send(context(), cfg, notification())
    for row, transition in enumerate((Transition.ESCALATED, Transition.ACKED, Transition.RESOLVED), start=2):
        await email_notifier.send(context(), cfg, notification(transition, row=row, first=first))
    mails = [mail for _, mail in relay.room.mails]
    assert [mail["In-Reply-To"] for mail in mails[1:]] == [first.reference] * 3
    assert [mail["References"] for mail in mails[1:]] == [first.reference] * 3
    over, before = "Resolved: ", {mail["Subject"].removeprefix("Re: ") for mail in mails}
    assert {subject.removeprefix(over) for subject in before} == {"[P1] auth: Service not responding (INC-001)"}
    assert any(subject.startswith(over) for subject in before)
    assert len({mail["Message-ID"] for mail in mails}) == 4
    assert [mail["Importance"] for mail in mails] == ["high", "high", None, None]


def test_the_message_id_is_the_same_for_every_attempt(authority: Authority) -> None:
    cfg = config(25, authority)
    trigger = incident_message_id(cfg, notification(row=1))
    assert trigger == incident_message_id(cfg, notification(row=2, summary="other words"))
    assert trigger != incident_message_id(cfg, notification(channel="lead"))
    assert trigger != incident_message_id(cfg, notification(Transition.RESOLVED))
    escalations = {incident_message_id(cfg, notification(Transition.ESCALATED, row=row)) for row in (2, 3, 3)}
    assert len(escalations) == 2
    assert stable_message_id(cfg, "daily", "2026-11-23") == stable_message_id(cfg, "daily", "2026-11-23")
    assert stable_message_id(cfg, "\r\nBcc: x", "\ud800").isprintable()


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
async def test_every_kind_of_protection_with_a_login(authority: Authority, security: str) -> None:
    async with serving(authority, security=security, login=True) as relay:
        cfg = config(relay, authority, security=security, username="monitor", password=SecretStr(PASSWORD))
        await email_notifier.send(context(), cfg, notification())
        assert len(relay.room.mails) == 1


async def test_a_wrong_password_is_final_and_not_repeated(authority: Authority) -> None:
    async with serving(authority, login=True) as relay:
        cfg = config(relay, authority, username="monitor", password=SecretStr("wrong-password"))
        with pytest.raises(DeliveryError, match="refused the login: 535") as caught:
            await email_notifier.send(context(), cfg, notification())
    assert not caught.value.retryable
    assert "wrong-password" not in str(caught.value)


async def test_a_server_without_starttls_is_not_talked_to_in_clear(authority: Authority) -> None:
    async with serving(authority, security="none") as relay:
        with pytest.raises(DeliveryError, match="STARTTLS") as caught:
            await email_notifier.send(context(), config(relay, authority), notification())
        assert not caught.value.retryable
        assert relay.room.mails == []


async def test_an_untrusted_certificate_is_refused(relay: Relay, authority: Authority) -> None:
    with pytest.raises(DeliveryError, match="certificate") as caught:
        await email_notifier.send(context(), config(relay, authority, ca_file=None), notification())
    assert caught.value.retryable
    assert relay.room.mails == []


@pytest.mark.parametrize(
    ("room", "retryable", "says"),
    [
        ({"refuse_data": "451 try again later"}, True, "451 try again later"),
        ({"refuse_data": "552 too big"}, False, "552 too big"),
        ({"refuse_recipient": {"oncall@example.com": "450 busy"}}, True, "every recipient: oncall@example.com: 450 busy"),
        ({"refuse_recipient": {"oncall@example.com": "550 no such user"}}, False, "every recipient: oncall@example.com: 550 no such user"),
        ({"drop_at": "EHLO"}, True, "not reachable"),
        ({"drop_at": "DATA"}, True, "not reachable"),
    ],
)
async def test_failures_are_sorted(relay: Relay, authority: Authority, room: dict[str, Any], retryable: bool, says: str) -> None:
    for name, value in room.items():
        setattr(relay.room, name, value)
    with pytest.raises(DeliveryError) as caught:
        await email_notifier.send(context(), config(relay, authority), notification())
    assert caught.value.retryable is retryable
    assert says in str(caught.value)


THREE = ("oncall@example.com", "gone@example.com", "lead@example.com")


@pytest.mark.parametrize("answer", ["451 greylisted", "550 no such user"])
async def test_a_mail_that_some_got_is_delivered_and_names_who_did_not(relay: Relay, authority: Authority, answer: str) -> None:
    relay.room.refuse_recipient["gone@example.com"] = answer
    receipt = await email_notifier.send(context(), config(relay, authority, to=THREE), notification())
    assert receipt.note == f"the mail server refused 1 of 3 recipients: gone@example.com: {answer}"
    assert dict(receipt.detail) == {"recipients": "2"}
    assert relay.room.mails[0][0] == ["oncall@example.com", "lead@example.com"]


@pytest.mark.parametrize(
    ("answers", "retryable"), [(("452 full",) * 3, True), (("550 no",) * 3, False), (("550 no", "450 busy", "550 no"), True)]
)
async def test_a_mail_that_nobody_got_is_tried_again_while_one_may_yet_get_it(
    relay: Relay, authority: Authority, answers: tuple[str, ...], retryable: bool
) -> None:
    relay.room.refuse_recipient.update(zip(THREE, answers, strict=True))
    with pytest.raises(DeliveryError, match="refused every recipient") as caught:
        await email_notifier.send(context(), config(relay, authority, to=THREE), notification())
    assert caught.value.retryable is retryable
    assert relay.room.mails == []


@pytest.mark.parametrize("answer", ["452 mailbox full", "550 no such user"])
async def test_one_bad_recipient_neither_repeats_a_mail_nor_keeps_back_its_resolve(
    tmp_path: Path, relay: Relay, authority: Authority, answer: str
) -> None:
    relay.room.refuse_recipient["gone@example.com"] = answer
    switch = Switch()
    chosen = monitor_settings(tmp_path, switch.subject)
    mail = Channel("mail", email_notifier, config(relay, authority, to=THREE))
    chosen = replace(chosen, channels={"mail": mail}, escalation=dict.fromkeys(Severity, (EscalationStep(0, "all", ("mail",)),)))
    async with running(chosen) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes == [("mail", "sent")])
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes == [("mail", "sent")] * 2)
        (incident,) = world.store.incidents.list(unresolved=False)
        said = [entry.text for entry in world.store.incidents.timeline(incident.id) if entry.kind == "delivered"]
    assert [mail["Subject"].startswith("Resolved: ") for _, mail in relay.room.mails] == [False, True]
    refused = f"delivered to mail, but the mail server refused 1 of 3 recipients: gone@example.com: {answer}"
    assert said == [f"triggered {refused}", f"resolved {refused}"]


@pytest.mark.parametrize("where", ["EHLO", "DATA"])
async def test_a_hanging_server_is_left_at_the_deadline(relay: Relay, authority: Authority, where: str) -> None:
    relay.room.hang_at = where
    started = time.monotonic()
    with pytest.raises(DeliveryError, match="did not answer within") as caught:
        await email_notifier.send(context(deadline_s=0.4), config(relay, authority), notification())
    assert caught.value.retryable
    assert time.monotonic() - started < 2


async def test_a_server_that_accepts_and_says_nothing(authority: Authority) -> None:
    release = asyncio.Event()

    async def silence(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DeliveryError, match=r"did not answer within 0\.3 s"):
            await email_notifier.send(context(deadline_s=0.3), config(port, authority), notification())
        release.set()


@pytest.mark.parametrize("trouble", ["hang_at", "drop_at"])
async def test_a_bad_goodbye_is_no_failure(relay: Relay, authority: Authority, trouble: str) -> None:
    setattr(relay.room, trouble, "QUIT")
    await email_notifier.send(context(), config(relay, authority), notification())
    assert len(relay.room.mails) == 1


async def test_a_cancelled_send_is_cancelled_at_once(relay: Relay, authority: Authority) -> None:
    relay.room.hang_at = "DATA"
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await email_notifier.send(context(deadline_s=30), config(relay, authority), notification())
    assert time.monotonic() - started < 2


async def test_nobody_listens(authority: Authority) -> None:
    with pytest.raises(DeliveryError, match="not reachable") as caught:
        await email_notifier.send(context(), config(unused_port(), authority), notification())
    assert caught.value.retryable


async def test_garbage_instead_of_smtp(authority: Authority) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        with pytest.raises(DeliveryError) as caught:
            await email_notifier.send(context(), config(server.sockets[0].getsockname()[1], authority), notification())
    assert caught.value.retryable


async def test_a_hostile_incident_arrives_with_no_header_of_its_own(relay: Relay, authority: Authority) -> None:
    evil = "x\r\nBcc: everybody@example.com\r\n\r\n<script>\ud800\u202e\n.\n"
    sample = notification(title=evil, service=evil, code=evil, summary=evil, evidence=(evil,), first_step=evil, reason=evil, id=evil)
    await email_notifier.send(context(), config(relay, authority), sample)
    [(recipients, mail)] = relay.room.mails
    assert recipients == ["oncall@example.com"]
    assert mail["Bcc"] is None
    assert "\n" not in mail["Subject"]
    html = mail.get_body(("html",))
    assert html is not None
    assert "<script>" not in html.get_content()


@given(subject=st.text(alphabet=st.characters(codec=None)), body=st.text())
@settings(max_examples=60, deadline=None)
def test_any_subject_makes_a_mail_of_the_same_headers(subject: str, body: str) -> None:
    cfg = EmailConfig(host="relay", sender="monitor@example.com", to=("a@example.com",))
    mail = build_mail(
        context(), cfg, subject=subject, text=body, html=body, message_id=stable_message_id(cfg, subject), in_reply_to="", urgent=False
    )
    parsed = email.message_from_bytes(bytes(mail), policy=email.policy.default)
    assert set(parsed.keys()) == set(mail.keys())


async def test_a_report_leaves_by_the_same_door(relay: Relay, authority: Authority) -> None:
    cfg = config(relay, authority)
    key = stable_message_id(cfg, "report-daily", "2026-11-23")
    receipt = await send_mail(context(), cfg, subject="Daily checklist", text="all good", html="<p>all good</p>", message_id=key)
    assert receipt.reference == key
    assert relay.room.mails[0][1]["Subject"] == "Daily checklist"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"to": ()}, "to"),
        ({"to": ("a@example.com\r\nBcc: b@example.com",)}, "plain mail address"),
        ({"to": ("Anna <a@example.com>",)}, "plain mail address"),
        ({"to": ("ünal@example.com",)}, "plain mail address"),
        ({"sender": "monitor"}, "plain mail address"),
        ({"sender": ""}, "plain mail address"),
        ({"host": "mail\r\nexample"}, "host"),
        ({"port": 0}, "port"),
        ({"security": "ssl"}, "starttls"),
        ({"username": "monitor"}, "together"),
        (
            {"username": "monitor", "password": SecretStr(PASSWORD), "security": "none", "host": "mail.example.com"},
            "never travels in clear",
        ),
        ({"password": PASSWORD}, "password"),
    ],
)
def test_bad_configuration_is_named_and_never_echoed(authority: Authority, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(25, authority, **changes)
    assert says in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_the_declaration() -> None:
    assert isinstance(email_notifier, Notifier)
    assert (email_notifier.name, email_notifier.config) == ("email", EmailConfig)
