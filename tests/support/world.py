"""Settings, checks and channels for tests of the running parts: real plugins, whose behaviour the test holds in its hand."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from monitor.config.settings import Channel, CheckInstance, Settings
from monitor.domain import AlertPolicy, EscalationStep, FindingKind, Metric, Notification, Observed, Receipt, Severity
from monitor.plugins import Check, CheckContext, Notifier, NotifyContext, PluginConfig, Service

DOWN = FindingKind("ServiceDown", Severity.P1, "INC-001", "The service does not answer.")
UP = Metric("monitor_test_up", "Whether it is up.")


class ManualClock:
    """Time that moves only when told."""

    def __init__(self, now: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def set_by(self, seconds: float) -> None:
        """Somebody, or NTP, sets the wall clock: no time passes."""
        self._now += timedelta(seconds=seconds)


@dataclass
class Inbox:
    """A channel's far end: keeps what arrived; ``answer`` may raise what a provider would."""

    arrived: list[Notification] = field(default_factory=list)
    answer: Callable[[Notification], Awaitable[None]] | None = None

    async def send(self, ctx: NotifyContext, cfg: PluginConfig, notification: Notification) -> Receipt:
        if self.answer is not None:
            await self.answer(notification)
        self.arrived.append(notification)
        return Receipt(f"ref-{notification.id}")

    def said(self) -> list[str]:
        return [notification.transition.value for notification in self.arrived]


Look = Callable[[CheckContext], Awaitable[Observed]]


def instance(look: Look, *, name: str = "look", service: str = "auth", timeout_s: float = 5.0, every_s: float = 15.0) -> CheckInstance:
    async def run(ctx: CheckContext, cfg: PluginConfig) -> Observed:
        return await look(ctx)

    declared = Check(
        name=name, help="A check of the tests.", config=PluginConfig, metrics=(UP,), finds=(DOWN,), needs=(), run=run, blind=""
    )
    return CheckInstance(
        key=f"{name}/{service}",
        name=name,
        check=declared,
        service=Service(name=service),
        config=PluginConfig(),
        every_s=every_s,
        timeout_s=timeout_s,
        recheck_s=1.0,
        policy=AlertPolicy(fail_after=2, recover_after=2, blind_after=2),
    )


def settings(folder: Path, *instances: CheckInstance, **inboxes: Inbox) -> Settings:
    """Settings whose P1 tells the first inbox at once and the next ones 15 minutes apart."""
    channels = {
        name: Channel(name, Notifier(name=name, help="An inbox.", config=PluginConfig, send=inbox.send), PluginConfig())
        for name, inbox in inboxes.items()
    }
    chain = tuple(EscalationStep(900.0 * number, name, (name,)) for number, name in enumerate(channels))
    return Settings(
        source=folder / "config.toml",
        listen_host="127.0.0.1",
        listen_port=0,
        external_url="http://monitor.test",
        state_url=f"sqlite:///{folder / 'monitor.db'}",
        timezone=ZoneInfo("Europe/Berlin"),
        token=None,
        services={i.service.name: i.service for i in instances},
        instances=tuple(instances),
        channels=channels,
        escalation=dict.fromkeys(Severity, chain),
        daily_report=None,
        history_days=14,
    )


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait for a condition, looking often. Fails the test when it does not come true in time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def until_async(look: Callable[[], Awaitable[object]], *, within_s: float = 20.0) -> None:
    """Wait until an asynchronous look sees something. Fails the test when it does not in time."""
    async with asyncio.timeout(within_s):
        while not await look():
            await asyncio.sleep(0.05)
