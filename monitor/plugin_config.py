"""What plugins write their configuration with: durations, secrets, paths, and the base of every configuration."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

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
