"""What the state knows of heartbeats, for the checks that wait for them."""

from monitor.errors import CannotLook
from monitor.probes_contract import Beat


class NoHeartbeats:
    """Implements :class:`monitor.probes_contract.Heartbeats` where there is no state: a single run of a check."""

    async def of(self, check: str) -> Beat:
        raise CannotLook("heartbeats are known to the running monitor only")
