"""The settings the running program goes by: frozen values, every reference resolved, every number in seconds.

Built from ``config.toml`` by :func:`monitor.config.load`; nothing in here is validated again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from alerts.muting import Inhibition, Window
from alerts.oncall import People
from alerts.posted import PostedPolicy
from alerts.severity import SeverityRule
from monitor.domain import AlertPolicy, EscalationStep, ResponsePolicy, Severity
from monitor.plugins import AnyCheck, AnyNotifier, PluginConfig, Service


@dataclass(frozen=True, slots=True)
class CheckInstance:
    """One check on one service: what the scheduler runs."""

    key: str
    """``"<name>/<service>"``, unique."""
    name: str
    """Name of the table ``[checks.NAME]``."""
    check: AnyCheck
    service: Service
    config: PluginConfig
    every_s: float
    timeout_s: float
    recheck_s: float
    """How soon to look again after a bad run."""
    policy: AlertPolicy
    severities: tuple[SeverityRule, ...] = ()
    """The first rule that fits a finding decides its severity."""
    upstream: frozenset[str] = frozenset()
    """The service and all that it depends on, near and far: what fells one of them explains what is found here."""
    depends_on: frozenset[str] = frozenset()
    """Keys of the check instances whose alerts explain what is found here."""
    linger_s: float = 0.0
    """So long after its cause is over, what is found here is still its echo."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to reach somebody: ``[channels.NAME]``."""

    name: str
    notifier: AnyNotifier
    config: PluginConfig
    fallback: str | None = None
    """Another channel that is told when this one could not be."""
    fallback_after_s: float = 300.0
    digest_from: int | None = 20
    """How many incidents it tells one by one within a minute; the others are told together. None: all of them."""


@dataclass(frozen=True, slots=True)
class DailyReport:
    """When and where the daily checklist is sent; ``at`` is local time in the configured timezone."""

    at: time
    channel: str


@dataclass(frozen=True, slots=True)
class Settings:
    """One configuration, whole."""

    source: Path
    """The file it came from, absolute."""
    listen_host: str
    listen_port: int
    external_url: str
    """How people reach the monitor, for links in notifications; without a trailing slash."""
    state_url: str = field(repr=False)
    """SQLAlchemy URL; may hold a password, so it is never shown."""
    timezone: ZoneInfo
    token: SecretStr | None
    services: Mapping[str, Service]
    instances: tuple[CheckInstance, ...]
    channels: Mapping[str, Channel]
    escalation: Mapping[Severity, tuple[EscalationStep, ...]]
    """A chain for every severity, its steps in ascending order of time."""
    daily_report: DailyReport | None
    history_days: int
    responses: Mapping[Severity, ResponsePolicy] = field(default_factory=dict)
    """What is promised for a severity, and what follows when it does not come."""
    people: People = field(default_factory=People)
    """Who is behind the steps' contacts and rotations."""
    windows: tuple[Window, ...] = ()
    """Planned maintenance."""
    inhibitions: tuple[Inhibition, ...] = ()
    deadman_url: SecretStr | None = None
    """Where the dead man's switch beats, if anywhere."""
    deadman_every_s: float = 60.0
    posted: PostedPolicy = field(default_factory=PostedPolicy)
    """How alerts that others send become ours."""
