"""Does a name resolve, to what is expected, in time?"""

import ipaddress
from collections.abc import Sequence
from typing import Literal

import dns.asyncresolver
import dns.exception
import dns.resolver
from pydantic import Field, field_validator

from checks.addresses import Endpoint, parse_address
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line

UP = Metric("monitor_dns_up", "1 when the name resolved to what is expected, 0 when not.")
DURATION = Metric("monitor_dns_duration_seconds", "How long the latest answer took.")
ANSWERS = Metric("monitor_dns_answers", "Records in the latest answer.")
TTL = Metric("monitor_dns_ttl_seconds", "How long the latest answer may be remembered.")

FAILED = FindingKind("NameNotResolved", Severity.P2, "INC-001", "The name does not resolve; the reason says how.")
WRONG = FindingKind("NameResolvesWrongly", Severity.P2, None, "The name resolves to something else than what is expected.")
SLOW = FindingKind("NameSlow", Severity.P4, "INC-005", "Resolving the name takes longer than slow_after.")


class Config(PluginConfig):
    """Keys of a ``dns`` check."""

    name: str = Field(min_length=1, max_length=253, pattern=r"^[!-~]+$", description="The name that is asked for.")
    type: Literal["A", "AAAA", "CNAME", "MX", "NS", "TXT", "SRV", "CAA", "PTR", "SOA"] = Field("A", description="The kind of record.")
    server: str | None = Field(None, description='The name server, "192.0.2.53" or "192.0.2.53:5353"; the machine\'s own without it.')
    expect: tuple[str, ...] = Field((), max_length=50, description="Records that must be among the answers, as dig shows them.")
    only_expected: bool = Field(False, description="Whether other records than these are wrong.")
    slow_after: Duration = Field(1.0, gt=0, description="NameSlow when the answer takes longer.")
    deadline: Duration = Field(4.0, gt=0, le=30, description="For the answer, retries included.")

    @field_validator("server")
    @classmethod
    def _is_an_address(cls, server: str | None) -> str | None:
        if server is not None:
            try:
                _server(server)
            except ValueError:
                raise ValueError('expected the address of a name server, such as "192.0.2.53" or "192.0.2.53:5353"') from None
        return server


@check(
    "dns",
    config=Config,
    metrics=(UP, DURATION, ANSWERS, TTL),
    finds=(FAILED, WRONG, SLOW),
    blind="The machine has no name server configured.",
    why="When a name is gone or points elsewhere, everything behind it is down at once, and looks healthy from inside.",
)
async def dns_name(ctx: CheckContext, cfg: Config) -> Observed:
    """Asks a name server for records of a name and compares them with what is expected."""
    resolver = _resolver(cfg)
    began = ctx.clock.monotonic()
    try:
        answer = await resolver.resolve(cfg.name, cfg.type, lifetime=cfg.deadline, raise_on_no_answer=True)
    except dns.exception.DNSException as exc:
        reason, words = _reason(exc, cfg)
        facts = {
            "reason": reason,
            "asked": f"{one_line(cfg.name, limit=100)} {cfg.type}",
            "of": cfg.server or ", ".join(map(str, resolver.nameservers[:3])),
        }
        finding = FAILED(f"{one_line(cfg.name, limit=100)} does not resolve: {words} ({ctx.service.name})", facts=facts)
        return Observed((UP(0), DURATION(ctx.clock.monotonic() - began)), (finding,))
    took_s = ctx.clock.monotonic() - began
    records = sorted(record.to_text() for record in answer)
    return judge(records, answer.rrset.ttl if answer.rrset is not None else 0, took_s, cfg, service=ctx.service.name)


def judge(records: Sequence[str], ttl_s: float, took_s: float, cfg: Config, *, service: str) -> Observed:
    """What the records mean. Pure."""
    name = one_line(cfg.name, limit=100)
    missing = [one for one in cfg.expect if one not in records]
    extra = [one for one in records if one not in cfg.expect] if cfg.only_expected else []
    facts = {"answer": one_line(", ".join(records[:20]), limit=300), "took": f"{took_s * 1000:.0f} ms"}
    findings = []
    if missing or extra:
        facts |= {"missing": one_line(", ".join(missing), limit=200)} if missing else {}
        facts |= {"not expected": one_line(", ".join(extra), limit=200)} if extra else {}
        findings.append(WRONG(f"{name} {cfg.type} resolves to something else than expected ({service})", facts=facts))
    if took_s > cfg.slow_after:
        findings.append(SLOW(f"{name} takes {took_s:.1f} s to resolve ({service})", facts=facts, value=took_s))
    return Observed((UP(not (missing or extra)), DURATION(took_s), ANSWERS(len(records)), TTL(ttl_s)), tuple(findings))


def _server(text: str) -> Endpoint:
    """An address with or without a port. Raises ``ValueError``."""
    try:
        return Endpoint(str(ipaddress.ip_address(text)), 53)
    except ValueError:
        where = parse_address(text)
    return Endpoint(str(ipaddress.ip_address(where.host)), where.port)


def _resolver(cfg: Config) -> dns.asyncresolver.Resolver:
    try:
        resolver = dns.asyncresolver.Resolver(configure=cfg.server is None)
    except dns.resolver.NoResolverConfiguration as exc:
        raise CannotLook("this machine has no name server in /etc/resolv.conf: set server") from exc
    resolver.cache = None
    if cfg.server is not None:
        where = _server(cfg.server)
        resolver.nameservers, resolver.port = [where.host], where.port
    return resolver


def _reason(exc: dns.exception.DNSException, cfg: Config) -> tuple[str, str]:
    if isinstance(exc, dns.resolver.NXDOMAIN):
        return "nxdomain", "there is no such name"
    if isinstance(exc, dns.resolver.NoAnswer):
        return "no_answer", f"the name has no record of type {cfg.type}"
    if isinstance(exc, dns.exception.Timeout):
        return "timeout", f"no name server answered within {cfg.deadline:g} s"
    if isinstance(exc, dns.resolver.NoNameservers):
        told = one_line(str(exc), limit=200)
        if "SERVFAIL" in told:
            return "servfail", "the name servers fail to answer"
        return ("refused", "the name servers refuse to answer") if "REFUSED" in told else ("garbage", "the name servers answer nonsense")
    return "failed", one_line(str(exc) or type(exc).__name__, limit=100)
