"""``smtp_server`` against real SMTP servers and the platform's own views: reachable, protected, logged in, and no word of a password."""

import asyncio
import json
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from psycopg.types.json import Jsonb
from pydantic import SecretStr, ValidationError

from checks.smtp_server import Config, smtp_server
from checks.smtp_session import Door
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from services.externals import smtp
from tests.notify_parts import unused_port
from tests.support.looking import after, look, looking_at
from tests.support.platform_tables import add_tenants, platform_database, run_sql

USER, PASSWORD = "reports@shop.example", "s3cret-of-the-shop"
NOW = datetime.now(UTC)  # noqa: TID251 - certificates are judged by the machine's clock


class SetClock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass(slots=True)
class Relay:
    """A mail server: how it misbehaves and what it saw."""

    port: int = 0
    hangs: bool = False
    echoes: bool = False
    """It repeats what it was told, in clear and coded."""
    temporary: bool = False
    password: str = PASSWORD
    logins: list[str] = field(default_factory=list)
    mails: int = 0

    async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]) -> list[str]:
        session.host_name = hostname
        if self.hangs:
            await asyncio.Event().wait()
        return responses

    async def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        self.mails += 1
        return "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append(data.login.decode())
        right = (data.login.decode(), data.password.decode()) == (USER, self.password)
        message = f"535 5.7.8 {data.password.decode()} is wrong" if self.echoes else None
        message = "454 4.7.0 try later" if self.temporary else message
        return AuthResult(success=right, handled=False, message=None if right else message)


