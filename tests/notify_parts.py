"""What the tests of the notifiers share: a sample incident, and the fakes behind real HTTPS on a free port."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import trustme
import uvicorn
from starlette.types import ASGIApp

from monitor.domain import (
    Digest,
    DigestItem,
    EscalationStep,
    Incident,
    IncidentState,
    Labels,
    Link,
    Notification,
    Receipt,
    Severity,
    Tally,
    Transition,
)
from monitor.plugins import NotifyContext
from monitor.store.digests import tally_of

OPENED = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
STATES = {Transition.ACKED: IncidentState.ACKED, Transition.RESOLVED: IncidentState.RESOLVED}


@dataclass(slots=True)
class StillClock:
    """Time stands where the test puts it."""

    at: datetime = OPENED + timedelta(minutes=4)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def context(deadline_s: float = 10.0) -> NotifyContext:
    return NotifyContext(clock=StillClock(), deadline_s=deadline_s)


def notification(
    transition: Transition = Transition.TRIGGERED,
    *,
    channel: str = "oncall",
    severity: Severity = Severity.P1,
    reason: str = "on-call is told at once",
    row: int = 1,
    first: Receipt | None = None,
    links: tuple[Link, ...] | None = None,
    labels: Labels = (),
    **incident: Any,
) -> Notification:
    values: dict[str, Any] = {
        "id": "a1b2c3d4e5f6",
        "group": "auth/INC-001",
        "code": "INC-001",
        "service": "auth",
        "severity": severity,
        "state": STATES.get(transition, IncidentState.OPEN),
        "title": "Service not responding",
        "summary": "GET http://127.0.0.1:8003/health: connection refused, 2 times in a row",
        "evidence": ("reason: refused", "status: none", "last good answer: 2026-11-23 07:59:42 UTC", "address: 127.0.0.1:8003"),
        "first_step": "ps aux | grep uvicorn\ntail -100 logs/auth-service-error.log",
        "opened_at": OPENED,
        "chain": (EscalationStep(0, "on-call", (channel,)),),
        "chain_since": OPENED,
        "told": (channel,),
        "resolved_at": OPENED + timedelta(minutes=12) if transition is Transition.RESOLVED else None,
    }
    built = Incident(**{**values, **incident})
    page = (
        Link("Incident page", f"https://monitor.example.com/incidents/{built.id}"),
        Link("Runbook INC-001", "https://example.com/runbook"),
    )
    return Notification(
        id=row,
        incident=built,
        transition=transition,
        channel=channel,
        dedup_key=built.id,
        reason=reason,
        created_at=OPENED,
        attempts=0,
        links=page if links is None else links,
        first_receipt=first,
        labels=labels,
    )


def digest_item(number: int, transition: Transition = Transition.TRIGGERED, **changes: Any) -> DigestItem:
    values: dict[str, Any] = {
        "row": number,
        "transition": transition,
        "reason": "on-call is told at once",
        "id": f"{number:012x}",
        "code": "INC-001",
        "service": ("auth", "data", "analytics", "nginx")[number % 4],
        "severity": Severity(1 + min(3, number // 10)),
        "state": STATES.get(transition, IncidentState.OPEN),
        "title": "Service not responding",
        "summary": f"GET http://10.0.0.{number % 250}:8003/health: connection refused, 2 times in a row",
        "evidence": ("reason: refused", "status: none"),
        "first_step": "ps aux | grep uvicorn",
        "opened_at": OPENED + timedelta(seconds=number),
        "resolved_at": OPENED + timedelta(minutes=3) if transition is Transition.RESOLVED else None,
        "acked_by": "anna" if transition is Transition.ACKED else None,
    }
    return DigestItem(**{**values, **changes})


def digest(
    items: Sequence[DigestItem], *, first: Receipt | None = None, channel: str = "oncall", tally: Tally | None = None, **changes: Any
) -> Digest:
    """Of these items; a follow-up when there is a ``first`` receipt."""
    home = "digest-0123456789abcdef"
    values: dict[str, Any] = {
        "key": f"{home}/fedcba9876543210" if first else home,
        "home": home,
        "channel": channel,
        "items": tuple(items),
        "tally": tally or tally_of(tuple(items)),
        "created_at": OPENED,
        "attempts": 1,
        "url": "https://monitor.example.com",
        "first_receipt": first,
    }
    return Digest(**{**values, **changes})


@dataclass(frozen=True, slots=True)
class Authority:
    """A throw-away authority: the file that clients trust, and a certificate for servers on 127.0.0.1."""

    ca_file: str
    chain: Path
    key: Path

    @classmethod
    def create(cls, folder: Path) -> "Authority":
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        issued = ca.issue_cert("127.0.0.1")
        chain, key = folder / "server.pem", folder / "server.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return cls(str(folder / "ca.pem"), chain, key)

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Fake:
    """A fake behind HTTPS, and the doors that only tests use."""

    url: str
    client: httpx2.AsyncClient

    async def received(self) -> Any:
        return (await self.client.get("/_received")).json()

    async def script(self, *steps: dict[str, Any]) -> None:
        (await self.client.post("/_script", json={"next": list(steps)})).raise_for_status()


@asynccontextmanager
async def serve(app: ASGIApp, authority: Authority) -> AsyncIterator[Fake]:
    """The app on a free port of this machine, in the test's own loop."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = _Server(
            uvicorn.Config(
                app,
                log_level="critical",
                access_log=False,
                ws="none",
                lifespan="off",
                timeout_graceful_shutdown=1,
                ssl_certfile=authority.chain,
                ssl_keyfile=authority.key,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started)
            url = f"https://127.0.0.1:{port}"
            trust = ssl.create_default_context(cafile=authority.ca_file)
            async with httpx2.AsyncClient(base_url=url, verify=trust) as client:
                yield Fake(url, client)
        finally:
            server.should_exit = True
            await serving


async def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


def unused_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Server(uvicorn.Server):
    """Signals stay with pytest."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield
