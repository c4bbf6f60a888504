"""What a fault is: a symptom of the runbook, provoked for real on a running platform, and healed again."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from services.platform import Platform


class FaultError(Exception):
    """The fault could not be provoked or healed; the message says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """``help`` is one sentence; ``service`` is what the symptom shows at; ``incident`` is the runbook's code."""

    name: str
    incident: str
    service: str
    help: str
    provoke: "Callable[[Platform], Awaitable[None]]"
    heal: "Callable[[Platform], Awaitable[None]]"


async def switch(platform: "Platform", external: str, mode: str) -> None:
    """Tell an external how to behave. Raises ``FaultError``."""
    try:
        (await platform.http.post(f"{platform.urls[external]}/_control", json={"mode": mode})).raise_for_status()
    except httpx2.HTTPError as exc:
        raise FaultError(f"the {external} stand-in cannot be reached: {str(exc) or type(exc).__name__}") from exc


async def let_go(platform: "Platform", name: str) -> None:
    """End what a fault holds open, if it does."""
    end = platform.held.pop(name, None)
    if end is not None:
        await end()
