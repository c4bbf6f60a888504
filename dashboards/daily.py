"""The runbook's five daily checks, answered from what the checks last saw. Pure: a frozen input becomes a frozen report.

A line is green only when somebody looked lately and found nothing; what nobody can answer says "not measured".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum

from dashboards.figures import connections, connections_text
from dashboards.wording import count, duration, environment, one_line, percent, segment
from monitor.domain import CheckResult, Incident, IncidentState, Outcome

STALE_AFTER_INTERVALS = 3
CONNECTIONS_LIMIT = 0.8

HEALTH, STUCK_JOBS, CONNECTIONS, LOGS, DISKS = "http_health", "stuck_jobs", "pg_connections", "log_errors", "disk"
"""The checks that answer a line."""


class LineState(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    BLIND = "could not look"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Watched:
    """One configured check instance: ``check`` is the plugin's name, whatever the instance is called."""

    instance: str
    check: str
    service: str
    every_s: float


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What one check instance saw in the period, in runs."""

    instance: str
    check: str
    service: str
    runs: int
    ok: int
    found: int
    blind: int


@dataclass(frozen=True, slots=True)
class DailyInput:
    """Everything the report is made of. ``incidents`` are those that were unresolved at any time of the period."""

    now: datetime
    timezone: tzinfo
    period_start: datetime
    period_end: datetime
    watched: tuple[Watched, ...]
    latest: Mapping[str, CheckResult]
    """The latest result by instance."""
    incidents: tuple[Incident, ...] = ()
    history: tuple[RunSummary, ...] = ()
    external_url: str = ""
    """Where the status page is, without a trailing slash; empty leaves the links out."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the checklist, in the runbook's words, with what was seen."""

    text: str
    state: LineState
    detail: str


@dataclass(frozen=True, slots=True)
class Told:
    """One incident of the period, for a person."""

    id: str
    severity: str
    title: str
    story: str
    url: str


@dataclass(frozen=True, slots=True)
class Availability:
    """One service over the period; ``share`` is "not measured" when no run of it could look."""

    service: str
    share: str
    detail: str
    state: LineState


@dataclass(frozen=True, slots=True)
class Report:
    """``title`` is the subject and carries the verdict; ``period_key`` names the period, so that it is sent once."""

    title: str
    period_key: str
    period: str
    lines: tuple[Line, ...]
    incidents: tuple[Told, ...]
    incident_summary: str
    availability: tuple[Availability, ...]
    external_url: str

    @property
    def state(self) -> LineState:
        """The worst of the lines."""
        return _worst(line.state for line in self.lines)


_BAD_FIRST = (LineState.FAIL, LineState.BLIND, LineState.NOT_MEASURED, LineState.PASS)


def daily(given: DailyInput) -> Report:
    """Make the report of one day."""
    lines = (
        Line("All services returning 200 on /health", *_answer(given, HEALTH, "INC-001", "service", "answering 200")),
        Line("No stuck jobs (> 30 min processing)", *_answer(given, STUCK_JOBS, "INC-003", "job table", "without a stuck job")),
        Line("Database connections < 80% of max", *_connections(given)),
        Line("No errors in last 24h logs", *_answer(given, LOGS, None, "log", "without an error")),
        Line("Disk space > 20% free", *_answer(given, DISKS, None, "host", "with more than 20 % free")),
    )
    incidents = sorted(given.incidents, key=lambda incident: (incident.severity, incident.opened_at, incident.id))
    start, end = (moment.astimezone(given.timezone) for moment in (given.period_start, given.period_end))
    return Report(
        title=f"Daily checklist {_day(end)}: {_verdict(lines)}",
        period_key=f"daily/{end.date().isoformat()}",
        period=f"{start:%a} {_day(start)} {start:%H:%M} to {end:%a} {_day(end)} {end:%H:%M} ({end.tzname()})",
        lines=lines,
        incidents=tuple(_told(incident, given) for incident in incidents),
        incident_summary=_incident_summary(given),
        availability=_availability(given),
        external_url=given.external_url,
    )


# --- the lines -------------------------------------------------------------------------------------------------------