@dataclass(frozen=True, slots=True)
class Authority:
    ca_file: str
    ca: trustme.CA

    def server_context(self, *names: str, lasts: timedelta = timedelta(days=365)) -> ssl.SSLContext:
        issued = self.ca.issue_cert(*(names or ("127.0.0.1",)), not_before=NOW - timedelta(days=400), not_after=NOW + lasts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return Authority(str(path), ca)


@asynccontextmanager
async def serving(context: ssl.SSLContext | None, *, login: bool = False, **behaviour: Any) -> AsyncIterator[Relay]:
    relay, loop = Relay(**behaviour), asyncio.get_running_loop()
    connections: list[SMTP] = []

    def connect() -> SMTP:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns of a login that it does not see protected
            server = SMTP(
                relay,
                hostname="relay.test",
                loop=loop,
                tls_context=context,
                require_starttls=context is not None,
                auth_require_tls=context is not None,
                authenticator=relay.authenticate if login else None,
                auth_exclude_mechanism=() if login else ("LOGIN", "PLAIN"),
            )
        connections.append(server)
        return server

    listener = await loop.create_server(connect, "127.0.0.1", 0)
    relay.port = listener.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        listener.close()
        for server in connections:
            if server.transport is not None:
                server.transport.abort()
            if server._handler_coroutine is not None:
                server._handler_coroutine.cancel()


@asynccontextmanager
async def answering(text: bytes) -> AsyncIterator[int]:
    """A listener that says ``text`` and nothing more; its port."""
    release = asyncio.Event()

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()
        await release.wait()
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        release.set()


@pytest.fixture
async def ctx() -> AsyncIterator[CheckContext]:
    """Of a service without a database."""
    async with looking_at(Service("analytics"), clock=SetClock()) as found:
        yield found


@pytest.fixture
async def platform(database: str) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    async with looking_at(Service("analytics", dsn=SecretStr(dsn)), clock=SetClock()) as found:
        yield found


def add_tenant(dsn: str, tenant: str, **email_config: object) -> None:
    add_tenants(dsn, tenant)
    run_sql(dsn, "UPDATE tenant_config SET email_config = %(config)s WHERE id = %(tenant)s", config=Jsonb(email_config), tenant=tenant)


def shop(port: int, *, password: str = PASSWORD, starttls: bool = True) -> dict[str, object]:
    sender = {"server": "127.0.0.1", "port": port, "from": "reports@shop.example", "starttls": starttls}
    return {**sender, "username": USER, "password": password}


def server(port: int, **keys: object) -> dict[str, object]:
    return {"host": "127.0.0.1", "port": port, **keys}


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def measured(observed: Observed, metric: str) -> dict[str, float]:
    return {"".join(sample.labels): sample.value for sample in observed.samples if sample.metric.name == f"monitor_smtp_{metric}"}


def said(observed: Observed) -> str:
    """Everything that leaves the check."""
    return f"{observed!r} {json.dumps(observed.keep)}"


# --- the tenants' servers --------------------------------------------------------------------------------------------


async def test_a_tenants_server_is_proven_up_to_the_login(database: str, platform: CheckContext, authority: Authority) -> None:
    run_sql(database, "GRANT SELECT ON mail_logins TO monitor_ro")
    async with serving(authority.server_context(), login=True) as relay:
        add_tenant(database, "shop", **shop(relay.port))
        add_tenant(database, "sends nothing")
        observed = await look(smtp_server, platform, ca_file=authority.ca_file)
        assert observed.findings == ()
        name = f"127.0.0.1:{relay.port}"
        assert measured(observed, "up") == {name: 1}
        assert measured(observed, "logins") == {"good": 1, "refused": 0, "untried": 0}
        assert measured(observed, "tls_expiry_seconds")[name] == pytest.approx(365 * 86_400, abs=60)
        assert (relay.logins, relay.mails) == ([USER], 0)
        assert PASSWORD not in said(observed)


async def test_without_the_grant_no_password_is_read_and_everything_else_is_proven(
    database: str, platform: CheckContext, authority: Authority
) -> None:
    async with serving(authority.server_context(), login=True) as relay:
        add_tenant(database, "shop", **shop(relay.port))
        observed = await look(smtp_server, platform, ca_file=authority.ca_file)
        assert observed.findings == ()
        assert measured(observed, "logins") == {"good": 0, "refused": 0, "untried": 1}
        assert relay.logins == []
    assert platform.pg is not None
    for closed in ("SELECT email_config FROM public.tenant_config", "SELECT username FROM public.mail_logins"):
        with pytest.raises(CannotLook, match="permission denied"):
            await platform.pg.fetch(closed)
    columns = await platform.pg.fetch("SELECT * FROM public.mail_servers")
    assert PASSWORD not in str(columns)
    assert USER not in str(columns)


async def test_a_wrong_password_is_found_without_a_word_of_it(database: str, platform: CheckContext, authority: Authority) -> None:
    run_sql(database, "GRANT SELECT ON mail_logins TO monitor_ro")
    async with serving(authority.server_context(), login=True, echoes=True, password="another") as relay:
        add_tenant(database, "shop", **shop(relay.port))
        observed = await look(smtp_server, platform, ca_file=authority.ca_file)
        (finding,) = observed.findings
        assert (finding.kind.name, finding.kind.incident) == ("MailLoginFailed", "INC-004")
        assert dict(finding.labels) == {"server": f"127.0.0.1:{relay.port}", "tenant": "shop"}
        assert "it answered 535 5.7.8 *** is wrong" in finding.summary
        assert measured(observed, "up") == {f"127.0.0.1:{relay.port}": 1}
        assert measured(observed, "logins") == {"good": 0, "refused": 1, "untried": 0}
        assert PASSWORD not in said(observed)


async def test_a_login_is_tried_once_an_hour_and_known_meanwhile(database: str, platform: CheckContext, authority: Authority) -> None:
    run_sql(database, "GRANT SELECT ON mail_logins TO monitor_ro")
    assert isinstance(platform.clock, SetClock)
    async with serving(authority.server_context(), login=True, password="another") as relay:
        add_tenant(database, "shop", **shop(relay.port))
        observed = await look(smtp_server, platform, ca_file=authority.ca_file)
        tried = len(relay.logins)
        assert tried > 0
        relay.password = PASSWORD
        for _ in range(3):
            platform.clock.at += timedelta(minutes=15)
            observed = await look(smtp_server, after(platform, observed), ca_file=authority.ca_file)
            assert kinds(observed) == ["MailLoginFailed"]
            assert measured(observed, "up") == {f"127.0.0.1:{relay.port}": 1}
        assert len(relay.logins) == tried
        platform.clock.at += timedelta(minutes=15)
        observed = await look(smtp_server, after(platform, observed), ca_file=authority.ca_file)
        assert observed.findings == ()


async def test_what_is_not_the_servers_last_word_is_asked_again(database: str, platform: CheckContext, authority: Authority) -> None:
    run_sql(database, "GRANT SELECT ON mail_logins TO monitor_ro")
    async with serving(authority.server_context(), login=True, temporary=True, password="another") as relay:
        add_tenant(database, "shop", **shop(relay.port))
        observed = await look(smtp_server, platform, ca_file=authority.ca_file)
        assert kinds(observed) == ["MailLoginFailed"]
        relay.password = PASSWORD
        assert (await look(smtp_server, after(platform, observed), ca_file=authority.ca_file)).findings == ()


async def test_a_broken_mail_configuration_is_found(database: str, platform: CheckContext) -> None:
    add_tenant(database, "half", port=25)
    add_tenant(database, "wild", server="mail", port="twenty-five")
    add_tenant(database, "high", server="mail", port=70_000)
    add_tenant(database, "off", server="127.0.0.1", port=unused_port())
    run_sql(database, "UPDATE tenant_config SET is_active = false WHERE id = 'off'")
    observed = await look(smtp_server, platform)
    assert [dict(finding.labels)["tenant"] for finding in observed.findings] == ["half", "high", "wild"]
    assert set(kinds(observed)) == {"MailServerMisconfigured"}
    assert "email_config names no server" in observed.findings[0].summary
    assert "the port of email_config is no port" in observed.findings[1].summary


async def test_hostile_names_of_servers(database: str, platform: CheckContext) -> None:
    for number, host in enumerate(("\x1b[2J\r\nEHLO x", "a" * 300, "..", "\u202eexample", "127.0.0.1\nQUIT")):
        add_tenant(database, f"t{number}", server=host, port=unused_port(), **{"from": "a@b"})
    observed = await look(smtp_server, platform, deadline="2s")
    assert sorted(kinds(observed)) == ["MailServerDown"] * 2 + ["MailServerMisconfigured"] * 3
    texts = [text for finding in observed.findings for pair in (*finding.labels, *finding.facts, ("", finding.summary)) for text in pair]
    assert all(text.isprintable() and len(text) < 500 for text in texts)


async def test_tenants_of_one_server_share_a_visit_and_a_finding(database: str, platform: CheckContext) -> None:
    port = unused_port()
    for number in range(10):
        add_tenant(database, f"t\x1b\n{number}", server="127.0.0.1", port=port, **{"from": "a@b"})
    observed = await look(smtp_server, platform)
    (finding,) = observed.findings
    assert finding.kind.name == "MailServerDown"
    assert f"connection refused: nothing listens on port {port}" in finding.summary
    assert dict(finding.facts)["used by"].startswith("10 tenants: t 0, t 1")
    assert all(text.isprintable() for pair in finding.facts for text in pair)
    assert measured(observed, "up") == {f"127.0.0.1:{port}": 0}


async def test_the_platforms_own_mail_server_goes_and_comes(database: str, platform: CheckContext) -> None:
    mail = await smtp.serve("127.0.0.1", 0, smtp.Mailbox())
    port = mail.port
    add_tenant(database, "demo", server="127.0.0.1", port=port, **{"from": "reports@shop.example"})
    try:
        assert (await look(smtp_server, platform)).findings == ()
        await mail.switch("down")
        assert kinds(await look(smtp_server, platform)) == ["MailServerDown"]
        await mail.switch("ok")
        assert (await look(smtp_server, platform)).findings == ()
        assert mail.mailbox.newest() == []
    finally:
        mail.close()


# --- servers of the configuration ------------------------------------------------------------------------------------


async def found(ctx: CheckContext, *servers: dict[str, object], **config: object) -> Observed:
    return await look(smtp_server, ctx, tenants=False, servers=list(servers), **config)


@pytest.mark.parametrize("login", [True, False])
async def test_a_configured_server(ctx: CheckContext, authority: Authority, login: bool) -> None:
    async with serving(authority.server_context(), login=True) as relay:
        credentials = {"username": USER, "password": SecretStr(PASSWORD)} if login else {}
        observed = await found(ctx, server(relay.port, **credentials), ca_file=authority.ca_file)
        assert observed.findings == ()
        assert relay.logins == ([USER] if login else [])
        assert PASSWORD not in said(observed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"554 go away\r\n", "it answered 554 go away"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Malformed"),
        (b"220 hi" + b"x" * 100_000, "esponse"),
        (b"", "waiting for its greeting"),
        (b"220 ok\r\n", "waiting for its greeting"),
    ],
)
async def test_what_does_not_greet_as_a_mail_server_is_down(ctx: CheckContext, text: bytes, says: str) -> None:
    async with answering(text) as port:
        observed = await found(ctx, server(port), deadline="300ms")
    (finding,) = observed.findings
    assert finding.kind.name == "MailServerDown"
    assert says in finding.summary
    assert len(finding.summary) < 400


