"""The checks of what is not ours, against real servers on loopback: TCP, DNS, TLS, SFTP, and HTTP with assertions."""

import asyncio
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import asyncssh
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trustme
from pydantic import SecretStr, ValidationError

from checks.dns import dns_name
from checks.http_health import http_health
from checks.sftp import sftp
from checks.tcp import tcp
from checks.tls import tls
from checks.witness import witness
from monitor.domain import Finding, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, Service
from services.externals import sftp as partner
from tests.integration.test_http_probe import sends, serving
from tests.integration.test_http_probe_tls import NOW
from tests.integration.test_http_probe_tls import serving as serving_tls
from tests.support.looking import look, looking_at
from tests.support.monitoring import black_hole, free_port

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def observe(check: AnyCheck, **config: Any) -> Observed:
    async with looking_at(Service("partner")) as ctx:
        return await look(check, ctx, **config)


def only(observed: Observed) -> Finding:
    (finding,) = observed.findings
    assert all(text.isprintable() for pair in (*finding.facts, ("", finding.summary)) for text in pair)
    return finding


def told(observed: Observed) -> tuple[str, str]:
    finding = only(observed)
    return finding.kind.name, dict(finding.facts)["reason"]


@asynccontextmanager
async def talking(talk: Talk, **options: Any) -> AsyncIterator[str]:
    """A TCP server; the value is its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, **options) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


# --- TCP -------------------------------------------------------------------------------------------------------------


async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    assert await reader.readline() == b"PING\r\n"
    for piece in (b"+PO", b"NG\r\n"):
        writer.write(piece)
        await writer.drain()
    await reader.read()


async def hush(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"-ERR go \x1b[2J away\r\n")
    await writer.drain()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 4096)
        await writer.drain()


async def test_a_port_that_says_what_is_expected() -> None:
    async with talking(pong) as address:
        assert (await observe(tcp, address=address, send="PING\r\n", expect=r"^\+PONG")).findings == ()
    async with talking(hush) as address:
        assert (await observe(tcp, address=address)).findings == ()
        port = int(address.rpartition(":")[2])
        async with looking_at(Service("cache", url=f"http://127.0.0.1:{port}")) as ctx:
            assert (await look(tcp, ctx)).findings == ()


@pytest.mark.parametrize(("talk", "reason"), [(hush, "no_answer"), (rude, "unexpected"), (endless, "unexpected")])
async def test_a_port_that_says_something_else(talk: Talk, reason: str) -> None:
    async with talking(talk) as address:
        began = time.monotonic()
        assert told(await observe(tcp, address=address, expect="^220", deadline=0.5)) == ("PortDown", reason)
        assert time.monotonic() - began < 2


async def test_a_port_where_nothing_listens() -> None:
    assert told(await observe(tcp, address=f"127.0.0.1:{free_port()}")) == ("PortDown", "refused")
    assert told(await observe(tcp, address="no-such-host.invalid:80")) == ("PortDown", "dns")


async def test_a_pattern_that_would_run_for_ever_is_our_own_trouble() -> None:
    async def aaa(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"a" * 3000 + b"b")
        await reader.read()

    async with talking(aaa) as address:
        with pytest.raises(CannotLook, match="takes too long on this answer"):
            await observe(tcp, address=address, expect=r"^(a|aa|aaa)+$")


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:0", "host:99999", "a b:1", "user@host:1", "http://x:1", "x:1/y"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValidationError, match="expected host:port"):
        tcp.config.model_validate({"address": address})


async def test_nothing_says_where() -> None:
    with pytest.raises(CannotLook, match="set address in the check, or the service's url"):
        await observe(tcp)


# --- DNS -------------------------------------------------------------------------------------------------------------


class NameServer(asyncio.DatagramProtocol):
    """A small name server over UDP; what it answers is a function of the question."""

    def __init__(self, answer: Callable[[dns.message.Message], dns.message.Message | bytes | None]) -> None:
        self._answer = answer
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        reply = self._answer(dns.message.from_wire(data))
        if reply is not None:
            self._transport.sendto(reply if isinstance(reply, bytes) else reply.to_wire(), address)


@asynccontextmanager
async def naming(answer: Callable[[dns.message.Message], dns.message.Message | bytes | None]) -> AsyncIterator[str]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: NameServer(answer), ("127.0.0.1", 0))
    try:
        yield f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()


def records(kind: str, *texts: str) -> Callable[[dns.message.Message], dns.message.Message]:
    def answer(question: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(question)
        if texts:
            reply.answer.append(dns.rrset.from_text(question.question[0].name, 300, "IN", kind, *texts))
        return reply

    return answer


def failing(code: dns.rcode.Rcode) -> Callable[[dns.message.Message], dns.message.Message]:
    def answer(question: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(question)
        reply.set_rcode(code)
        return reply

    return answer


async def test_a_name_that_resolves_as_expected() -> None:
    async with naming(records("A", "192.0.2.1", "192.0.2.2")) as server:
        observed = await observe(dns_name, name="shop.example", server=server, expect=["192.0.2.2"])
        assert observed.findings == ()
        assert {sample.metric.name: sample.value for sample in observed.samples if "duration" not in sample.metric.name} == {
            "monitor_dns_up": 1,
            "monitor_dns_answers": 2,
            "monitor_dns_ttl_seconds": 300,
        }
    async with naming(records("MX", "10 mail.shop.example.")) as server:
        assert (await observe(dns_name, name="shop.example", type="MX", server=server, expect=["10 mail.shop.example."])).findings == ()


async def test_a_name_that_points_elsewhere() -> None:
    async with naming(records("A", "203.0.113.66")) as server:
        finding = only(await observe(dns_name, name="shop.example", server=server, expect=["192.0.2.1"]))
        assert (finding.kind.name, dict(finding.facts)["missing"]) == ("NameResolvesWrongly", "192.0.2.1")
        finding = only(
            await observe(dns_name, name="shop.example", server=server, expect=["203.0.113.66"], only_expected=True, slow_after=1e-9)
        )
        assert finding.kind.name == "NameSlow"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failing(dns.rcode.NXDOMAIN), "nxdomain"),
        (failing(dns.rcode.SERVFAIL), "servfail"),
        (failing(dns.rcode.REFUSED), "refused"),
        (records("A"), "no_answer"),
        (lambda _: None, "timeout"),
    ],
)
async def test_a_name_that_does_not_resolve(answer: Callable[[dns.message.Message], dns.message.Message | None], reason: str) -> None:
    async with naming(answer) as server:
        began = time.monotonic()
        assert told(await observe(dns_name, name="shop.example", server=server, deadline=0.6)) == ("NameNotResolved", reason)
        assert time.monotonic() - began < 2


async def test_a_name_server_that_answers_nonsense() -> None:
    async with naming(lambda _: os.urandom(40)) as server:
        assert told(await observe(dns_name, name="shop.example", server=server, deadline=0.6))[0] == "NameNotResolved"


@pytest.mark.parametrize("server", ["ns.example", "1.2.3.4:x", "", "[::1"])
def test_name_servers_that_are_none(server: str) -> None:
    with pytest.raises(ValidationError, match="expected the address of a name server"):
        dns_name.config.model_validate({"name": "x", "server": server})


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.parametrize(("days", "severity"), [(90, "none"), (15, "P3"), (3, "P2")])
async def test_a_certificate_that_comes_to_its_end(authority: trustme.CA, ca_file: str, days: int, severity: str) -> None:
    async with serving_tls(authority.issue_cert("localhost", not_after=NOW + timedelta(days=days))) as port:
        observed = await observe(tls, address=f"localhost:{port}", ca_file=ca_file)
    left = next(sample.value for sample in observed.samples if sample.metric.name == "monitor_tls_expiry_seconds")
    assert left / 86_400 == pytest.approx(days, abs=0.1)
    if severity == "none":
        assert observed.findings == ()
    else:
        finding = only(observed)
        assert finding.kind.name == "TlsExpiring"
        assert (finding.severity or finding.kind.severity) is Severity[severity]


@pytest.mark.parametrize(
    ("names", "days", "trusted", "reason"),
    [
        (("localhost",), -1, True, "tls_expired"),
        (("other.example",), 10, True, "tls_wrong_host"),
        (("localhost",), 10, False, "tls_untrusted"),
    ],
)
async def test_certificates_that_no_client_takes(
    authority: trustme.CA, ca_file: str, names: tuple[str, ...], days: int, trusted: bool, reason: str
) -> None:
    issuer = authority if trusted else trustme.CA()
    leaf = issuer.issue_cert(*names, not_before=NOW - timedelta(days=30), not_after=NOW + timedelta(days=days))
    async with serving_tls(leaf) as port:
        observed = await observe(tls, address=f"localhost:{port}", ca_file=ca_file)
    finding = only(observed)
    assert (finding.kind.name, dict(finding.facts)["reason"]) == ("TlsRefused", reason)
    assert names[0] in dict(finding.facts)["for"]  # it was looked at all the same
    assert "valid until" in dict(finding.facts)


@contextmanager
def slow_then_silent(certificate: trustme.LeafCert, *, slow_s: float) -> Iterator[int]:
    """A server that takes its time for the first handshake and never answers the second."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as first, suppress(OSError):
                over.wait(slow_s)
                context.wrap_socket(first, server_side=True).close()
            with listener.accept()[0]:
                over.wait(30)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join(5)


