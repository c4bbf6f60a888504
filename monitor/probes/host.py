"""The machine that the monitor runs on, seen through psutil and systemd."""

from monitor.errors import CannotLook
from monitor.probes_contract import Disk, HostProcess, Load, Memory, Unit


class LocalHost:
    """Implements :class:`monitor.probes_contract.Host`."""

    async def disk(self, path: str) -> Disk:
        raise CannotLook("the host cannot be looked at yet")

    async def memory(self) -> Memory:
        raise CannotLook("the host cannot be looked at yet")

    async def load(self) -> Load:
        raise CannotLook("the host cannot be looked at yet")

    async def processes(self, text: str) -> tuple[HostProcess, ...]:
        raise CannotLook("the host cannot be looked at yet")

    async def unit(self, name: str) -> Unit:
        raise CannotLook("the host cannot be looked at yet")