async def test_a_name_that_does_not_exist(ctx: CheckContext) -> None:
    (finding,) = (await found(ctx, {"host": "no-such-host.invalid"}, deadline="4s")).findings
    assert finding.kind.name == "MailServerDown"
    assert dict(finding.labels) == {"server": "no-such-host.invalid:587"}
    assert "its name cannot be resolved" in finding.summary or "no answer" in finding.summary


BadTls = Callable[[Authority], ssl.SSLContext | None]


@pytest.mark.parametrize(
    ("context", "says"),
    [
        (lambda authority: authority.server_context(lasts=-timedelta(days=1)), "its certificate is expired"),
        (lambda authority: authority.server_context("elsewhere.example"), "its certificate is for another host"),
        (lambda _: Authority("", trustme.CA()).server_context(), "its certificate is not trusted"),
        (lambda _: None, "STARTTLS"),
    ],
    ids=["expired", "wrong-host", "untrusted", "not-offered"],
)
async def test_bad_protection_is_named(ctx: CheckContext, authority: Authority, context: BadTls, says: str) -> None:
    async with serving(context(authority)) as relay:
        (finding,) = (await found(ctx, server(relay.port), ca_file=authority.ca_file)).findings
    assert (finding.kind.name, finding.kind.incident) == ("MailServerTlsFailed", "INC-004")
    assert says in finding.summary


