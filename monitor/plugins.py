"""The contracts of plugins: what a check, a notifier and a runbook entry declare, and what each is handed.

A plugin is a function with a frozen declaration. It is called once, returns a value, retries nothing and logs no result.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pydantic import SecretStr

from monitor.clock import Clock
from monitor.domain import (
    Diagnosis,
    Digest,
    FindingKind,
    Guide,
    Metric,
    Notification,
    Observed,
    Plan,
    Receipt,
    Upkeep,
)
from monitor.errors import PluginError
from monitor.plugin_config import (
    ConfigT,
    Duration,
    LocalPath,
    PingedConfig,
    PluginConfig,
    Secret,
    SecretSources,
    parse_duration_s,
    read_secret,
)
from monitor.probes_contract import Heartbeats, Host, HttpProbe, LogReader, Postgres

# --- what is watched --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """One watched thing, as ``[services.NAME]`` describes it."""

    name: str
    url: str | None = None
    """Base URL, without a trailing slash."""
    dsn: SecretStr | None = None
    """PostgreSQL: the monitor's own role (pg_monitor)."""
    canary_dsn: SecretStr | None = None
    """PostgreSQL: a plain role with the limits of the applications, for the canary login."""
    fix_dsn: SecretStr | None = None
    """PostgreSQL: the role that may apply runbook plans. Without it, nothing can be applied."""
    log: str | None = None
    """Path of the service's log file."""
    error_log: str | None = None
    access_log: str | None = None
    """Path of the access log, of a web server."""
    instances: tuple[str, ...] = ()
    """Base URLs of the single instances behind ``url``."""
    depends_on: tuple[str, ...] = ()
    """Names of the services without which this one cannot work."""

    def __hash__(self) -> int:
        return hash(self.name)  # equal ones have equal names; a context is looked up by it at every run


ONE_LINE_CHARS = 200


def one_line(text: str, *, limit: int = ONE_LINE_CHARS) -> str:
    """A stranger's text made fit to show: control, bidirectional and line-end characters become single spaces, the rest is cut."""
    if len(text) <= limit and text.isprintable() and "  " not in text and text[:1] != " " != text[-1:]:
        return text  # as nearly all are; a space is the only printable blank
    looked_at = text[: 4 * limit]
    if not looked_at.isprintable():
        looked_at = "".join(char if char.isprintable() else " " for char in looked_at)
    shown = " ".join(looked_at.split())
    return shown if len(shown) <= limit and len(text) <= 4 * limit else shown[: limit - 1] + "…"


# --- checks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """What the previous run of the same instance that could look left behind; it survives restarts of the monitor."""

    at: datetime
    """When that run began, by the wall clock, which may have been set since."""
    value: Any
    """``Observed.keep`` after a round through JSON: tuples are lists, keys are text."""


class CheckContext(NamedTuple):
    """What a check may touch. Nothing else. A named tuple because each run gets one of its own."""

    service: Service
    clock: Clock
    http: HttpProbe
    pg: Postgres | None
    """Present when the service has a ``dsn``."""
    logs: LogReader
    host: Host
    heartbeats: Heartbeats
    kept: Kept | None = None
    """For checks that compare with their previous run; None at the first. A check holds no state of its own."""
    name: str = ""
    """Name of the instance's table ``[checks.NAME]``."""


@dataclass(frozen=True, slots=True)
class Check(Generic[ConfigT]):
    """A check's declaration. Build one with :func:`check`."""

    name: str
    help: str
    config: type[ConfigT]
    metrics: tuple[Metric, ...]
    finds: tuple[FindingKind, ...]
    needs: tuple[str, ...]
    """Fields of :class:`Service` that must be set, e.g. ``("url",)`` or ``("dsn",)``."""
    run: Callable[[CheckContext, ConfigT], Awaitable[Observed]]
    blind: str
    """What BLIND means for this check, for the generated documentation."""
    why: str = ""
    """Why this is looked at: what goes wrong for users when nobody does. One to three sentences, for the documentation."""
    privileges: str = ""
    """What the check needs to be allowed to see, and how to grant it; empty when nothing special."""


AnyCheck = Check[Any]


def check(
    name: str,
    *,
    config: type[ConfigT],
    metrics: Sequence[Metric] = (),
    finds: Sequence[FindingKind] = (),
    needs: Sequence[str] = (),
    blind: str = "",
    why: str = "",
    privileges: str = "",
) -> Callable[[Callable[[CheckContext, ConfigT], Awaitable[Observed]]], Check[ConfigT]]:
    """Declare ``async def f(ctx, cfg) -> Observed`` a check. Its docstring is its help. Importing registers nothing.

    The function returns what it saw; it raises :class:`monitor.errors.CannotLook` when it could not look. Deadlines, timing, caps
    and logging belong to the runner.
    """

    def declare(run: Callable[[CheckContext, ConfigT], Awaitable[Observed]]) -> Check[ConfigT]:
        return Check(
            name=name,
            help=(run.__doc__ or "").strip(),
            config=config,
            metrics=tuple(metrics),
            finds=tuple(finds),
            needs=tuple(needs),
            run=run,
            blind=blind,
            why=why,
            privileges=privileges,
        )

    return declare


# --- notifiers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotifyContext:
    """What a notifier is handed. Delivery enforces ``deadline_s`` too, so a notifier that hangs is abandoned."""

    clock: Clock
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Digesting(Generic[ConfigT]):
    """How a notifier tells many incidents at once. Without it, each is told alone however many there are."""

    send: Callable[[NotifyContext, ConfigT, Digest], Awaitable[Receipt]]
    """Sends one digest once, and later what became of its incidents (``digest.follows``). Raises ``DeliveryError``."""
    gather_s: float = 10.0
    """How long a digest gathers before it is sent."""
    most: int = 10_000
    """Most incidents in one."""


