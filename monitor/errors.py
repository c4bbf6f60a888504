"""The one tree of errors. Each message names place, cause and cure; a traceback never reaches a person."""

from dataclasses import dataclass


class MonitorError(Exception):
    """Base of every error this product raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration file. ``line`` is 1-based, or None when the key is missing."""

    file: str
    line: int | None
    key: str
    message: str
    """What is wrong and what was expected."""
    hint: str = ""
    """The nearest valid name, or the cure."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: {self.key}: {self.message}{hint}"


class ConfigError(MonitorError):
    """The configuration is unusable; carries all problems found, not only the first."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class CannotLook(MonitorError):
    """A check could not look: the run is BLIND, with this text as its reason."""


class DeliveryError(MonitorError):
    """A notifier could not deliver. ``retryable`` decides between another attempt and the dead letter."""

    def __init__(self, reason: str, *, retryable: bool, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class StoreError(MonitorError):
    """The state store cannot be opened, read or written."""


class PluginError(MonitorError):
    """A plugin's declaration is wrong, or its name is taken."""


class Refused(MonitorError):
    """A guarded action was refused; nothing was changed."""


class UsageError(MonitorError):
    """The command line asks for something that does not exist."""
