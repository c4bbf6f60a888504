"""Everything the monitor holds open towards what it watches: one HTTP probe, one sentinel per watched database."""

from collections.abc import Mapping

from monitor.clock import Clock
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Kept, PluginConfig, RunbookContext, Service
from monitor.probes.heartbeats import KnownHeartbeats
from monitor.probes.host import LocalHost
from monitor.probes.http import CurlProbe
from monitor.probes.logs import LogFiles
from monitor.probes.postgres import Cost, PgSentinel
from monitor.probes_contract import Heartbeats


class Outside:
    """Hands out contexts for checks and the runbook; a database's connection is opened at its first use."""

    def __init__(self, clock: Clock, heartbeats: Heartbeats | None = None) -> None:
        self._clock = clock
        self._heartbeats = heartbeats or KnownHeartbeats()
        self._logs = LogFiles()
        self._host = LocalHost()
        self._http = CurlProbe(clock)
        self._sentinels: dict[Service, PgSentinel] = {}

    def check_context(self, service: Service, *, name: str = "", kept: Kept | None = None) -> CheckContext:
        """What a check on this service may touch. Raises ``CannotLook`` when the service's DSN is no connection string."""
        return CheckContext(
            service=service,
            clock=self._clock,
            http=self._http,
            pg=self._sentinel(service) if service.dsn is not None else None,
            logs=self._logs,
            host=self._host,
            heartbeats=self._heartbeats,
            kept=kept,
            name=name,
        )

    def runbook_context(
        self, service: Service, services: Mapping[str, Service], checks: Mapping[str, PluginConfig] | None = None
    ) -> RunbookContext:
        """What a diagnosis of this service may touch. Raises ``CannotLook`` when it has no DSN."""
        if service.dsn is None:
            raise CannotLook(f"service {service.name} has no dsn in the configuration")
        return RunbookContext(
            service=service, clock=self._clock, pg=self._sentinel(service), logs=self._logs, services=services, checks=checks or {}
        )

    def postgres_costs(self) -> dict[str, Cost]:
        """What watching each database has cost it since its connection was first used, by the service's name."""
        return {service.name: sentinel.cost for service, sentinel in self._sentinels.items()}

    async def adopt(self, services: Mapping[str, Service]) -> None:
        """Close what belongs to services that are gone or changed."""
        for service in [known for known in self._sentinels if services.get(known.name) != known]:
            await self._sentinels.pop(service).close()

    async def close(self) -> None:
        await self.adopt({})
        await self._http.close()

    def _sentinel(self, service: Service) -> PgSentinel:
        assert service.dsn is not None
        sentinel = self._sentinels.get(service)
        if sentinel is None:
            sentinel = self._sentinels[service] = PgSentinel(service.dsn, service.canary_dsn, self._clock)
        return sentinel
