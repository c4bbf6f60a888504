"""One contract over every plugin that ships: names, help, metrics, findings, configuration."""

import inspect
import re
from dataclasses import fields

import pytest
from pydantic import ValidationError

import alerts
import checks
import runbook
from monitor.config.model import CheckTable
from monitor.domain import FindingKind, Guide, Metric
from monitor.plugins import AnyCheck, AnyNotifier, AnyOperation, Check, Notifier, Operation, PluginConfig, RunbookEntry, Service

CHECKS = [pytest.param(check, id=check.name) for check in checks.BUILTINS]
NOTIFIERS = [pytest.param(notifier, id=notifier.name) for notifier in alerts.BUILTINS]
ENTRIES = [pytest.param(entry, id=entry.name) for entry in runbook.BUILTINS]
OPERATIONS = [pytest.param(operation, id=operation.name) for entry in runbook.BUILTINS for operation in entry.operations]
METRICS = [pytest.param(metric, id=metric.name) for check in checks.BUILTINS for metric in check.metrics]
FINDINGS = [pytest.param(kind, id=kind.name) for check in checks.BUILTINS for kind in check.finds]

BASE_UNITS = ("seconds", "bytes", "ratio", "celsius", "meters", "volts", "amperes", "joules", "grams")
OTHER_UNITS = r"(milli|micro|nano)seconds|ms|minutes?|hours?|days?|weeks?|kilobytes|[kmg]b|[kmg]i?bytes|percent|bits"
IDS = r"(.*_)?(id|ids|uuid|pid|query|queryid|url|uri|path|message|text|user|email|ip|address|token|error)"
CODES = {entry.guide.code for entry in runbook.BUILTINS}


def assert_sentences(text: str) -> None:
    assert text, "help is missing"
    assert text[0].isupper() or not text[0].isalpha(), text
    assert text.rstrip().endswith("."), text


def assert_config(config: type[PluginConfig]) -> None:
    assert issubclass(config, PluginConfig)
    assert config.model_config["extra"] == "forbid"
    assert config.model_config["frozen"]
    assert config.model_config["hide_input_in_errors"]
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in config.model_fields)
    required = [name for name, field in config.model_fields.items() if field.is_required()]
    with pytest.raises(ValidationError):
        config.model_validate({"no_such_key": 1})
    if not required:
        defaults = config()
        assert config.model_validate(defaults.model_dump()) == defaults, "defaults must be valid"


def assert_async(function: object, *parameters: str) -> None:
    assert inspect.iscoroutinefunction(function)
    assert len(inspect.signature(function).parameters) == len(parameters)


@pytest.mark.parametrize("check", CHECKS)
def test_check(check: AnyCheck) -> None:
    assert isinstance(check, Check)
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", check.name)
    assert_sentences(check.help)
    assert_sentences(check.blind)
    assert_config(check.config)
    assert_async(check.run, "ctx", "cfg")
    assert set(check.needs) <= {field.name for field in fields(Service)} - {"name"}
    assert_sentences(check.why)
    assert not check.privileges or check.privileges.rstrip().endswith((".", "`"))
    assert check.metrics
    assert check.finds
    shadowed = set(check.config.model_fields) & set(CheckTable.model_fields)
    assert not shadowed, "keys that every check table has already"


@pytest.mark.parametrize("metric", METRICS)
def test_metric(metric: Metric) -> None:
    assert re.fullmatch(r"monitor_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert_sentences(metric.help)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(rf"_({OTHER_UNITS})(_total)?$", metric.name), "base units only"
    words = metric.name.removesuffix("_total").split("_")
    assert not set(words[:-1]) & set(BASE_UNITS), "the unit comes last"
    for label in metric.labels:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", label)
        assert not re.fullmatch(IDS, label), "labels come from configuration, never from data"
        assert label not in {"service", "check", "job", "instance", "le", "quantile"}, "the exposition's own"


@pytest.mark.parametrize("kind", FINDINGS)
def test_finding(kind: FindingKind) -> None:
    assert re.fullmatch(r"([A-Z][a-z0-9]+)+", kind.name)
    assert_sentences(kind.help)
    assert kind.incident is None or kind.incident in CODES


def test_names_are_unique() -> None:
    for plugins in (checks.BUILTINS, alerts.BUILTINS, runbook.BUILTINS):
        names = [plugin.name for plugin in plugins]
        assert len(set(names)) == len(names)
    kinds = [kind.name for check in checks.BUILTINS for kind in check.finds]
    assert len(set(kinds)) == len(kinds), "an alert's name tells its check"
    metrics = [metric.name for check in checks.BUILTINS for metric in check.metrics]
    assert len(set(metrics)) == len(metrics), "a metric belongs to one check"
    operations = [operation.name for entry in runbook.BUILTINS for operation in entry.operations]
    assert len(set(operations)) == len(operations)


@pytest.mark.parametrize("notifier", NOTIFIERS)
def test_notifier(notifier: AnyNotifier) -> None:
    assert isinstance(notifier, Notifier)
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", notifier.name)
    assert_sentences(notifier.help)
    assert_config(notifier.config)
    assert_async(notifier.send, "ctx", "cfg", "notification")


@pytest.mark.parametrize("entry", ENTRIES)
def test_runbook_entry(entry: RunbookEntry) -> None:
    assert isinstance(entry, RunbookEntry)
    assert isinstance(entry.guide, Guide)
    assert re.fullmatch(r"INC-\d{3}", entry.guide.code)
    assert entry.guide.title.isprintable()
    assert entry.guide.title
    assert entry.guide.first_step.isprintable()
    assert entry.guide.first_step
    if entry.diagnose is not None:
        assert_async(entry.diagnose, "ctx")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(operation: AnyOperation) -> None:
    assert isinstance(operation, Operation)
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", operation.name)
    assert_sentences(operation.help)
    assert_config(operation.params)
    assert_async(operation.plan, "ctx", "params")
    assert_async(operation.verify, "ctx", "plan")
