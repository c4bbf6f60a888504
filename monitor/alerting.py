"""What the doors may ask and change about alerts and silences while the program runs; each change is durable when it returns."""

from collections.abc import Sequence
from datetime import datetime

from alerts.muting import EXPIRED_KEPT, Muting
from alerts.posted import PostedAlert
from alerts.silences import expire
from monitor.clock import Clock
from monitor.config.settings import Settings
from monitor.domain import Alert, Silence
from monitor.engine import Engine
from monitor.intake import Intake
from monitor.store import Store, StoreThread


class Alerting:
    """Raises ``StoreError`` wherever the state cannot be read or written."""

    def __init__(self, engine: Engine, intake: Intake, *, store: Store, thread: StoreThread, clock: Clock, version: str) -> None:
        self._engine = engine
        self._intake = intake
        self._store = store
        self._thread = thread
        self._clock = clock
        self.version = version
        self.started_at = clock.now()

    @property
    def settings(self) -> Settings:
        return self._engine.settings

    def now(self) -> datetime:
        return self._clock.now()

    async def post(self, posted: Sequence[PostedAlert]) -> tuple[str, ...]:
        """Store foreign alerts. Returns why some of them were not acceptable."""
        return await self._intake.post(posted)

    async def firing(self) -> tuple[tuple[Alert, ...], Muting]:
        """Every alert that fires, and what may mute it, at one moment."""
        now = self._clock.now()
        return await self._thread(lambda: (self._store.incidents.firing(), self._engine.muting(now)))

    async def silences(self) -> tuple[Silence, ...]:
        """Every silence that is still listed."""
        return await self._thread(self._store.silences.list, since=self._clock.now() - EXPIRED_KEPT)

    async def silence(self, silence_id: str) -> Silence | None:
        """One silence by its whole id."""
        return next((silence for silence in await self.silences() if silence.id == silence_id), None)

    async def save(self, *changed: Silence) -> None:
        await self._thread(self._store.silences.save, *changed)

    async def expire(self, silence: Silence) -> None:
        """End a silence now; the engine asks again within a second."""
        await self.save(expire(silence, self._clock.now()))
