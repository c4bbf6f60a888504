"""Does an HTTP address answer, with the status, headers and body that are expected, in time, under a certificate that lasts?"""

import json
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from checks.assertions import JsonPath, Regex, wrong_header, wrong_json_path, wrong_text
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, LocalPath, PluginConfig, Secret, check, one_line
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpPhases, HttpReason, HttpRequest

UP = Metric("monitor_http_up", "1 when the service answered as expected, 0 when it did not.")
DURATION = Metric(
    "monitor_http_duration_seconds",
    "Time of the latest probe by phase: dns, connect, tls, wait (for the first byte), transfer.",
    ("phase",),
)
STATUS = Metric("monitor_http_status", "Status code of the latest answer; 0 when there was no whole answer.")
RESPONSE_BYTES = Metric("monitor_http_response_bytes", "Size of the latest answer's decoded body.")
TLS_EXPIRY = Metric(
    "monitor_http_tls_expiry_seconds",
    "Time until the first certificate of the service's chain expires: read every five minutes, and with each probe in its last 30 days.",
)

DOWN = FindingKind(
    "ServiceDown", Severity.P1, "INC-001", "The health address is refused, silent, or answers with a wrong status or body.", fells=True
)
SLOW = FindingKind("ServiceSlow", Severity.P3, "INC-005", "The health address answers well, but slower than slow_after.")
EXPIRING = FindingKind("CertificateExpiring", Severity.P3, None, "A certificate of the service expires within tls_warn_days.")

_PLAIN_REASONS = {
    HttpReason.DNS: "its name cannot be resolved",
    HttpReason.REFUSED: "connection refused",
    HttpReason.UNREACHABLE: "it cannot be reached",
    HttpReason.TIMEOUT: "no answer in time",
    HttpReason.TOO_SLOW: "no whole answer in time",
    HttpReason.RESET: "the connection broke",
    HttpReason.TLS: "the TLS handshake failed",
    HttpReason.TLS_EXPIRED: "its certificate is expired or not yet valid",
    HttpReason.TLS_WRONG_HOST: "its certificate is for another host",
    HttpReason.TLS_UNTRUSTED: "its certificate is not trusted",
    HttpReason.TOO_LARGE: "its answer is too large",
    HttpReason.HEADERS_TOO_LARGE: "its headers are too large",
    HttpReason.GARBAGE: "its answer is not HTTP",
    HttpReason.OTHER: "the exchange failed",
}


class Config(PluginConfig):
    """Keys of an ``http_health`` check."""

    path: str = Field("/health", pattern=r"^/[!-~]*$", description="Path and query below the service's url.")
    method: Literal["GET", "HEAD", "POST", "OPTIONS"] = "GET"
    expect_status: tuple[Annotated[int, Field(ge=100, le=599)], ...] = Field(
        (200,), min_length=1, description="Status codes that are healthy."
    )
    expect_json: dict[str, str] = Field(
        default_factory=dict,
        description='Top-level fields of the JSON answer and their values; a value that is no string in its JSON form ("true").',
    )
    expect_body: str = Field("", description="Text that the answer must contain.")
    expect_json_path: dict[JsonPath, str] = Field(
        default_factory=dict,
        description='JSON paths (RFC 9535) and what stands there, all of it: {"$.queue.depth" = "0"}; "*" for anything at all.',
    )
    expect_regex: tuple[Regex, ...] = Field((), max_length=20, description="Expressions that the body must match somewhere.")
    refuse_regex: tuple[Regex, ...] = Field((), max_length=20, description="Expressions that the body must not match.")
    expect_headers: dict[str, Regex] = Field(default_factory=dict, description="Headers that must be there, and match.")
    body: str = Field("", max_length=65_536, description="Sent with the request; its Content-Type stands in headers.")
    slow_after: Duration = Field(2.0, gt=0, description="A whole exchange that takes longer is slow.")
    deadline: Duration = Field(5.0, gt=0, description="For the whole exchange, name resolution to last byte.")
    max_body_bytes: int = Field(1_048_576, ge=1, le=67_108_864, description="A larger decoded body is cut off and counts as down.")
    headers: dict[str, str] = Field(default_factory=dict, description="Sent with the request.")
    secret_headers: dict[str, Secret] = Field(
        default_factory=dict, description='Sent too, never shown: Authorization = {env = "…"}, with the scheme in the value.'
    )
    ca_file: LocalPath | None = Field(None, description="CA bundle to trust instead of the machine's.")
    tls_warn_days: float = Field(14.0, ge=0, description="Find a certificate that expires sooner.")

    @field_validator("headers", "secret_headers")
    @classmethod
    def _sendable(cls, headers: dict[str, str | SecretStr]) -> dict[str, str | SecretStr]:
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError("a header's name holds letters, digits and dashes only")
            if not (value if isinstance(value, str) else value.get_secret_value()).isprintable():
                raise ValueError(f"the value of header {name} holds control characters")
        return headers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.slow_after >= self.deadline:
            raise ValueError("slow_after must be shorter than deadline, or slow is never seen")
        if self.method == "HEAD" and (self.expect_json or self.expect_body or self.expect_json_path or self.expect_regex):
            raise ValueError("a HEAD request has no body to expect something of")
        if self.body and self.method != "POST":
            raise ValueError("only a POST request sends a body")
        return self


