"""What was known of heartbeats at one moment, for checks that are run by hand, beside the running monitor."""

from collections.abc import Mapping

from monitor.errors import CannotLook
from monitor.probes_contract import Beat


class KnownHeartbeats:
    """Implements :class:`monitor.probes_contract.Heartbeats`."""

    def __init__(self, beats: Mapping[str, Beat] | None = None) -> None:
        self._beats = beats or {}

    async def of(self, check: str) -> Beat:
        if check not in self._beats:
            raise CannotLook("nothing is known of pings: the running monitor takes them, and its state cannot be read or has none yet")
        return self._beats[check]