async def test_implicit_tls_is_named_too(ctx: CheckContext, authority: Authority) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: SMTP(Relay(), loop=loop), "127.0.0.1", 0, ssl=authority.server_context())
    port = listener.sockets[0].getsockname()[1]
    assert (await found(ctx, server(port, security="tls"), ca_file=authority.ca_file)).findings == ()
    (finding,) = (await found(ctx, server(port, security="tls"))).findings
    assert finding.kind.name == "MailServerTlsFailed"
    listener.close()


async def test_a_certificate_that_ends_soon_is_found(ctx: CheckContext, authority: Authority) -> None:
    async with serving(authority.server_context(lasts=timedelta(days=5))) as relay:
        (finding,) = (await found(ctx, server(relay.port), ca_file=authority.ca_file)).findings
        assert (finding.kind.name, finding.value) == ("MailCertificateExpiring", pytest.approx(5, abs=0.1))
        assert (await found(ctx, server(relay.port), ca_file=authority.ca_file, tls_warn_days=4)).findings == ()


async def test_all_are_visited_at_once_within_one_deadline(ctx: CheckContext, authority: Authority) -> None:
    async with AsyncExitStack() as stack:
        context = authority.server_context()
        hanging = [await stack.enter_async_context(serving(context, hangs=True)) for _ in range(12)]
        fine = await stack.enter_async_context(serving(context))
        began = time.monotonic()
        observed = await found(ctx, *(server(relay.port) for relay in (*hanging, fine)), ca_file=authority.ca_file, deadline="500ms", top=5)
        assert time.monotonic() - began < 1.5
        assert len(observed.findings) == 6
        assert dict(observed.findings[-1].labels) == {"server": "(other)"}
        assert observed.findings[-1].summary == "7 more findings of this kind (analytics)"
        assert len(measured(observed, "up")) == 6
        assert measured(observed, "servers") == {"": 13}


async def test_a_server_without_logins_is_told_of_the_login(ctx: CheckContext, authority: Authority) -> None:
    async with serving(authority.server_context()) as relay:  # it offers no AUTH
        (finding,) = (await found(ctx, server(relay.port, username=USER, password=SecretStr(PASSWORD)), ca_file=authority.ca_file)).findings
    assert finding.kind.name == "MailLoginFailed"
    assert "No suitable authentication method" in finding.summary
    assert dict(finding.facts)["look at"] == "username and password in the check's servers"


# --- blind -----------------------------------------------------------------------------------------------------------


async def test_blind_says_why(database: str, platform: CheckContext, ctx: CheckContext, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(CannotLook, match="the service analytics has no dsn"):
        await look(smtp_server, ctx)
    with pytest.raises(CannotLook, match="CA bundle"):
        await found(ctx, ca_file=str(tmp_path / "missing.pem"))
    async with serving(authority.server_context()) as one, serving(authority.server_context()) as other:
        with pytest.raises(CannotLook, match="only 1 of 2 mail servers were visited: raise max_servers"):
            await found(ctx, server(one.port), server(other.port), ca_file=authority.ca_file, max_servers=1)
    run_sql(database, "REVOKE SELECT ON mail_servers FROM monitor_ro")
    with pytest.raises(CannotLook, match=r"GRANT SELECT \(.*\) ON public\.mail_servers TO monitor_ro"):
        await look(smtp_server, platform)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"username": USER}, "together"),
        ({"username": USER, "password": SecretStr(PASSWORD), "security": "none", "host": "mail.example"}, "never travels in clear"),
        ({"password": PASSWORD, "username": USER}, "a secret is never written"),
        ({"host": "a b"}, "host"),
    ],
)
def test_a_server_is_configured_whole(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        Config.model_validate({"servers": [{"host": "127.0.0.1", **keys}]})
    assert PASSWORD not in str(caught.value)


def test_a_password_never_travels_in_clear() -> None:
    assert [Door("mail.example", 25, security).takes_passwords() for security in ("none", "starttls", "tls")] == [False, True, True]
    assert Door("127.0.0.1", 25, "none").takes_passwords()