def _answer(given: DailyInput, check: str, code: str | None, noun: str, good: str) -> tuple[LineState, str]:
    """One line from all instances of a check. Only findings of the runbook's ``code`` fail it, or any without one; others are mentioned."""
    instances = [watched for watched in given.watched if watched.check == check]
    if not instances:
        return LineState.NOT_MEASURED, f"no {check} check is configured"
    seen = [(watched, *_look(given, watched, code)) for watched in instances]
    state = _worst(state for _, state, _ in seen)
    details = [
        f"{one_line(watched.service, 80)}: {detail}"
        for wanted in _BAD_FIRST
        for watched, found, detail in seen
        if found is wanted and detail
    ]
    passing = sum(found is LineState.PASS for _, found, _ in seen)
    if state is LineState.PASS:
        details.insert(0, f"{count(passing, noun)} {good}")
    return state, _sentence(details)


def _look(given: DailyInput, watched: Watched, code: str | None) -> tuple[LineState, str]:
    """What the latest result of one instance says; a pass says only what else was found."""
    result = given.latest.get(watched.instance)
    if result is None:
        return LineState.NOT_MEASURED, "no result yet"
    age_s = (given.now - result.started_at).total_seconds() - result.duration_s
    if age_s > STALE_AFTER_INTERVALS * watched.every_s:
        return (
            LineState.BLIND,
            f"the last result is {duration(age_s)} old, and it should come every {duration(watched.every_s)}",
        )
    if result.outcome is Outcome.BLIND:
        return LineState.BLIND, one_line(result.error or "") or "no reason given"
    findings = result.observed.findings
    failing = [one_line(finding.summary) for finding in findings if code in (None, finding.kind.incident)]
    others = [one_line(finding.summary) for finding in findings if code not in (None, finding.kind.incident)]
    if failing or (result.outcome is Outcome.FOUND and not others):
        return LineState.FAIL, _sentence(failing + others) or "something was found"
    return LineState.PASS, f"but {_sentence(others)}" if others else ""


def _connections(given: DailyInput) -> tuple[LineState, str]:
    """Used of usable connections, in figures: at 80 % the line fails whatever the check's own threshold says."""
    state, detail = _answer(given, CONNECTIONS, "INC-002", "server", "below 80 %")
    figures = []
    for watched in given.watched:
        result = given.latest.get(watched.instance)
        if (
            watched.check != CONNECTIONS
            or result is None
            or _look(given, watched, "INC-002")[0] in {LineState.BLIND, LineState.NOT_MEASURED}
        ):
            continue
        counted = connections(result)
        if counted is None:
            figures.append(f"{one_line(watched.service, 80)}: the connections could not be counted")
            state = min(state, LineState.BLIND, key=_BAD_FIRST.index)
            continue
        figures.append(f"{one_line(watched.service, 80)}: {connections_text(*counted)}")
        if counted[0] >= CONNECTIONS_LIMIT * counted[1]:
            state = LineState.FAIL
    return state, _sentence(figures if state is LineState.PASS else [*figures, detail])


# --- the rest --------------------------------------------------------------------------------------------------------


def _availability(given: DailyInput) -> tuple[Availability, ...]:
    """Share of looks that found the service well: by its health check where it has one, else by all its checks."""
    plugin = {watched.instance: watched.check for watched in given.watched}
    by_service: dict[str, list[RunSummary]] = {watched.service: [] for watched in given.watched}
    for summary in given.history:
        by_service.setdefault(summary.service, []).append(summary)
    rows = []
    for service, summaries in sorted(by_service.items()):
        health = [summary for summary in summaries if plugin.get(summary.instance, summary.check) == HEALTH]
        rows.append(_share(one_line(service, 80), health or summaries, "health checks" if health else "looks"))
    return tuple(rows)


def _share(service: str, summaries: list[RunSummary], noun: str) -> Availability:
    ok, found, blind = (sum(getattr(summary, name) for summary in summaries) for name in ("ok", "found", "blind"))
    unseen = f", {blind:,} could not look" if blind else ""
    if not ok + found:
        return Availability(service, "not measured", f"no run could look{unseen}" if blind else "no runs", LineState.NOT_MEASURED)
    state = LineState.FAIL if found else LineState.BLIND if blind else LineState.PASS
    return Availability(service, percent(ok, ok + found), f"{ok:,} of {ok + found:,} {noun} well{unseen}", state)


