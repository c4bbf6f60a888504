"""What the doors may ask and change about alerts and silences while the program runs; each change is durable when it returns."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import msgspec

from alerts.muting import EXPIRED_KEPT
from alerts.silences import build, covering, expire
from monitor.alertmanager import AlertQuery, group_alerts, show_alerts
from monitor.clock import Clock
from monitor.config.settings import Settings
from monitor.digested import acknowledge_digest, members
from monitor.domain import Silence, TimelineEntry, is_digest_key
from monitor.engine import Engine, acknowledge
from monitor.errors import UsageError
from monitor.intake import Done, Intake
from monitor.store import Store, StoreThread

PIECE = 200
"""Alerts that are written as JSON, and sent, at once."""


class Alerting:
    """Raises ``StoreError`` wherever the state cannot be read or written.

    ``reading`` is a thread of its own: to show many thousand alerts takes seconds, and no decision is to wait for that.
    """

    def __init__(
        self, engine: Engine, intake: Intake, *, store: Store, thread: StoreThread, reading: StoreThread, clock: Clock, version: str
    ) -> None:
        self._engine = engine
        self._wake_delivery = engine.wake_delivery
        self._intake = intake
        self._store = store
        self._thread = thread
        self._reading = reading
        self._clock = clock
        self.version = version
        self.started_at = clock.now()

    @property
    def settings(self) -> Settings:
        return self._engine.settings

    def now(self) -> datetime:
        return self._clock.now()

    def take(self, body: bytes, done: Done) -> None:
        """Store foreign alerts, in Alertmanager's form; ``done`` hears of it. Raises ``UsageError``."""
        self._intake.take(body, done)

    async def acknowledge(self, key: str, who: str, note: str = "") -> int:
        """Take an incident, or every incident of a digest that nobody has, from whatever door. Returns how many. Raises ``UsageError``."""
        if is_digest_key(key):
            taken = await self._thread(acknowledge_digest, self._store, key, who, self._clock, note)
        else:
            _, changed = await self._thread(acknowledge, self._store, key, who, self._clock, note)
            taken = int(changed)
        if taken:
            self._wake_delivery()
        return taken

    async def obeyed(self, key: str) -> bool:
        """Whether a signed request was obeyed before, this program's life or an earlier one."""
        return await self._thread(self._store.obeyed.knows, key)

    async def remember(self, key: str, keep_s: float) -> None:
        """A signed request has been obeyed: for so long it is not obeyed again."""
        now = self._clock.now()
        await self._thread(self._store.obeyed.add, key, now, now + timedelta(seconds=keep_s))

    async def note(self, key: str, text: str, who: str) -> None:
        """A line in the history of an incident, or of every incident of a digest. Raises ``UsageError``."""
        now = self._clock.now()
        if is_digest_key(key):
            ids = await self._thread(members, self._store, key)
        else:
            ids = ((await self._thread(self._store.incidents.find, key)).id,)
        await self._thread(self._store.incidents.add_timeline, [TimelineEntry(one, now, "note", text, who) for one in ids])

    async def silence_incident(self, incident_id: str, who: str, seconds: float) -> None:
        """Silence what holds an incident open now, and what joins its group. Raises ``UsageError``."""
        found = await self._thread(self._store.incidents.find, incident_id)
        firing = await self._thread(self._store.incidents.firing_in, found.group)
        covered = covering((alert for alert in firing if alert.home == found.group), self.settings.posted)
        if not covered:
            raise UsageError(f"incident {found.id} is over: there is nothing to silence")
        now = self._clock.now()
        ends_at = now + timedelta(seconds=seconds)
        silences = [build(matchers, now, ends_at, who, f"asked for at incident {found.id}", now) for matchers in covered]
        await self.save(*silences)
        await self.note(found.id, f"silenced until {ends_at:%H:%M} UTC by {who}", who)

    async def alerts(self, query: AlertQuery) -> Sequence[bytes]:
        """The alerts that fire, as Alertmanager lists them: JSON, in pieces."""
        return await self._reading(lambda: list_in_pieces(self._shown(query)))

    async def groups(self, query: AlertQuery) -> Sequence[bytes]:
        """The same alerts in their groups."""
        return await self._reading(lambda: list_in_pieces(group_alerts(self._shown(query), self.settings.posted)))

    def _shown(self, query: AlertQuery) -> Iterator[dict[str, Any]]:
        now = self._clock.now()
        with self._store.incidents.each_firing() as firing:
            yield from show_alerts(firing, self._engine.muting(now), query, self.settings.external_url, now)

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


def list_in_pieces(items: Iterable[Any]) -> list[bytes]:
    """A JSON list, written some items at a time: nothing holds the interpreter for long."""
    rest, pieces = iter(items), [b"["]
    while some := list(islice(rest, PIECE)):
        pieces.append((b"," if len(pieces) > 1 else b"") + msgspec.json.encode(some)[1:-1])
    return [*pieces, b"]"]