async def test_both_handshakes_share_one_deadline(ca_file: str) -> None:
    """As shipped: the second one, with a deadline of its own, took the check past its timeout, which is BLIND instead of TlsRefused."""
    with slow_then_silent(trustme.CA().issue_cert("localhost"), slow_s=1.2) as port:
        began = time.monotonic()
        observed = await observe(tls, address=f"localhost:{port}", ca_file=ca_file, deadline=2)
    assert told(observed) == ("TlsRefused", "tls_untrusted")
    assert time.monotonic() - began < 3  # not 1.2 + 2


async def test_where_there_is_no_tls(ca_file: str) -> None:
    assert told(await observe(tls, address=f"127.0.0.1:{free_port()}")) == ("TlsFailed", "refused")
    async with talking(rude) as address:
        assert told(await observe(tls, address=address)) == ("TlsFailed", "tls")
    async with talking(hush) as address:
        assert told(await observe(tls, address=address, deadline=0.5)) == ("TlsFailed", "timeout")
    with pytest.raises(CannotLook, match=r"the CA bundle /none\.pem cannot be read"):
        await observe(tls, address="127.0.0.1:1", ca_file="/none.pem")


@contextmanager
def yesterday(certificate: trustme.LeafCert) -> Iterator[int]:
    """A server that knows TLS 1.1 and nothing newer, on a thread of its own: so it says why it refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    certificate.configure_cert(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                client = listener.accept()[0]
                with client, suppress(ssl.SSLError):
                    context.wrap_socket(client, server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(5)


async def test_a_server_of_yesterday(authority: trustme.CA, ca_file: str) -> None:
    with yesterday(authority.issue_cert("localhost")) as port:
        assert told(await observe(tls, address=f"localhost:{port}", ca_file=ca_file)) == ("TlsFailed", "tls_protocol")


# --- SFTP ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def sftp_server(folder: Path) -> AsyncIterator[dict[str, object]]:
    """The platform's SFTP stand-in; the value is a configuration that fits it."""
    server = await partner.serve("127.0.0.1", 0, user="partner", password="sesame", state_dir=folder)
    try:
        line = (folder / "known_hosts").read_text().split(maxsplit=1)[1]
        yield {
            "address": f"127.0.0.1:{server.get_port()}",
            "username": "partner",
            "password": SecretStr("sesame"),
            "host_key": line.strip(),
        }
    finally:
        server.close()
        await server.wait_closed()