def _told(incident: Incident, given: DailyInput) -> Told:
    opened = incident.opened_at.astimezone(given.timezone)
    until = incident.resolved_at or given.now
    story = [f"opened {opened:%a %H:%M}", f"{'lasted' if incident.resolved_at else 'still open after'} {_span(incident.opened_at, until)}"]
    if incident.acked_at is not None:
        story.append(
            f"acknowledged after {_span(incident.opened_at, incident.acked_at)} by {one_line(incident.acked_by or 'somebody', 80)}"
        )
    elif incident.resolved_at is None:
        story.append("acknowledged by nobody")
    url = f"{given.external_url}/incidents/{segment(incident.id)}" if given.external_url else ""
    return Told(incident.id, incident.severity.name, one_line(f"{incident.service}: {incident.title}"), ", ".join(story), url)


def _incident_summary(given: DailyInput) -> str:
    opened = sum(given.period_start <= incident.opened_at for incident in given.incidents)
    unresolved = sum(incident.state is not IncidentState.RESOLVED for incident in given.incidents)
    if not given.incidents:
        return "No incidents."
    return f"{count(opened, 'incident')} opened, {len(given.incidents) - unresolved} resolved, {unresolved} still open."


def _verdict(lines: tuple[Line, ...]) -> str:
    """``1 of 5 failing, 2 not measured``; passing is said only when nothing fails and nobody was blind."""
    number = {state: sum(line.state is state for line in lines) for state in LineState}
    failing, blind, unmeasured = (number[state] for state in _BAD_FIRST[:3])
    parts = [f"{failing} failing"] if failing else []
    parts += [f"{blind} could not look"] if blind else []
    parts = parts or ([f"{number[LineState.PASS]} passing"] if number[LineState.PASS] else [])
    parts += [f"{unmeasured} not measured"] if unmeasured else []
    first, *others = parts
    figure, _, rest = first.partition(" ")
    return ", ".join([f"{figure} of {len(lines)} {rest}", *others])


def _worst(states: Iterable[LineState]) -> LineState:
    return min(states, key=_BAD_FIRST.index)


def _sentence(details: list[str]) -> str:
    return one_line("; ".join(details[:5]) + (f"; and {len(details) - 5} more" if len(details) > 5 else ""), 1000)


def _span(start: datetime, end: datetime) -> str:
    return duration(max(timedelta(), end - start).total_seconds())


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%b}"


# --- as text and as HTML ---------------------------------------------------------------------------------------------

_BOX = {LineState.PASS: "[ok]", LineState.FAIL: "[FAIL]", LineState.BLIND: "[BLIND]", LineState.NOT_MEASURED: "[  -  ]"}
_JINJA = environment()


def render_text(report: Report) -> str:
    """The report as plain text, one line a fact."""
    parts = [report.title, report.period, ""]
    for line in report.lines:
        parts += [f"{_BOX[line.state]:<7} {line.text}", f"        {line.state}: {line.detail}" if line.detail else f"        {line.state}"]
    parts += ["", "Incidents", f"  {report.incident_summary}"]
    for told in report.incidents:
        parts.append(f"  {told.severity} {told.title}: {told.story}{f' <{told.url}>' if told.url else ''}")
    parts += ["", "Availability"]
    width = max((len(row.service) for row in report.availability), default=0)
    parts += [f"  {row.service:<{width}}  {row.share:>12}  {row.detail}" for row in report.availability] or ["  nothing is watched"]
    if report.external_url:
        parts += ["", f"Status page: {report.external_url}"]
    return "\n".join(one_line(part, 1200) if part == report.title else part.rstrip() for part in parts) + "\n"


def render_html(report: Report) -> str:
    """The report as an HTML mail: styles inlined for the mail programs that drop style sheets, dark mode for those that keep them."""
    from css_inline import CSSInliner  # noqa: PLC0415 - 2 MiB, and not needed before the first report

    page = _JINJA.get_template("daily.html").render(report=report)
    inlined: str = CSSInliner(keep_style_tags=True, keep_at_rules=True, load_remote_stylesheets=False).inline(page)
    return inlined
