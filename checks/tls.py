"""How long is a certificate still good, and is it one at all: for the right host, from a trusted authority, over a TLS of today?"""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field

from checks.addresses import Address, Endpoint, endpoint_of
from checks.connecting import reason_of
from checks.words import lasted
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, LocalPath, PluginConfig, check, one_line

UP = Metric("monitor_tls_up", "1 when the handshake succeeded with a certificate that is trusted, 0 when not.")
LEFT = Metric("monitor_tls_expiry_seconds", "Time until the certificate expires; negative once it has.")
DURATION = Metric("monitor_tls_handshake_seconds", "How long connecting and the handshake took.")

EXPIRING = FindingKind("TlsExpiring", Severity.P3, None, "The certificate expires within warn_before; P2 within critical_before.")
REFUSED = FindingKind(
    "TlsRefused", Severity.P2, None, "The certificate is expired, for another host, or not trusted; the reason says which."
)
FAILED = FindingKind("TlsFailed", Severity.P2, "INC-001", "There is no TLS to be had at the address; the reason says why.")

DAY_S = 86_400.0


class Config(PluginConfig):
    """Keys of a ``tls`` check."""

    address: Address | None = Field(None, description='Where: "host:port"; that of the service\'s url where it is left out.')
    server_name: str | None = Field(
        None, max_length=253, description="The name that the certificate must be for; that of the address without it."
    )
    warn_before: Duration = Field(21 * DAY_S, ge=0, description="TlsExpiring so long before the certificate expires.")
    critical_before: Duration = Field(7 * DAY_S, ge=0, description="TlsExpiring is P2 so long before.")
    ca_file: LocalPath | None = Field(None, description="CA bundle to trust instead of the machine's.")
    deadline: Duration = Field(
        5.0, gt=0, le=60, description="For connection and handshake, a second one included that looks at what was refused."
    )


@dataclass(frozen=True, slots=True)
class Certificate:
    subject: str
    issuer: str
    names: tuple[str, ...]
    until: datetime


@check(
    "tls",
    config=Config,
    metrics=(UP, LEFT, DURATION),
    finds=(EXPIRING, REFUSED, FAILED),
    blind="The monitor's machine has no socket left, the CA bundle cannot be read, or nothing says where to connect.",
    why="A certificate ends at a second that was known for months, and takes every client with it.",
)
async def tls(ctx: CheckContext, cfg: Config) -> Observed:
    """Makes a TLS handshake as a client does, and reads the certificate; also one that is refused, to say for whom and until when it is."""
    where = endpoint_of(cfg.address, ctx.service)
    try:
        trust = ssl.create_default_context(cafile=cfg.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise CannotLook(f"the CA bundle {cfg.ca_file} cannot be read: {exc}") from exc
    began = ctx.clock.monotonic()
    try:
        certificate = await _handshake(where, cfg, trust, within_s=cfg.deadline)
    except (OSError, TimeoutError) as exc:
        took_s = ctx.clock.monotonic() - began
        reason, words = reason_of(exc, deadline_s=cfg.deadline)
        samples = (UP(0), DURATION(took_s))
        if not isinstance(exc, ssl.SSLCertVerificationError):
            return Observed(samples, (failed(where, reason, words, service=ctx.service.name),))
        seen = await _untrusted(where, cfg, within_s=cfg.deadline - took_s)
        left = (LEFT((seen.until - ctx.clock.now()).total_seconds()),) if seen is not None else ()
        return Observed((*samples, *left), (refused(where, reason, words, seen, service=ctx.service.name),))
    return judge(certificate, where, ctx.clock.now(), ctx.clock.monotonic() - began, cfg, service=ctx.service.name)


async def _handshake(where: Endpoint, cfg: Config, trust: ssl.SSLContext, *, within_s: float) -> Certificate:
    async with asyncio.timeout(within_s):
        name = cfg.server_name or where.host
        _, writer = await asyncio.open_connection(where.host, where.port, ssl=trust, server_hostname=name, ssl_handshake_timeout=within_s)
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
    return read(der)


async def _untrusted(where: Endpoint, cfg: Config, *, within_s: float) -> Certificate | None:
    """The certificate that was refused, looked at without trusting it; None when it cannot be had in the time that is left."""
    if within_s <= 0:
        return None
    blind_trust = ssl.create_default_context()
    blind_trust.check_hostname, blind_trust.verify_mode = False, ssl.CERT_NONE
    try:
        return await _handshake(where, cfg, blind_trust, within_s=within_s)
    except (OSError, TimeoutError, ValueError):
        return None


def read(der: bytes) -> Certificate:
    """What a person wants to know of a certificate. Raises ``ValueError`` when it is none."""
    from cryptography import x509  # noqa: PLC0415 - 6 MiB, and not needed everywhere

    found = x509.load_der_x509_certificate(der)
    try:
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = (*alternative.get_values_for_type(x509.DNSName), *map(str, alternative.get_values_for_type(x509.IPAddress)))
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    return Certificate(found.subject.rfc4514_string(), found.issuer.rfc4514_string(), tuple(names), found.not_valid_after_utc)


def judge(seen: Certificate, where: Endpoint, now: datetime, took_s: float, cfg: Config, *, service: str) -> Observed:
    """What a trusted certificate means. Pure."""
    left_s = (seen.until - now).total_seconds()
    samples = (UP(1), LEFT(left_s), DURATION(took_s))
    if left_s >= cfg.warn_before:
        return Observed(samples)
    severity = Severity.P2 if left_s < cfg.critical_before else None
    summary = f"the certificate of {service} at {one_line(str(where), limit=100)} expires in {lasted(max(0.0, left_s))}"
    return Observed(samples, (EXPIRING(summary, facts=_facts(seen), severity=severity, value=left_s),))


def failed(where: Endpoint, reason: str, words: str, *, service: str) -> Finding:
    """No handshake came about. Pure."""
    place = one_line(str(where), limit=100)
    return FAILED(f"no TLS with {service} at {place}: {words}", facts={"reason": reason, "address": place})


def refused(where: Endpoint, reason: str, words: str, seen: Certificate | None, *, service: str) -> Finding:
    """A client would refuse this certificate. Pure."""
    place = one_line(str(where), limit=100)
    facts = {"reason": reason, "address": place, **(_facts(seen) if seen is not None else {})}
    return REFUSED(f"{service} at {place} cannot be trusted: {words}", facts=facts)


def _facts(seen: Certificate) -> dict[str, str]:
    return {
        "valid until": f"{seen.until:%Y-%m-%d %H:%M UTC}",
        "for": one_line(", ".join(seen.names[:10]) or seen.subject, limit=200),
        "issuer": one_line(seen.issuer, limit=200),
    }
