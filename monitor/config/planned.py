"""What is planned to be quiet, and what foreign alerts mean: maintenance windows, inhibition rules, ``[alertmanager]``."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from alerts.matchers import matches_everything, parse_matcher
from alerts.muting import Inhibition, Window
from alerts.posted import PostedPolicy
from monitor.config.document import Document
from monitor.config.lines import KeyPath
from monitor.config.model import AlertmanagerTable, InhibitTable, MaintenanceTable
from monitor.config.people import local_moment
from monitor.config.validate import validate
from monitor.domain import Matcher, Severity


def build_windows(document: Document, timezone: ZoneInfo) -> tuple[Window, ...]:
    found = []
    for name, at, raw in document.named_tables(("maintenance",)):
        table = validate(document, MaintenanceTable, raw, at)
        if table:
            found.append(_window(document, at, name, table, table.timezone or timezone))
    return tuple(found)


def build_inhibitions(document: Document) -> tuple[Inhibition, ...]:
    raw = document.data.get("inhibit", [])
    if not isinstance(raw, list):
        document.add(("inhibit",), "must be written [[inhibit]], once for each rule", "")
        return ()
    found = []
    for position, rule in enumerate(raw):
        at: KeyPath = ("inhibit", position)
        table = validate(document, InhibitTable, rule, at) if isinstance(rule, dict) else None
        if table:
            source, target = _matchers(document, (*at, "source"), table.source), _matchers(document, (*at, "target"), table.target)
            found.append(Inhibition(source, target, tuple(table.equal)))
    return tuple(found)


def build_posted(document: Document) -> PostedPolicy:
    """How alerts that others send become ours; the defaults when the table is missing or broken."""
    at: KeyPath = ("alertmanager",)
    table = validate(document, AlertmanagerTable, document.table(at), at) or AlertmanagerTable()
    severities = {said: Severity[meant] for said, meant in table.severities.items()}
    return PostedPolicy(severities, Severity[table.default], tuple(table.group_by), timedelta(seconds=table.resolve_after))


def _window(document: Document, at: KeyPath, name: str, table: MaintenanceTable, timezone: ZoneInfo) -> Window:
    matchers = _matchers(document, (*at, "matchers"), table.matchers)
    if matchers and matches_everything(matchers):
        document.add((*at, "matchers"), "matches every alert there is", "name at least one label that must have a value")
    starts = local_moment(table.starts, timezone) if table.starts else None
    ends = local_moment(table.ends, timezone) if table.ends else None
    if table.schedule is None:
        if starts is None or ends is None:
            document.add((*at, "starts"), "write starts and ends, or schedule and lasts", "")
        if table.lasts is not None:
            document.add((*at, "lasts"), "belongs to a schedule", "write schedule, or leave it out")
    else:
        if table.lasts is None:
            document.add((*at, "lasts"), "is required and missing: how long does each opening last?", 'lasts = "2h"')
        _check_schedule(document, (*at, "schedule"), table.schedule, timezone)
    if starts is not None and ends is not None and starts >= ends:
        document.add((*at, "ends"), "must be later than starts", "")
    return Window(name, matchers, starts, ends, table.schedule or "", timedelta(seconds=table.lasts or 0), timezone)


def _check_schedule(document: Document, at: KeyPath, schedule: str, timezone: ZoneInfo) -> None:
    try:
        next(CronSim(schedule, datetime(2026, 1, 1, tzinfo=UTC).astimezone(timezone)))
    except (CronSimError, StopIteration) as exc:
        document.add(at, f"the schedule is none that cron knows: {exc}", '"0 2 * * 0" is every Sunday at 02:00')


def _matchers(document: Document, at: KeyPath, written: Iterable[str]) -> tuple[Matcher, ...]:
    found = []
    for position, text in enumerate(written):
        try:
            found.append(parse_matcher(text))
        except ValueError as exc:
            document.add((*at, position), str(exc), "")
    return tuple(found)
