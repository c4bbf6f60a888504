"""Every plugin by name: the built-in tuples, and what third parties register through entry points."""

from collections.abc import Mapping
from dataclasses import dataclass

import alerts
import checks
import runbook
from monitor import plugins
from monitor.domain import Guide
from monitor.errors import PluginError
from monitor.plugins import AnyCheck, AnyNotifier, AnyOperation, Check, Notifier, RunbookEntry


@dataclass(frozen=True, slots=True)
class Registry:
    """What can be used. ``errors`` are third-party plugins that cannot; they do not disturb the others."""

    checks: Mapping[str, AnyCheck]
    notifiers: Mapping[str, AnyNotifier]
    runbook: Mapping[str, RunbookEntry]
    errors: tuple[PluginError, ...] = ()

    @property
    def guides(self) -> dict[str, Guide]:
        """What the runbook says first, by incident code."""
        return {code: entry.guide for code, entry in self.runbook.items()}

    @property
    def operations(self) -> dict[str, AnyOperation]:
        """Every operation of every runbook entry, by name."""
        return {operation.name: operation for entry in self.runbook.values() for operation in entry.operations}


def load_registry() -> Registry:
    """Collect all plugins of this installation."""
    found_checks, check_errors = plugins.collect(plugins.CHECKS, checks.BUILTINS, Check)
    found_notifiers, notifier_errors = plugins.collect(plugins.NOTIFIERS, alerts.BUILTINS, Notifier)
    found_runbook, runbook_errors = plugins.collect(plugins.RUNBOOK, runbook.BUILTINS, RunbookEntry)
    return Registry(found_checks, found_notifiers, found_runbook, check_errors + notifier_errors + runbook_errors)
