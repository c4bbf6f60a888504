"""The reference of ``config.toml``, generated from the declarations: ``python -m monitor.config.docs > docs/configuration.md``.

Owns wording and layout only; keys, kinds, defaults and meanings come from the models of the tables and of the plugins.
"""

import sys
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from zoneinfo import ZoneInfo

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import alerts
import checks
from monitor.config import values
from monitor.config.model import (
    AlertmanagerTable,
    BusinessHoursTable,
    ChannelTable,
    CheckTable,
    ContactTable,
    DailyTable,
    DeadmanTable,
    InhibitTable,
    MaintenanceTable,
    MonitorTable,
    ResponseTable,
    RotationTable,
    ServiceTable,
    SeverityTable,
    StepTable,
)
from monitor.plugins import AnyCheck, AnyNotifier, Duration, LocalPath, Secret

_INTRODUCTION = """\
# Configuration

Generated from the declarations by `python -m monitor.config.docs > docs/configuration.md`; a test fails when it is stale.

One TOML file, `config.toml` unless `--config FILE` or `MONITOR_CONFIG` names another, at most 1 MiB. `monitor config check` reads it
and says everything that is wrong at once: file, line, key, what was expected, the nearest valid name. A running monitor reads it again
on SIGHUP or `POST /-/reload`, and keeps what it has when the new file has a problem.

How values are written:

- A **duration** is text such as `"250ms"`, `"15s"`, `"5m"`, `"1h30m"`, `"14d"`, or a number of seconds.
- A **secret** is `{env = "NAME"}`, an environment variable, or `{file = "path"}`, a file with nothing else in it, which nobody but its
  owner and its group can read. White space around it is dropped. Text in its place is refused, and no message ever shows a secret.
- A **path** is relative to the folder of the configuration file.
- Names of services, checks and channels have 1 to 63 letters, digits, dots, dashes or underscores.

Unknown tables and keys are errors. Every service, check, notifier and channel that is named must exist.
"""
_PLACES = (
    ("[monitor]", MonitorTable, "The monitor itself. The table may be left out."),
    ("[services.NAME]", ServiceTable, "One watched thing each. Checks say which of these keys they need."),
)
_CHECKS = """\
One check on each of its services, under a name of your choice. The keys below, and the check's own. A check that is named
as its table needs no `check`; the same check may stand in several tables."""
_HOURS = "When people are at work, for severity rules. The table may be left out."
_SEVERITY = """\
Rules that change how bad a finding is, tried in their order; the first that fits decides. A severity that rises while an incident is
open pages again; one that falls never does so silently: the incident keeps its worst."""
_ESCALATION = """\
Who is told of an incident that nobody acknowledges. `P1`, `P2`, `P3` and `P4` are all required, each a list of at least one step in
ascending order of `after`: `P1 = [{after = "0s", who = "on-call", channels = ["oncall"]}, …]`. An incident keeps the steps that it
began with; who is on call is asked when a step fires."""
_PEOPLE = "One person each, with everything that reaches them. Only for escalation steps that name `contacts`."
_ROTATIONS = """\
Contacts that take turns, handed over by the wall clock of a time zone, in summer as in winter. `monitor oncall` shows who is, and
who will be."""
_RESPONSE = "`P1` to `P4`: what is promised once people are told, and what follows when it does not come. Every table and key is optional."
_MAINTENANCE = """\
Planned work. Alerts that match tell nobody while a window is open; their incidents open, are shown and end as always, and ask people
when the window closes before the incident does. Either `starts` and `ends`, or `schedule` and `lasts`."""
_ALERTMANAGER = """\
How alerts become incidents that Prometheus or amtool send to `/api/v2/alerts`, by the token of `[monitor]`. They take the same way as
our own: escalation, silences, acknowledgement. The table may be left out."""
_DEADMAN = """\
Who watches the monitor? A service outside that waits for its beats. It beats only while it does its work: the state can be written, the
loop is on time, no escalation is overdue, no notification waits untried, and people are reached: it is silent when of a P1 or P2 that
nobody took nothing could be delivered for five minutes, and for `fallback_after` where a channel has a stand-in. Without the table, it
beats nowhere."""
_INHIBIT = """\
While something fires, something else tells nobody, as in Alertmanager. What services and checks depend on needs no rule here: see
`depends_on`."""
_KINDS: dict[object, str] = {
    marker.func: kind
    for annotated, kind in (
        (Secret, "secret"),
        (Duration, "duration"),
        (LocalPath, "path"),
        (values.Days, "duration"),
        (values.Url, "URL"),
        (values.Listen, "host:port"),
        (values.Timezone, "timezone"),
        (values.TimeOfDay, "time of day"),
        (values.State, "path, URL or secret"),
    )
    for marker in get_args(annotated)[1:]
}
_PLAIN: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    SecretStr: "text, kept secret",
    date: "date",
    datetime: "moment",
    ZoneInfo: "timezone",
}


