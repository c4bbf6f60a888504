"""Provokes the symptoms of the runbook's incidents for real, and heals them again. Every function may be repeated.

By hand, against a running platform: ``python -m services.faults [--root DIR] list | provoke NAME | heal NAME``.
"""

from typing import TYPE_CHECKING

from services.control import Handler
from services.faults import ingestion, logins, mail, postgres, processes
from services.faults.fault import Fault, FaultError

if TYPE_CHECKING:
    from services.platform import Platform

FAULTS: tuple[Fault, ...] = (*processes.FAULTS, *postgres.FAULTS, *ingestion.FAULTS, *mail.FAULTS, *logins.FAULTS)


def find_fault(name: str) -> Fault:
    """Raises ``FaultError`` that names the faults there are."""
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise FaultError(f"there is no fault {name!r}; expected one of {', '.join(fault.name for fault in FAULTS)}")


def requests(platform: "Platform") -> dict[str, Handler]:
    """What another process may ask of a running platform, for :class:`services.control.Control`."""

    async def provoke(name: str) -> str:
        fault = find_fault(name)
        await fault.provoke(platform)
        return f"provoked {name}: {fault.help}"

    async def heal(name: str) -> str:
        await find_fault(name).heal(platform)
        return f"healed {name}"

    return {"provoke": provoke, "heal": heal}


__all__ = ["FAULTS", "Fault", "FaultError", "find_fault", "requests"]