@dataclass(frozen=True, slots=True)
class Notifier(Generic[ConfigT]):
    """A notifier's declaration. Build one with :func:`notifier`."""

    name: str
    help: str
    config: type[ConfigT]
    send: Callable[[NotifyContext, ConfigT, Notification], Awaitable[Receipt]]
    per_minute: float | None = None
    """How many notifications the provider takes in a minute through one channel, by its published limit."""
    digest: Digesting[ConfigT] | None = None
    upkeep: Upkeep | None = None
    wants_labels: bool = False


AnyNotifier = Notifier[Any]


def notifier(
    name: str,
    *,
    config: type[ConfigT],
    per_minute: float | None = None,
    digest: Digesting[ConfigT] | None = None,
    upkeep: Upkeep | None = None,
    wants_labels: bool = False,
) -> Callable[[Callable[[NotifyContext, ConfigT, Notification], Awaitable[Receipt]]], Notifier[ConfigT]]:
    """Declare ``async def send(ctx, cfg, notification) -> Receipt`` a notifier.

    It sends once and raises :class:`monitor.errors.DeliveryError` when it could not; delivery owns retries. ``digest`` declares how it
    tells many incidents at once.
    """

    def declare(send: Callable[[NotifyContext, ConfigT, Notification], Awaitable[Receipt]]) -> Notifier[ConfigT]:
        text = (send.__doc__ or "").strip()
        return Notifier(name, text, config, send, per_minute, digest, upkeep, wants_labels)

    return declare


# --- runbook ---------------------------------------------------------------------------------------------------------


class Logs(Protocol):
    """Read access to the log files named in the configuration."""

    async def matching(self, path: str, text: str, *, limit: int) -> tuple[str, ...]:
        """The last ``limit`` lines of ``path`` that contain ``text`` literally. Raises ``CannotLook``."""
        ...


@dataclass(frozen=True, slots=True)
class RunbookContext:
    """What diagnosis, planning and verification may touch: reading only."""

    service: Service
    clock: Clock
    pg: Postgres
    logs: Logs
    services: Mapping[str, Service]
    checks: Mapping[str, PluginConfig] = field(default_factory=dict)
    """How the checks on this service are configured, by the check's own name: a diagnosis uses the same limits."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[ConfigT]):
    """A fix: ``plan`` looks and returns data, ``verify`` looks again afterwards. Neither changes anything."""

    name: str
    help: str
    params: type[ConfigT]
    plan: Callable[[RunbookContext, ConfigT], Awaitable[Plan]]
    verify: Callable[[RunbookContext, Plan], Awaitable[Observed]]


AnyOperation = Operation[Any]


@dataclass(frozen=True, slots=True)
class RunbookEntry:
    """One incident of the runbook: what to say first, how to diagnose it, which operations may fix it."""

    guide: Guide
    diagnose: Callable[[RunbookContext], Awaitable[Diagnosis]] | None = None
    operations: tuple[AnyOperation, ...] = ()

    @property
    def name(self) -> str:
        return self.guide.code


# --- registry --------------------------------------------------------------------------------------------------------

CHECKS = "platform_monitor.checks"
NOTIFIERS = "platform_monitor.notifiers"
RUNBOOK = "platform_monitor.runbook"


class Named(Protocol):
    @property
    def name(self) -> str: ...


PluginT = TypeVar("PluginT", bound=Named)


def collect(group: str, builtins: Iterable[PluginT], kind: type[Any]) -> tuple[dict[str, PluginT], tuple[PluginError, ...]]:
    """All plugins of a group by name: the built-in tuple, then entry points.

    A third-party plugin that cannot be imported, is not a ``kind`` or takes a used name becomes an error beside the good ones.
    """
    plugins: dict[str, PluginT] = {plugin.name: plugin for plugin in builtins}
    errors: list[PluginError] = []
    for point in sorted(entry_points(group=group), key=lambda found: found.name):
        try:
            plugin: PluginT = point.load()
        except Exception as exc:  # noqa: BLE001 - a third party's import may raise anything
            errors.append(PluginError(f"plugin {point.value!r} of group {group} cannot be loaded: {exc!r}"))
            continue
        if not isinstance(plugin, kind):
            errors.append(PluginError(f"plugin {point.value!r} of group {group} is not a {kind.__name__}"))
        elif plugin.name in plugins:
            errors.append(PluginError(f"plugin {point.value!r} of group {group} takes the used name {plugin.name!r}"))
        else:
            plugins[plugin.name] = plugin
    return plugins, tuple(errors)


__all__ = [
    "CHECKS",
    "NOTIFIERS",
    "RUNBOOK",
    "AnyCheck",
    "AnyNotifier",
    "AnyOperation",
    "Check",
    "CheckContext",
    "ConfigT",
    "Digesting",
    "Duration",
    "Kept",
    "LocalPath",
    "Logs",
    "Named",
    "Notifier",
    "NotifyContext",
    "Operation",
    "PingedConfig",
    "PluginConfig",
    "PluginT",
    "RunbookContext",
    "RunbookEntry",
    "Secret",
    "SecretSources",
    "Service",
    "check",
    "collect",
    "notifier",
    "one_line",
    "parse_duration_s",
    "read_secret",
]
