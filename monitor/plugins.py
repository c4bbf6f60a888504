"""The contracts of plugins: what a check, a notifier and a runbook entry declare, and what each is handed.

A plugin is a function with a frozen declaration. It is called once, returns a value, retries nothing and logs no result.
"""

import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from monitor.clock import Clock
from monitor.domain import (
    Diagnosis,
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
from monitor.probes_contract import Heartbeats, Host, HttpProbe, LogReader, Postgres

# --- configuration of plugins ----------------------------------------------------------------------------------------

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration_s(value: object) -> float:
    """Read ``"15s"``, ``"1h30m"``, ``"250ms"`` or a number of seconds. Raises ``ValueError`` saying what is expected."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and re.fullmatch(f"(?:{_DURATION.pattern})+", value.strip()):
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(value))
    else:
        raise ValueError('expected a duration such as "15s", "5m", "1h30m" or a number of seconds')
    if not 0 <= seconds < 10 * 365 * 86400:
        raise ValueError("a duration must be at least 0 and less than ten years")
    return seconds


Duration = Annotated[float, BeforeValidator(parse_duration_s)]
"""Seconds, written in configuration as ``"15s"``, ``"5m"``, ``"1h30m"``."""

_MAX_SECRET_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class SecretSources:
    """Where ``{env = …}`` and ``{file = …}`` are looked up: the validation context of a configuration."""

    environ: Mapping[str, str]
    folder: Path
    """Relative paths start here: the configuration file's folder."""


def read_secret(value: object, info: ValidationInfo) -> SecretStr:
    """Follow ``{env = "NAME"}`` or ``{file = "path"}``. Raises ``ValueError``, which never repeats what was written there."""
    sources = info.context if isinstance(info.context, SecretSources) else SecretSources(os.environ, Path())
    match value:
        case SecretStr():
            return value
        case {"env": str(name), **rest} if name and not rest:
            return SecretStr(_from_environment(name, sources.environ))
        case {"file": str(name), **rest} if name and not rest:
            return SecretStr(_from_file(sources.folder / name))
    raise ValueError('a secret is never written in the file: write {env = "NAME"} or {file = "path"}')


Secret = Annotated[SecretStr, BeforeValidator(read_secret)]
"""A secret, written in configuration as ``{env = "NAME"}`` or ``{file = "path"}``. Never empty."""


def _below_folder(value: str, info: ValidationInfo) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("expected the path of a file")
    return str(info.context.folder / value) if isinstance(info.context, SecretSources) else value


LocalPath = Annotated[str, AfterValidator(_below_folder)]
"""Path of a file, relative to the configuration file's folder."""


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    secret = environ.get(name, "").strip()
    if secret:
        return secret
    # Who pastes the secret itself where the name belongs must not find it in a log: only what looks like a name is repeated.
    shown = f"the environment variable {name}" if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) else "the environment variable named here"
    raise ValueError(f"{shown} is {'empty' if name in environ else 'not set'}")


def _from_file(path: Path) -> str:
    """The stripped content of a regular file that nobody but its owner and its group can read."""
    try:
        # Non-blocking, so that a pipe named by mistake does not hang the start.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_SECRET_BYTES + 1) if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else "not a valid path"
        raise ValueError(f"the secret's file cannot be read: {reason}") from None
    if content is None:
        raise ValueError("the secret's file cannot be read: it is not a regular file")
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ValueError(f"the secret's file is open to others (mode {stat.S_IMODE(status.st_mode):04o}): set its mode to 0600 or 0640")
    if len(content) > _MAX_SECRET_BYTES:
        raise ValueError(f"the secret's file is larger than {_MAX_SECRET_BYTES // 1024} KiB")
    try:
        secret = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("the secret's file is not UTF-8 text") from None
    if not secret:
        raise ValueError("the secret's file is empty")
    return secret


class PluginConfig(BaseModel):
    """Base of every plugin's configuration: frozen, unknown keys refused, values never echoed in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PingedConfig(PluginConfig):
    """Base of the configuration of checks that wait for pings: whoever knows the key may send them."""

    key: Secret = Field(description="What the job knows: it pings external_url/ping/KEY. At least 16 letters, digits, - and _.")

    @field_validator("key")
    @classmethod
    def _long_enough(cls, key: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", key.get_secret_value()):
            raise ValueError("the key of a heartbeat has 16 to 200 letters, digits, - and _: openssl rand -hex 16 makes one")
        return key


ConfigT = TypeVar("ConfigT", bound=PluginConfig)


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


def one_line(text: str, *, limit: int = 200) -> str:
    """A stranger's text made fit to show: control, bidirectional and line-end characters become single spaces, the rest is cut."""
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


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What a check may touch. Nothing else."""

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
class Notifier(Generic[ConfigT]):
    """A notifier's declaration. Build one with :func:`notifier`."""

    name: str
    help: str
    config: type[ConfigT]
    send: Callable[[NotifyContext, ConfigT, Notification], Awaitable[Receipt]]
    per_minute: float | None = None
    """How many notifications the provider takes in a minute through one channel, by its published limit."""
    upkeep: Upkeep | None = None


AnyNotifier = Notifier[Any]


def notifier(
    name: str, *, config: type[ConfigT], per_minute: float | None = None, upkeep: Upkeep | None = None
) -> Callable[[Callable[[NotifyContext, ConfigT, Notification], Awaitable[Receipt]]], Notifier[ConfigT]]:
    """Declare ``async def send(ctx, cfg, notification) -> Receipt`` a notifier.

    It sends once and raises :class:`monitor.errors.DeliveryError` when it could not; delivery owns retries.
    """

    def declare(send: Callable[[NotifyContext, ConfigT, Notification], Awaitable[Receipt]]) -> Notifier[ConfigT]:
        return Notifier(name=name, help=(send.__doc__ or "").strip(), config=config, send=send, per_minute=per_minute, upkeep=upkeep)

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