@check(
    "http_health",
    config=Config,
    metrics=(UP, DURATION, STATUS, RESPONSE_BYTES, TLS_EXPIRY),
    finds=(DOWN, SLOW, EXPIRING),
    needs=("url",),
    blind="The probe itself could not run: its own queue, no CA bundle, no sockets left on the monitor's machine.",
    why="It is the first thing users notice: a service that does not answer, answers wrongly, or answers too late (INC-001, INC-005).",
)
async def http_health(ctx: CheckContext, cfg: Config) -> Observed:
    """Asks a service's health address over a new connection and compares status, body and time with what is expected."""
    url = f"{(ctx.service.url or '').rstrip('/')}{cfg.path}"
    answer = await ctx.http.fetch(
        HttpRequest(
            url=url,
            method=cfg.method,
            body=cfg.body.encode(),
            headers=(*cfg.headers.items(), *((name, value.get_secret_value()) for name, value in cfg.secret_headers.items())),
            deadline_s=cfg.deadline,
            max_body_bytes=cfg.max_body_bytes,
            ca_file=cfg.ca_file,
        )
    )
    return judge(answer, cfg, service=ctx.service.name, url=_without_credentials(url))


def judge(answer: HttpAnswer | HttpFailure, cfg: Config, *, service: str, url: str) -> Observed:
    """What one exchange means. Pure. Labels stay empty: down is one symptom, whether it is refused or times out."""
    if isinstance(answer, HttpFailure):
        samples = (UP(0), STATUS(0), *DURATION.each(_spent(answer.phases)))
        facts = {
            "reason": answer.reason.value,
            "url": url,
            "detail": one_line(answer.detail, limit=300),
            "took": _seconds(answer.phases.total_s),
        }
        return Observed(samples, (DOWN(f"{service} does not answer: {_PLAIN_REASONS[answer.reason]}", facts=facts),))
    wrong = _what_is_wrong(answer, cfg)
    findings = [DOWN(f"{service} answers, but {wrong}", facts=_facts(answer, url, reason=wrong))] if wrong else []
    samples = (UP(not findings), STATUS(answer.status), RESPONSE_BYTES(len(answer.body)), *DURATION.each(_spent(answer.phases)))
    if not wrong and answer.phases.total_s > cfg.slow_after:
        slow = f"{service} took {_seconds(answer.phases.total_s)} to answer, more than {_seconds(cfg.slow_after)}"
        findings.append(SLOW(slow, facts={"slowest phase": _slowest(answer.phases), **_facts(answer, url)}))
    if answer.tls_days_left is not None:
        samples = (*samples, TLS_EXPIRY(answer.tls_days_left * 86_400))
        findings += _expiring(answer.tls_days_left, cfg, service, url)
    return Observed(samples, tuple(findings))


def _what_is_wrong(answer: HttpAnswer, cfg: Config) -> str:
    """The first thing that is not as expected, in words; empty when all is well."""
    if answer.status not in cfg.expect_status:
        location = dict(answer.headers).get("location")
        if 300 <= answer.status < 400 and location:
            return f"it redirects ({answer.status}) to {one_line(location, limit=100)}, which is not followed"
        return f"with status {answer.status} instead of {' or '.join(map(str, cfg.expect_status))}"
    if cfg.expect_body and cfg.expect_body.encode() not in answer.body:
        return f"its body does not contain {one_line(cfg.expect_body, limit=80)!r}"
    return (
        (_wrong_json(answer.body, cfg.expect_json) if cfg.expect_json else "")
        or wrong_header(answer, cfg.expect_headers)
        or wrong_json_path(answer, cfg.expect_json_path)
        or wrong_text(answer, cfg.expect_regex, cfg.refuse_regex)
    )


def _wrong_json(body: bytes, expected: dict[str, str]) -> str:
    try:
        document = _read_json(body)
    except (ValueError, RecursionError):
        return "its body is not JSON"
    if not isinstance(document, dict):
        return "its body is not a JSON object"
    for field, value in expected.items():
        if field not in document:
            return f"its body has no field {field!r}"
        actual = document[field]
        text = actual if isinstance(actual, str) else json.dumps(actual)
        if text != value:
            return f"its {one_line(field, limit=60)} is {one_line(text, limit=60)!r} instead of {one_line(value, limit=60)!r}"
    return ""


def _read_json(body: bytes) -> object:
    """msgspec takes an eighth of the time, and is stricter; what it refuses, Python's own decoder may still know to read."""
    try:
        return msgspec.json.decode(body)
    except ValueError:
        return json.loads(body)


def _expiring(days_left: float, cfg: Config, service: str, url: str) -> list[Finding]:
    if days_left >= cfg.tls_warn_days:
        return []
    left = f"{days_left:.0f} days" if days_left >= 2 else f"{days_left * 24:.0f} hours"
    return [EXPIRING(f"a certificate of {service} expires in {left}", facts={"expires in": left, "url": url})]


def _facts(answer: HttpAnswer, url: str, *, reason: str = "") -> dict[str, str]:
    headers = dict(answer.headers)
    facts = {
        "reason": reason,
        "url": url,
        "status": str(answer.status),
        "took": _seconds(answer.phases.total_s),
        "x-process-time": one_line(headers.get("x-process-time", ""), limit=40),
        "body": one_line(answer.body[:1000].decode("utf-8", "replace"), limit=200),
    }
    return {name: value for name, value in facts.items() if value}


def _spent(phases: HttpPhases) -> tuple[tuple[str, float], ...]:
    return (
        ("dns", phases.dns_s),
        ("connect", phases.connect_s),
        ("tls", phases.tls_s),
        ("wait", phases.wait_s),
        ("transfer", phases.transfer_s),
    )


def _slowest(phases: HttpPhases) -> str:
    name, seconds = max(_spent(phases), key=lambda item: item[1])
    return f"{name} {_seconds(seconds)}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _without_credentials(url: str) -> str:
    if "@" not in url:
        return url
    host = urlsplit(url).netloc
    return url.replace(host, host.rpartition("@")[2], 1)
