"""The HTTP probe and certificates: always verified, told apart by reason, and their remaining days read."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from monitor.clock import SystemClock
from monitor.probes.http import CurlProbe
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpReason, HttpRequest

NOW = datetime.now(UTC)  # noqa: TID251 - certificates are read against the real clock


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
async def probe() -> AsyncIterator[CurlProbe]:
    probe = CurlProbe(SystemClock())
    yield probe
    await probe.close()


class MovableClock(SystemClock):
    """The machine's clocks, ahead by as much as is told."""

    ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def showing(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """What a server speaks TLS with; ``configure_cert`` gives it another certificate while it serves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@asynccontextmanager
async def serving(certificate: trustme.LeafCert | ssl.SSLContext | None) -> AsyncIterator[int]:
    """An HTTPS server with that certificate; without one, a server that never begins the handshake."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if certificate is None:
            await reader.read()
        else:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    context = showing(certificate) if isinstance(certificate, trustme.LeafCert) else certificate
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for writer in writers:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_good_certificate_tells_its_days_and_the_handshake_its_time(probe: CurlProbe, authority: trustme.CA, ca_file: str) -> None:
    leaf = authority.issue_cert("localhost", not_after=NOW + timedelta(days=10))
    async with serving(leaf) as port:
        answer = await probe.fetch(HttpRequest(f"https://localhost:{port}/", ca_file=ca_file))
    assert isinstance(answer, HttpAnswer), answer
    assert answer.body == b"ok"
    assert answer.tls_days_left == pytest.approx(10, abs=0.1)
    assert answer.phases.tls_s > 0


async def days_left(probe: CurlProbe, port: int, ca_file: str) -> float:
    answer = await probe.fetch(HttpRequest(f"https://localhost:{port}/", ca_file=ca_file))
    assert isinstance(answer, HttpAnswer), answer
    assert answer.tls_days_left is not None
    return answer.tls_days_left


async def test_a_certificate_that_ends_soon_counts_as_renewed_with_the_next_probe(
    probe: CurlProbe, authority: trustme.CA, ca_file: str
) -> None:
    old, new = (authority.issue_cert("localhost", not_after=NOW + timedelta(days=days)) for days in (29, 90))
    context = showing(old)
    async with serving(context) as port:
        assert await days_left(probe, port, ca_file) == pytest.approx(29, abs=0.1)
        new.configure_cert(context)
        assert await days_left(probe, port, ca_file) == pytest.approx(90, abs=0.1)


async def test_a_chain_that_lasts_is_read_again_after_five_minutes_or_a_failure(authority: trustme.CA, ca_file: str) -> None:
    first, second, third = (authority.issue_cert("localhost", not_after=NOW + timedelta(days=days)) for days in (400, 90, 60))
    clock, context = MovableClock(), showing(first)
    probe = CurlProbe(clock)
    try:
        async with serving(context) as port:
            assert await days_left(probe, port, ca_file) == pytest.approx(400, abs=0.1)
            second.configure_cert(context)
            clock.ahead_s = 290
            assert await days_left(probe, port, ca_file) == pytest.approx(400, abs=0.1)
            clock.ahead_s = 301
            assert await days_left(probe, port, ca_file) == pytest.approx(90, abs=0.1)
            trustme.CA().issue_cert("localhost").configure_cert(context)
            outcome = await probe.fetch(HttpRequest(f"https://localhost:{port}/", ca_file=ca_file))
            assert isinstance(outcome, HttpFailure), "verified each time, whatever is remembered"
            assert outcome.reason is HttpReason.TLS_UNTRUSTED
            third.configure_cert(context)
            assert await days_left(probe, port, ca_file) == pytest.approx(60, abs=0.1)
    finally:
        await probe.close()


async def test_every_target_is_verified_against_its_own_bundle(
    probe: CurlProbe, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    other, other_file = trustme.CA(), str(tmp_path / "other.pem")
    other.cert_pem.write_to_path(other_file)
    async with serving(authority.issue_cert("localhost")) as first, serving(other.issue_cert("localhost")) as second:
        asked = [(port, bundle) for _ in range(5) for port in (first, second) for bundle in (ca_file, other_file)]
        outcomes = await asyncio.gather(*(probe.fetch(HttpRequest(f"https://localhost:{port}/", ca_file=file)) for port, file in asked))
    for (port, file), outcome in zip(asked, outcomes, strict=True):
        if (port == first) == (file == ca_file):
            assert isinstance(outcome, HttpAnswer), outcome
        else:
            assert isinstance(outcome, HttpFailure)
            assert outcome.reason is HttpReason.TLS_UNTRUSTED


async def test_a_certificate_for_an_address_is_accepted(probe: CurlProbe, authority: trustme.CA, ca_file: str) -> None:
    async with serving(authority.issue_cert("127.0.0.1")) as port:
        assert isinstance(await probe.fetch(HttpRequest(f"https://127.0.0.1:{port}/", ca_file=ca_file)), HttpAnswer)


@pytest.mark.parametrize(
    ("names", "days", "trusted", "reason"),
    [
        pytest.param(("localhost",), -1, True, HttpReason.TLS_EXPIRED, id="expired"),
        pytest.param(("other.example",), 10, True, HttpReason.TLS_WRONG_HOST, id="wrong host"),
        pytest.param(("localhost",), 10, False, HttpReason.TLS_UNTRUSTED, id="untrusted"),
    ],
)
async def test_bad_certificates_are_told_apart(
    probe: CurlProbe, authority: trustme.CA, ca_file: str, names: tuple[str, ...], days: int, trusted: bool, reason: HttpReason
) -> None:
    issuer = authority if trusted else trustme.CA()
    leaf = issuer.issue_cert(*names, not_before=NOW - timedelta(days=30), not_after=NOW + timedelta(days=days))
    async with serving(leaf) as port:
        outcome = await probe.fetch(HttpRequest(f"https://localhost:{port}/", ca_file=ca_file))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is reason, outcome


async def test_without_a_ca_file_the_machines_own_bundle_decides(probe: CurlProbe, authority: trustme.CA) -> None:
    async with serving(authority.issue_cert("localhost")) as port:
        outcome = await probe.fetch(HttpRequest(f"https://localhost:{port}/"))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.TLS_UNTRUSTED


async def test_a_self_signed_certificate_is_untrusted(probe: CurlProbe, ca_file: str, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), NOW - timedelta(days=1), NOW + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "self.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(pem))
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        outcome = await probe.fetch(HttpRequest(f"https://localhost:{server.sockets[0].getsockname()[1]}/", ca_file=ca_file))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.TLS_UNTRUSTED


async def test_a_handshake_that_never_begins_ends_at_the_deadline(probe: CurlProbe) -> None:
    async with serving(None) as port:
        outcome = await probe.fetch(HttpRequest(f"https://127.0.0.1:{port}/", deadline_s=0.4))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.TIMEOUT
    assert outcome.phases.tls_s == pytest.approx(0.4, abs=0.15)


async def test_plain_http_behind_an_https_address_is_a_tls_failure(probe: CurlProbe) -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(speak_http, "127.0.0.1", 0) as server:
        outcome = await probe.fetch(HttpRequest(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    assert isinstance(outcome, HttpFailure)
    assert outcome.reason is HttpReason.TLS
