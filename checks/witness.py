"""Is it the monitor's own network that is down, rather than everything it watches?"""

import asyncio
from typing import Annotated

from pydantic import Field

from checks.addresses import Address, parse_address
from checks.connecting import reason_of
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check

REACHED = Metric("monitor_witness_reached_ratio", "Share of the addresses that could be reached over the monitor's own network, 0 to 1.")

DOWN = FindingKind(
    "OwnNetworkDown",
    Severity.P2,
    None,
    "The monitor reaches none of the addresses that cannot all be down at once: its own network is down.",
    fells=True,
    doubts=True,
)


class Config(PluginConfig):
    """Keys of a ``witness`` check."""

    addresses: Annotated[tuple[Address, ...], Field(min_length=1, max_length=10)] = Field(
        description='Where: "host:port", two or three that have nothing in common but the way there, such as the gateway, the resolver and '
        "a partner. A refused connection counts as reached: somebody answered.",
    )
    deadline: Duration = Field(1.0, gt=0, le=10, description="For each connection; all are tried at once.")


@check(
    "witness",
    config=Config,
    metrics=(REACHED,),
    finds=(DOWN,),
    blind="The monitor's machine has no socket left.",
    why="When everything seems down at once, it is most often the way there: one alert about that, not one for each service.",
)
async def witness(ctx: CheckContext, cfg: Config) -> Observed:
    """Connects to addresses that cannot all be down at once.

    Name its service as ``monitor.network``: what the monitor then finds wrong beyond this machine joins this one incident.
    """
    reasons = await asyncio.gather(*(_why_not(address, cfg.deadline) for address in cfg.addresses))
    samples = (REACHED(reasons.count("") / len(reasons)),)
    if not all(reasons):
        return Observed(samples)
    facts = dict(zip(cfg.addresses, reasons, strict=True))
    summary = f"the monitor reaches nothing beyond its own machine, not even {', '.join(cfg.addresses[:3])}"
    return Observed(samples, (DOWN(summary, facts=facts),))


async def _why_not(address: str, deadline_s: float) -> str:
    """Why an address cannot be reached; empty when it can."""
    where = parse_address(address)
    try:
        async with asyncio.timeout(deadline_s):
            _, writer = await asyncio.open_connection(where.host, where.port)
        writer.transport.abort()
    except (OSError, TimeoutError) as exc:
        reason, words = reason_of(exc, deadline_s=deadline_s)
        return "" if reason in {"refused", "reset"} else words
    return ""
