"""Targets that mean harm: each ends within its deadline, under a reason of its own that a person reads in the finding."""

import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from checks.http_health import http_health
from monitor.plugins import Service
from tests.integration.test_http_probe import OK_HEAD, Behaviour, never, repeats, resets, sends, serving
from tests.integration.test_http_probe_tls import NOW
from tests.integration.test_http_probe_tls import serving as serving_tls
from tests.support.looking import look, looking_at

DEADLINE_S = 1.0
BOMB = gzip.compress(b"\0" * 200_000_000, compresslevel=1)
LINK_LOCAL = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/\r\nContent-Length: 0\r\n\r\n"

TARGETS: dict[str, tuple[Behaviour, str]] = {
    "slow loris, in the headers": (repeats(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", every_s=0.05), "too_slow"),
    "slow loris, in the body": (repeats(OK_HEAD + b"Content-Length: 100000\r\n\r\n", b"x", every_s=0.05), "too_slow"),
    "silence": (never, "timeout"),
    "gzip bomb": (sends(OK_HEAD, b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB), BOMB), "too_large"),
    "endless body": (repeats(OK_HEAD + b"Connection: close\r\n\r\n", b"x" * 65_536), "too_large"),
    "endless headers": (repeats(b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n"), "headers_too_large"),
    "endless interim answers": (repeats(b"", b"HTTP/1.1 100 Continue\r\nX-H: " + b"x" * 1000 + b"\r\n\r\n"), "headers_too_large"),
    "redirect to a link-local address": (
        sends(LINK_LOCAL),
        "it redirects (302) to http://169.254.169.254/latest/meta-data/, which is not followed",
    ),
    "reset": (resets, "reset"),
    "no HTTP at all": (sends(b"\x16\x03\x01 not http at all\r\n\r\n"), "garbage"),
}


@asynccontextmanager
async def reason_at(url: str, **config: object) -> AsyncIterator[str]:
    """The named reason in the finding of a health check of ``url``, within its deadline."""
    async with looking_at(Service("hostile", url=url.rstrip("/"))) as ctx:
        began = time.monotonic()
        observed = await look(http_health, ctx, path="/", deadline=DEADLINE_S, slow_after=DEADLINE_S / 2, **config)
        assert time.monotonic() - began < DEADLINE_S + 1
    (finding,) = observed.findings
    assert finding.kind.name == "ServiceDown"
    yield dict(finding.facts)["reason"]


@pytest.mark.parametrize("name", TARGETS)
async def test_a_hostile_target_has_its_own_reason(name: str) -> None:
    behaviour, expected = TARGETS[name]
    async with serving(behaviour) as url, reason_at(url) as reason:
        assert reason == expected


@pytest.mark.parametrize(
    ("names", "days", "trusted", "expected"),
    [
        (("localhost",), -1, True, "tls_expired"),
        (("other.example",), 10, True, "tls_wrong_host"),
        (("localhost",), 10, False, "tls_untrusted"),
    ],
)
async def test_a_bad_certificate_has_its_own_reason(
    tmp_path: Path, names: tuple[str, ...], days: int, trusted: bool, expected: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issuer = authority if trusted else trustme.CA()
    leaf = issuer.issue_cert(*names, not_before=NOW - timedelta(days=30), not_after=NOW + timedelta(days=days))
    async with (
        serving_tls(leaf) as port,
        reason_at(f"https://localhost:{port}", ca_file=str(tmp_path / "ca.pem")) as reason,
    ):
        assert reason == expected


async def test_a_handshake_that_never_ends_has_its_own_reason() -> None:
    async with serving_tls(None) as port, reason_at(f"https://localhost:{port}") as reason:
        assert reason == "timeout"