async def test_a_server_that_is_known_and_its_files(tmp_path: Path) -> None:
    async with sftp_server(tmp_path) as config:
        observed = await observe(sftp, **config)
        assert observed.findings == ()
        fingerprint = asyncssh.import_public_key(str(config["host_key"])).get_fingerprint()
        assert (await observe(sftp, **{**config, "host_key": fingerprint})).findings == ()
        finding = only(await observe(sftp, **config, pattern="orders-*.csv", max_age="1d"))
        assert (finding.kind.name, finding.summary.split(" at ")[0]) == ("SftpFilesStale", "there is no orders-*.csv")


async def test_a_server_that_is_not_the_one(tmp_path: Path) -> None:
    async with sftp_server(tmp_path) as config:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        finding = only(await observe(sftp, **{**config, "host_key": other.strip()}))
        assert finding.kind.name == "SftpHostKeyChanged"
        assert dict(finding.facts)["shown"].startswith("SHA256:")


async def test_logins_and_folders_that_are_refused(tmp_path: Path) -> None:
    async with sftp_server(tmp_path) as config:
        observed = await observe(sftp, **{**config, "password": SecretStr("open-sesame")})
        assert only(observed).kind.name == "SftpLoginRefused"
        assert "open-sesame" not in str(observed)
        assert only(await observe(sftp, **config, folder="/no/such/folder")).kind.name == "SftpListingRefused"


