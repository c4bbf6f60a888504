"""Every built-in notifier keeps the contract of ``monitor.plugins``."""

import inspect

import pytest

import alerts
from monitor.plugins import NOTIFIERS, AnyNotifier, Notifier, PluginConfig, collect


@pytest.mark.parametrize("plugin", alerts.BUILTINS, ids=lambda plugin: plugin.name)
def test_a_builtin_declares_itself(plugin: AnyNotifier) -> None:
    assert plugin.help.endswith(".")
    assert issubclass(plugin.config, PluginConfig)
    assert plugin.config.__doc__
    assert inspect.iscoroutinefunction(plugin.send)
    assert list(inspect.signature(plugin.send).parameters) == ["ctx", "cfg", "notification"]


def test_the_builtins_are_collected_without_a_conflict() -> None:
    plugins, _ = collect(NOTIFIERS, alerts.BUILTINS, Notifier)
    assert {"pagerduty", "slack", "email"} <= plugins.keys()


def test_the_contract_is_at_hand_for_authors() -> None:
    assert all(hasattr(alerts, name) for name in alerts.__all__)
