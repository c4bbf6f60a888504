"""When the state cannot be written: people hear of that, and of P1 findings meanwhile, straight through the channels, and hear the end.

Nothing here touches the store. What is known is in memory, from the moment at which the state failed, and is judged as always.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from alerts.decide import Known, Policy, decide
from alerts.fingerprint import incident_id
from alerts.muting import Muting
from monitor.clock import Clock
from monitor.config.settings import CheckInstance
from monitor.delivery import send
from monitor.domain import (
    Alert,
    AlertState,
    CheckResult,
    Decision,
    Incident,
    IncidentState,
    Link,
    Notification,
    Outcome,
    Receipt,
    Severity,
    Transition,
)
from monitor.engine import Engine
from monitor.errors import DeliveryError
from monitor.plugins import one_line

AFTER_S = 60.0
"""So long the state must have failed before anybody is told without it."""
CALM_S = 15.0
"""So long it must have worked before the failure counts as over."""
LOOK_EVERY_S = 1.0
TRY_AGAIN_S = 30.0
GROUP = "monitor/StateUnwritable"
FIRST_STEP = "df -h; monitor explain\nfree space, or bring the state's database back; nothing else is needed"

log = structlog.get_logger("monitor.emergency")


@dataclass(slots=True)
class _Case:
    """One thing told without the store: who has heard of it, and whether it is over."""

    incident: Incident
    told: dict[str, Receipt] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    """Channels that heard the end."""
    next_try: float = 0.0
    tries: int = 0

    @property
    def over(self) -> bool:
        return self.incident.state is IncidentState.RESOLVED

    @property
    def done(self) -> bool:
        return self.over and self.ended >= self.told.keys()


class Emergency:
    """``serve()`` until cancelled; ``trouble`` says why the state cannot be written now, or None. ``see`` takes every result meanwhile."""

    def __init__(self, engine: Engine, trouble: Callable[[], str | None], clock: Clock) -> None:
        self._engine = engine
        self._trouble = trouble
        self._clock = clock
        self._since: float | None = None
        self._last_seen = 0.0
        self._alerts: dict[str, Alert] = {}
        self._cases: dict[str, _Case] = {}

    @property
    def active(self) -> bool:
        """Whether people are told without the store."""
        return self._since is not None and self._clock.monotonic() - self._since >= AFTER_S

    async def serve(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Notice the beginning and the end, and tell whoever has not heard yet."""
        now, why = self._clock.monotonic(), self._trouble()
        if why is not None:
            self._last_seen = now
            if self._since is None:
                self._since = now
        elif self._since is not None and now - self._last_seen >= CALM_S:
            self._end()
        if self.active and why is not None and GROUP not in self._cases:
            log.error("the state has not been writable for too long: people are told without it", error=why)
            self._cases[GROUP] = _Case(self._own_incident(why))
        if self.active or self._since is None:
            due = [case for case in self._cases.values() if case.next_try <= now]
            await asyncio.gather(*(self._tell(case) for case in due))
        self._cases = {group: case for group, case in self._cases.items() if not case.done}

    def see(self, instance: CheckInstance, result: CheckResult) -> None:
        """Judge a result whose decision could not be kept: P1 findings only, and only what nobody was told of before."""
        if self._trouble() is not None and self._since is None:
            self._since = self._last_seen = self._clock.monotonic()
        if self._since is None or result.outcome is Outcome.BLIND:
            return
        now = self._clock.now()
        worst = tuple(finding for finding in result.observed.findings if (finding.severity or finding.kind.severity) is Severity.P1)
        judged = result._replace(observed=replace(result.observed, findings=worst))
        opened = {group: case.incident for group, case in self._cases.items() if not case.over and group != GROUP}
        policy = self._policy(instance)
        self._keep(decide(Known(tuple(self._alerts.values()), opened), judged, policy, now))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _keep(self, decided: Decision) -> None:
        for alert in decided.alerts:
            if alert.state is AlertState.RESOLVED:
                self._alerts.pop(alert.fingerprint, None)
            elif self._engine.firing.get(alert.fingerprint) is not Severity.P1:
                self._alerts[alert.fingerprint] = alert
        for incident in decided.incidents:
            known = self._cases.get(incident.group)
            mine = [alert.fingerprint for alert in self._alerts.values() if alert.group == incident.group]
            if known is not None:
                known.incident, known.next_try = incident, 0.0
            elif incident.muted:  # looked at anew with every run, until the window is over
                for fingerprint in mine:
                    del self._alerts[fingerprint]
            elif mine:
                self._cases[incident.group] = _Case(incident)

    def _policy(self, instance: CheckInstance) -> Policy:
        windows = Muting(windows=self._engine.settings.windows)
        return replace(self._engine.policy(instance.policy), muting=windows)

    def _end(self) -> None:
        """The state works again. What is still wrong is decided again, and goes on as an incident of its own."""
        log.warning("the state can be written again")
        self._since = None
        self._alerts.clear()
        for case in self._cases.values():
            case.next_try = 0.0
            if not case.over:
                case.incident = case.incident._replace(state=IncidentState.RESOLVED, resolved_at=self._clock.now())

    def _own_incident(self, why: str) -> Incident:
        settings, now = self._engine.settings, self._clock.now()
        return Incident(
            # the same key every time: whoever folds by it has one alert, however often this happens
            id=incident_id(f"{GROUP} {settings.external_url}", datetime.fromtimestamp(0, UTC)),
            group=GROUP,
            code=None,
            service="monitor",
            severity=Severity.P1,
            state=IncidentState.OPEN,
            title="The monitor cannot write its state",
            summary=one_line(f"checks go on in memory, P1 findings are sent directly, everything else waits: {why}", limit=500),
            evidence=(f"reason: {one_line(why, limit=300)}",),
            first_step=FIRST_STEP,
            opened_at=now,
            chain=settings.escalation[Severity.P1],
            chain_since=now,
        )

    async def _tell(self, case: _Case) -> None:
        case.next_try = self._clock.monotonic() + TRY_AGAIN_S
        if case.over:
            await asyncio.gather(*(self._send(case, name, Transition.RESOLVED) for name in case.told.keys() - case.ended))
            return
        wanted = self._targets(case)
        case.tries += 1
        await asyncio.gather(*(self._send(case, name, Transition.TRIGGERED) for name in wanted if name not in case.told))
        if case.told and not wanted - case.told.keys():
            case.next_try = float("inf")

    def _targets(self, case: _Case) -> set[str]:
        """The first of P1's steps that reaches anybody; every channel there is, once those have failed."""
        settings, now = self._engine.settings, self._clock.now()
        if case.tries and not case.told:
            return set(settings.channels)
        for step in settings.escalation[Severity.P1]:
            reached = [name for name in settings.people.reach(step, now).channels if name in settings.channels]
            if reached:
                return set(reached)
        return set(settings.channels)

    async def _send(self, case: _Case, name: str, transition: Transition) -> None:
        channel = self._engine.settings.channels.get(name)
        if channel is None:  # a reload took it away: nobody there can hear the end
            case.ended.add(name)
            return
        over = transition is Transition.RESOLVED
        notification = Notification(
            id=int(over),
            incident=case.incident._replace(told=tuple(case.told)),
            transition=transition,
            channel=name,
            dedup_key=case.incident.id,
            reason="the monitor's state can be written again" if over else "told directly: the monitor cannot write its state",
            created_at=case.incident.opened_at,
            attempts=case.tries,
            links=(Link("Monitor", self._engine.settings.external_url),),
            first_receipt=case.told.get(name),
        )
        try:
            receipt = await send(channel, notification, self._clock)
        except DeliveryError as exc:
            log.error("telling directly failed, will be tried again", channel=name, error=one_line(str(exc), limit=300))
            return
        if over:
            case.ended.add(name)
        else:
            case.told[name] = receipt
        log.warning("told directly", channel=name, transition=transition.value, incident=case.incident.id)