async def test_where_there_is_no_sftp(tmp_path: Path) -> None:
    config = {"username": "x", "password": SecretStr("y"), "host_key": "SHA256:" + "a" * 43}
    assert told(await observe(sftp, address=f"127.0.0.1:{free_port()}", **config)) == ("SftpDown", "refused")
    for talk, reasons in ((hush, {"timeout"}), (rude, {"no_ssh", "reset"}), (endless, {"no_ssh"})):
        async with talking(talk) as address:
            kind, reason = told(await observe(sftp, address=address, **config, deadline=1))
            assert (kind, reason in reasons) == ("SftpDown", True), reason
    with pytest.raises(CannotLook, match="the private key /no/key cannot be read"):
        await observe(sftp, address="127.0.0.1:1", username="x", private_key="/no/key", host_key=config["host_key"])


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"host_key": "ssh-ed25519 AAAA"}, "SHA256:"),
        ({"host_key": "SHA256:x"}, "write either password or private_key"),
        ({"host_key": "SHA256:x", "password": SecretStr("a"), "private_key": "b"}, "write either password or private_key"),
    ],
)
def test_sftp_configurations_that_cannot_be(keys: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        sftp.config.model_validate({"address": "a:22", "username": "u", **keys})


# --- HTTP with assertions --------------------------------------------------------------------------------------------

BODY = b'{"status": "ok", "queue": {"depth": 12, "oldest_s": null}, "jobs": [{"state": "done"}, {"state": "stuck\\u001b"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nX-Version: 2.4.1\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"expect_json_path": {"$.queue.depth": "12", "$.jobs[0].state": "done", "$.queue": "*"}}, ""),
        ({"expect_json_path": {"$.queue.depth": "0"}}, "its $.queue.depth is '12' instead of '0'"),
        ({"expect_json_path": {"$.jobs[*].state": "done"}}, "its $.jobs[*].state is 'stuck' instead of 'done'"),
        ({"expect_json_path": {"$.jobs[?@.state=='failed']": "*"}}, "its body has nothing at $.jobs[?@.state=='failed']"),
        ({"expect_regex": [r'"status": "(ok|fine)"'], "refuse_regex": ["(?i)error"]}, ""),
        ({"expect_regex": ["fine"]}, "its body does not match 'fine'"),
        ({"refuse_regex": ["st[a-z]ck"]}, "its body matches 'st[a-z]ck': 'stuck'"),
        ({"expect_headers": {"X-Version": r"^2\."}}, ""),
        ({"expect_headers": {"x-version": r"^3\."}}, "its header x-version is '2.4.1', which does not match '^3\\\\.'"),
        ({"expect_headers": {"X-Other": "."}}, "it has no header X-Other"),
    ],
)
async def test_assertions_name_what_is_wrong(config: dict[str, object], wrong: str) -> None:
    async with serving(sends(ANSWER)) as url, looking_at(Service("partner", url=url.rstrip("/"))) as ctx:
        observed = await look(http_health, ctx, path="/", **config)
    assert (dict(only(observed).facts)["reason"] if wrong else observed.findings) == (wrong or ())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"expect_regex": ["("]}, "not a regular expression"),
        ({"expect_json_path": {"$.a[": "x"}}, "not a JSON path"),
        ({"body": "x"}, "only a POST request sends a body"),
        ({"method": "HEAD", "expect_regex": ["x"]}, "a HEAD request has no body"),
    ],
)
def test_assertions_that_cannot_be(config: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        http_health.config.model_validate(config)


async def test_one_answer_is_enough_for_the_witness_and_a_refusal_is_one() -> None:
    with black_hole() as silent:
        observed = await observe(witness, addresses=[silent, f"127.0.0.1:{free_port()}"], deadline=0.2)
    assert not observed.findings
    assert [sample.value for sample in observed.samples] == [0.5]


async def test_the_own_network_is_down_when_nothing_answers_at_all() -> None:
    with black_hole() as gateway, black_hole() as partner_address:
        observed = await observe(witness, addresses=[gateway, partner_address], deadline=0.2)
    finding = only(observed)
    assert (finding.kind.name, finding.kind.severity, finding.kind.fells) == ("OwnNetworkDown", Severity.P2, True)
    assert dict(finding.facts).keys() == {gateway, partner_address}
    assert all("within 0.2 s" in why for why in dict(finding.facts).values())
    assert [sample.value for sample in observed.samples] == [0.0]
