"""INC-001: a service is gone, hangs, or is answered for by nginx."""

import asyncio
import signal
from typing import TYPE_CHECKING

from services.faults.fault import Fault, FaultError

if TYPE_CHECKING:
    from services.platform import Platform


async def _kill_analytics(platform: "Platform") -> None:
    await asyncio.to_thread(platform.child("analytics").kill)


async def _restart_analytics(platform: "Platform") -> None:
    await platform.start_service("analytics")


async def _stop_data(platform: "Platform") -> None:
    child = platform.child("data")
    if child.pid is None:
        raise FaultError("the data service does not run: there is nothing to hang")
    child.send(signal.SIGSTOP)


async def _continue_data(platform: "Platform") -> None:
    platform.child("data").send(signal.SIGCONT)
    await platform.start_service("data")


FAULTS = (
    Fault("service-down", "INC-001", "analytics", "The analytics service's process is killed.", _kill_analytics, _restart_analytics),
    Fault(
        "service-hang", "INC-001", "data", "The data service's process is frozen: it accepts and never answers.", _stop_data, _continue_data
    ),
)
