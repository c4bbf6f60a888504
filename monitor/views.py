"""What people and Prometheus are shown of the running program, read from the engine and the store."""

from datetime import timedelta

from dashboards.status_page import DeliveryView, PageInput, ServiceView, check_view
from monitor.clock import Clock
from monitor.domain import Incident, IncidentState, TimelineEntry
from monitor.engine import Engine
from monitor.metrics import names
from monitor.metrics.exposition import Exposition
from monitor.store import ChannelQueue, Store, StoreThread

RESOLVED_SHOWN = timedelta(hours=24)


class Views:
    """Builds the pages' inputs. Raises ``StoreError`` when the store cannot be read."""

    def __init__(self, engine: Engine, *, store: Store, thread: StoreThread, clock: Clock, version: str) -> None:
        self._engine = engine
        self._store = store
        self._thread = thread
        self._clock = clock
        self._version = version

    async def page(self) -> PageInput:
        """The status page: every service with its checks, incidents of the last day, how delivery stands."""
        now = self._clock.now()
        incidents = await self._thread(self._store.incidents.list, unresolved=False, since=now - RESOLVED_SHOWN)
        queues = await self._thread(self._store.outbox.queues)
        over = [incident for incident in incidents if incident.state is IncidentState.RESOLVED]
        return PageInput(
            now=now,
            version=self._version,
            services=self._services(),
            incidents=tuple(incident for incident in incidents if incident.state is not IncidentState.RESOLVED),
            resolved=tuple(sorted(over, key=lambda incident: incident.resolved_at or now, reverse=True)),
            delivery=DeliveryView(
                pending=sum(queue.pending for queue in queues),
                oldest_s=self._oldest_s(queues),
                dead=sum(queue.dead for queue in queues),
            ),
            store_ok=self._engine.store_error is None,
        )

    async def incident(self, incident_id: str) -> tuple[Incident, tuple[TimelineEntry, ...]]:
        """One incident and its history. Raises ``UsageError``."""
        incident = await self._thread(self._store.incidents.find, incident_id)
        return incident, await self._thread(self._store.incidents.timeline, incident.id)

    async def refresh_gauges(self, show: Exposition) -> None:
        """Bring the gauges about incidents and the outbox up to date."""
        counts = await self._thread(self._store.incidents.open_counts)
        queues = await self._thread(self._store.outbox.queues)
        for severity in names.SEVERITIES:
            for state in names.UNRESOLVED:
                show.set(names.INCIDENTS, counts.get((severity, state), 0), severity=severity, state=state)
        waiting = {queue.channel: queue for queue in queues}
        for channel in {*self._engine.settings.channels, *waiting}:
            queue = waiting.get(channel)
            show.set(names.OUTBOX_PENDING, queue.pending if queue else 0, channel=channel)
            show.set(names.OUTBOX_DEAD, queue.dead if queue else 0, channel=channel)
        show.set(names.OUTBOX_OLDEST, self._oldest_s(queues))

    def _oldest_s(self, queues: tuple[ChannelQueue, ...]) -> float:
        now = self._clock.now()
        return max(((now - queue.oldest).total_seconds() for queue in queues if queue.oldest), default=0.0)

    def _services(self) -> tuple[ServiceView, ...]:
        settings = self._engine.settings
        return tuple(
            ServiceView(
                name=service.name,
                url=service.url,
                checks=tuple(
                    check_view(i.name, i.every_s, self._engine.latest.get(i.key), self._engine.flaps.recent.get(i.key, ()))
                    for i in settings.instances
                    if i.service.name == service.name
                ),
            )
            for service in settings.services.values()
        )
