"""Everything the monitor holds open towards what it watches: one HTTP probe, one sentinel per watched database."""

from collections.abc import Mapping

from monitor.clock import Clock
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Kept, PluginConfig, RunbookContext, Service
from monitor.probes.heartbeats import KnownHeartbeats
from monitor.probes.host import LocalHost
from monitor.probes.http import CurlProbe
from monitor.probes.logs import LogFiles
from monitor.probes.postgres import LOGIN_S, STATEMENT_S, Cost, PgSentinel
from monitor.probes_contract import Heartbeats

SHARED_UP_TO_S = 10.0
"""Checks with a timeout up to this, as all have that name none, share a database's held connection, where a statement takes 3 s at most."""
HELD_S = 90.0
"""A connection that a single check has for itself is given back when it was not used for so long."""


def statement_s(timeout_s: float) -> float:
    """What a statement of a check with this timeout may take: two logins have room beside it, so that the server gives up before we do."""
    return STATEMENT_S if timeout_s <= SHARED_UP_TO_S else timeout_s - 2 * LOGIN_S


class Outside:
    """Hands out contexts for checks and the runbook; a database's connection is opened at its first use.

    A check that was given more time than usual has a connection of its own, so that nobody waits behind its slow statements.
    """

    def __init__(self, clock: Clock, heartbeats: Heartbeats | None = None) -> None:
        self._clock = clock
        self._heartbeats = heartbeats or KnownHeartbeats()
        self._logs = LogFiles()
        self._host = LocalHost()
        self._http = CurlProbe(clock)
        self._sentinels: dict[tuple[Service, str, float], PgSentinel] = {}

    def check_context(
        self, service: Service, *, name: str = "", kept: Kept | None = None, timeout_s: float = SHARED_UP_TO_S
    ) -> CheckContext:
        """What a check on this service may touch. Raises ``CannotLook`` when the service's DSN is no connection string."""
        return CheckContext(
            service=service,
            clock=self._clock,
            http=self._http,
            pg=self._sentinel(service, name, timeout_s) if service.dsn is not None else None,
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
        costs: dict[str, Cost] = {}
        for (service, *_), sentinel in self._sentinels.items():
            costs[service.name] = costs.get(service.name, Cost()) + sentinel.cost
        return costs

    async def adopt(self, services: Mapping[str, Service]) -> None:
        """Close what belongs to services that are gone or changed."""
        for key in [key for key in self._sentinels if services.get(key[0].name) != key[0]]:
            await self._sentinels.pop(key).close()

    async def close(self) -> None:
        await self.adopt({})
        await self._http.close()

    def _sentinel(self, service: Service, name: str = "", timeout_s: float = SHARED_UP_TO_S) -> PgSentinel:
        assert service.dsn is not None
        alone = timeout_s > SHARED_UP_TO_S
        key = (service, name if alone else "", statement_s(timeout_s))
        sentinel = self._sentinels.get(key)
        if sentinel is None:
            held_s = HELD_S if alone else None
            sentinel = PgSentinel(service.dsn, service.canary_dsn, self._clock, timeout_s=key[2], held_s=held_s)
            self._sentinels[key] = sentinel
        return sentinel