def describe(all_checks: Iterable[AnyCheck], notifiers: Iterable[AnyNotifier]) -> str:
    """The whole reference in Markdown, for these plugins."""
    return "\n".join(_lines(all_checks, notifiers)).rstrip() + "\n"


def _lines(all_checks: Iterable[AnyCheck], notifiers: Iterable[AnyNotifier]) -> Iterator[str]:
    yield _INTRODUCTION
    for title, model, text in _PLACES:
        yield from _section(f"## `{title}`", text, model)
    yield from _section("## `[business_hours]`", _HOURS, BusinessHoursTable)
    yield from _section("## `[checks.NAME]`", _CHECKS, CheckTable)
    yield from _section("### `[[checks.NAME.severity]]`", _SEVERITY, SeverityTable)
    yield "The checks and their own keys, one page each:\n"
    for check in sorted(all_checks, key=lambda check: check.name):
        yield f"- [`{check.name}`](checks/{check.name}.md): {_first_paragraph(check.help)}"
    yield ""
    yield from _section("## `[channels.NAME]`", "One way to reach somebody each: the notifier, and the notifier's own keys.", ChannelTable)
    for notifier in notifiers:
        text = f"{_first_paragraph(notifier.help)} {_first_paragraph(notifier.config.__doc__ or '')}"
        yield from _section(f"### Notifier `{notifier.name}`", text.strip(), notifier.config)
    yield from _section("## `[contacts.NAME]`", _PEOPLE, ContactTable)
    yield from _section("## `[rotations.NAME]`", _ROTATIONS, RotationTable)
    yield from _section("## `[escalation]`", _ESCALATION, StepTable)
    yield from _section("## `[response.P1]`", _RESPONSE, ResponseTable)
    yield from _section("## `[maintenance.NAME]`", _MAINTENANCE, MaintenanceTable)
    yield from _section("## `[alertmanager]`", _ALERTMANAGER, AlertmanagerTable)
    yield from _section("## `[deadman]`", _DEADMAN, DeadmanTable)
    yield from _section("## `[[inhibit]]`", _INHIBIT, InhibitTable)
    yield from _section("## `[reports.daily]`", "The daily checklist. Without the table, none is sent.", DailyTable)


def _section(title: str, text: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"{title}\n\n{text}\n"
    yield from table_of(model)


def table_of(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a model as a Markdown table, those of tables inside it too; nothing when it has none."""
    if model.model_fields:
        yield "| key | kind | default | meaning |\n|---|---|---|---|"
        yield from _rows(model, "")
        yield ""


def _rows(model: type[BaseModel], place: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{place}{field.alias or name}"
        cells = (f"`{key}`", kind_of(field.annotation, field.metadata), _default(field), field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        for inner in _tables_in(field.annotation):
            yield from _rows(inner, f"{key}.")


def _tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, directly or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        if argument is not Ellipsis:
            yield from _tables_in(argument)


def kind_of(annotation: Any, metadata: Iterable[object] = ()) -> str:
    """What is written for an annotation, in plain words."""
    for marker in metadata:
        kind = _KINDS.get(getattr(marker, "func", None))
        if kind:
            return kind
    if get_origin(annotation) is Annotated:
        inner, *rest = get_args(annotation)
        return kind_of(inner, rest)
    return _PLAIN.get(annotation) or _composed_kind(annotation, get_args(annotation))


def _composed_kind(annotation: Any, arguments: tuple[Any, ...]) -> str:
    origin = get_origin(annotation)
    if origin in {Union, UnionType}:
        return " or ".join(kind_of(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return " or ".join(f'`"{argument}"`' for argument in arguments)
    if origin in {list, tuple, set, frozenset}:
        return f"list of {kind_of(arguments[0])}"
    if origin is dict:
        return f"table of {kind_of(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default is PydanticUndefined or default in ({}, [], (), ""):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float) and kind_of(field.annotation, field.metadata) == "duration":
        return f'`"{show_duration(default)}"`'
    if isinstance(default, list | tuple) and not isinstance(default, values.Address):
        return f"`{list(default)}`"
    return f"`{default:.12g}`" if isinstance(default, int | float) else f'`"{default}"`'


def show_duration(seconds: float) -> str:
    """A duration as it is written in the file: ``30m``, ``1.5s``."""
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size_s and seconds % size_s == 0:
            return f"{seconds / size_s:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


if __name__ == "__main__":
    sys.stdout.write(describe(checks.BUILTINS, alerts.BUILTINS))
