"""Heartbeats: jobs that are none of ours ping us, and checks wait for them.

Owns which key belongs to which checks; the pings themselves are in the store.
"""

import hashlib
from collections.abc import Callable, Iterable

import structlog

from monitor.clock import Clock
from monitor.config.settings import CheckInstance
from monitor.errors import CannotLook, StoreError
from monitor.plugins import PingedConfig
from monitor.probes_contract import Beat, Ping
from monitor.store import Store, StoreThread

log = structlog.get_logger("heartbeats")


class HeartbeatBook:
    """Implements :class:`monitor.probes_contract.Heartbeats` over the store, and takes the pings."""

    def __init__(self, store: Store, thread: StoreThread, clock: Clock, look_soon: Callable[[Iterable[str]], object]) -> None:
        self._store = store
        self._thread = thread
        self._clock = clock
        self._look_soon = look_soon
        self._by_key: dict[str, tuple[CheckInstance, ...]] = {}

    async def adopt(self, instances: Iterable[CheckInstance]) -> None:
        """Wait for the pings of these checks; what belongs to others is forgotten."""
        by_key: dict[str, tuple[CheckInstance, ...]] = {}
        for instance in instances:
            if isinstance(instance.config, PingedConfig):
                digest = _digest(instance.config.key.get_secret_value())
                by_key[digest] = (*by_key.get(digest, ()), instance)
        self._by_key = by_key
        try:
            await self._thread(self._store.heartbeats.retain, {one.name for waiting in by_key.values() for one in waiting})
        except StoreError as exc:
            log.warning("heartbeats of removed checks are not forgotten yet", error=str(exc))

    async def of(self, check: str) -> Beat:
        try:
            return await self._thread(self._store.heartbeats.of, check, self._clock.now())
        except StoreError as exc:
            raise CannotLook(f"the monitor's state does not tell of pings: {exc}") from exc

    async def ping(self, key: str, ping: Ping) -> bool:
        """Take a ping; it is on the disk when this returns. False when no check has this key. Raises ``StoreError``."""
        waiting = self._by_key.get(_digest(key))
        if waiting is None:
            return False
        await self._thread(self._store.heartbeats.ping, {one.name for one in waiting}, ping, self._clock.now())
        self._look_soon(one.key for one in waiting)
        return True


def _digest(key: str) -> str:
    """Keys are looked up by their digests: how long that takes tells nothing of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
