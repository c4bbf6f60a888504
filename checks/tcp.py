"""Does something listen at an address, and does it say what is expected?"""

import asyncio

from pydantic import Field

from checks.addresses import Address, Endpoint, endpoint_of
from checks.assertions import Regex, found_in
from checks.connecting import reason_of
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line

UP = Metric("monitor_tcp_up", "1 when the address accepted the connection and said what is expected, 0 when not.")
DURATION = Metric("monitor_tcp_duration_seconds", "Time to connect, and to the expected answer.", ("phase",))

DOWN = FindingKind("PortDown", Severity.P2, "INC-001", "Nothing listens at the address, or it does not say what is expected.", fells=True)

MAX_READ_BYTES = 65_536


class Config(PluginConfig):
    """Keys of a ``tcp`` check."""

    address: Address | None = Field(None, description='Where: "host:port"; that of the service\'s url where it is left out.')
    send: str = Field("", max_length=4096, description=r'What is sent after connecting: "PING\r\n".')
    expect: Regex | None = Field(None, description="What must come back: a regular expression. Without it, the connection is enough.")
    deadline: Duration = Field(5.0, gt=0, le=60, description="For everything together.")


@check(
    "tcp",
    config=Config,
    metrics=(UP, DURATION),
    finds=(DOWN,),
    blind="The monitor's machine has no socket left, or nothing says where to connect.",
    why="What speaks no HTTP is watched at its port: caches, brokers, partners' servers.",
)
async def tcp(ctx: CheckContext, cfg: Config) -> Observed:
    """Connects to an address, sends a text where one is given, and waits for the answer that is expected."""
    where = endpoint_of(cfg.address, ctx.service)
    began = ctx.clock.monotonic()
    connected_s = answered_s = 0.0
    said = b""
    try:
        async with asyncio.timeout(cfg.deadline):
            reader, writer = await asyncio.open_connection(where.host, where.port)
            try:
                connected_s = ctx.clock.monotonic() - began
                if cfg.send:
                    writer.write(cfg.send.encode())
                    await writer.drain()
                while cfg.expect is not None and not found_in(cfg.expect, said):
                    piece = await reader.read(4096)
                    if not piece or len(said) >= MAX_READ_BYTES:
                        return _down(where, "unexpected", "it says something else", said, connected_s, ctx.service.name)
                    said += piece
                answered_s = ctx.clock.monotonic() - began - connected_s
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as exc:
        reason, words = reason_of(exc, deadline_s=cfg.deadline)
        if connected_s and reason == "timeout":
            reason, words = "no_answer", f"it accepts the connection and does not say what is expected within {cfg.deadline:g} s"
        return _down(where, reason, words, said, connected_s, ctx.service.name)
    return Observed((UP(1), DURATION(connected_s, phase="connect"), DURATION(answered_s, phase="answer")))


def _down(where: Endpoint, reason: str, words: str, said: bytes, connected_s: float, service: str) -> Observed:
    facts = {"reason": reason, "address": one_line(str(where), limit=100)}
    if connected_s:
        facts["connected after"] = f"{connected_s * 1000:.0f} ms"
    if said:
        facts["said"] = one_line(said[:500].decode("utf-8", "replace"), limit=200)
    finding = DOWN(f"{service} does not answer at {one_line(str(where), limit=100)}: {words}", facts=facts)
    return Observed((UP(0), DURATION(connected_s, phase="connect")), (finding,))
