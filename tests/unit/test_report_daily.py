"""The daily checklist: five lines that are green only when somebody looked, lately, and found nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BUILTINS
from checks.http_health import DOWN, SLOW, STATUS, UP
from checks.pg_connections import CANARY_UP, EXHAUSTED, HIGH, USABLE, USED_RATIO
from checks.stuck_jobs import PROCESSING, STUCK_JOB
from dashboards import figures
from dashboards.daily import DailyInput, Line, LineState, RunSummary, Watched, daily, render_html, render_text
from monitor.domain import CheckResult, EscalationStep, Finding, Incident, IncidentState, Observed, Outcome, Sample, Severity

NOW = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
PASS, FAIL, BLIND, UNMEASURED = LineState.PASS, LineState.FAIL, LineState.BLIND, LineState.NOT_MEASURED

WATCHED = (
    Watched("health/auth", "http_health", "auth", 15),
    Watched("health/data", "http_health", "data", 15),
    Watched("jobs/database", "stuck_jobs", "database", 60),
    Watched("connections/database", "pg_connections", "database", 15),
)


def seen(instance: str, *findings: Finding, samples: tuple[Sample, ...] = (), error: str | None = None, age_s: float = 5) -> CheckResult:
    name, _, service = instance.partition("/")
    outcome = Outcome.BLIND if error is not None else Outcome.FOUND if findings else Outcome.OK
    return CheckResult(name, name, service, outcome, NOW - timedelta(seconds=age_s), 0.01, Observed(samples, findings), error)


def connections(used: int, usable: int, *findings: Finding) -> CheckResult:
    return seen("connections/database", *findings, samples=(CANARY_UP(1), USABLE(usable), USED_RATIO(used / usable)))


WELL = {
    "health/auth": seen("health/auth", samples=(UP(1), STATUS(200))),
    "health/data": seen("health/data", samples=(UP(1), STATUS(200))),
    "jobs/database": seen("jobs/database", samples=(PROCESSING(3),)),
    "connections/database": connections(41, 97),
}


def given_(*changed: tuple[str, CheckResult | None], watched: tuple[Watched, ...] = WATCHED) -> DailyInput:
    latest = {instance: result for instance, result in (WELL | dict(changed)).items() if result is not None}
    return DailyInput(NOW, ZoneInfo("Europe/Berlin"), NOW - timedelta(days=1), NOW, watched, latest)


def lines(*changed: tuple[str, CheckResult | None], watched: tuple[Watched, ...] = WATCHED) -> tuple[Line, ...]:
    return daily(given_(*changed, watched=watched)).lines


def incident(**changes: object) -> Incident:
    opened = NOW - timedelta(hours=2)
    base = Incident(
        id="i1",
        group="auth/INC-001",
        code="INC-001",
        service="auth",
        severity=Severity.P1,
        state=IncidentState.OPEN,
        title="Service not responding",
        summary="",
        evidence=(),
        first_step="",
        opened_at=opened,
        chain=(EscalationStep(0, "On-call", ("pagerduty",)),),
        chain_since=opened,
    )
    return base._replace(**changes)  # type: ignore[arg-type]


def test_the_five_lines_of_the_runbook_in_its_words() -> None:
    report = daily(given_())
    assert [line.text for line in report.lines] == [
        "All services returning 200 on /health",
        "No stuck jobs (> 30 min processing)",
        "Database connections < 80% of max",
        "No errors in last 24h logs",
        "Disk space > 20% free",
    ]
    assert [line.state for line in report.lines] == [PASS, PASS, PASS, UNMEASURED, UNMEASURED]
    assert report.title == "Daily checklist 23 Nov: 3 of 5 passing, 2 not measured"
    assert report.period_key == "daily/2026-11-23"
    assert report.period == "Sun 22 Nov 08:00 to Mon 23 Nov 08:00 (CET)"
    assert report.lines[0].detail == "2 services answering 200"
    assert report.lines[2].detail == "database: 41 of 97 usable connections (42.2 %)"


def test_a_service_that_is_down_fails_the_first_line() -> None:
    report = daily(given_(("health/auth", seen("health/auth", DOWN("auth does not answer: connection refused")))))
    assert (report.lines[0].state, report.lines[0].detail) == (FAIL, "auth: auth does not answer: connection refused")
    assert report.title == "Daily checklist 23 Nov: 1 of 5 failing, 2 not measured"


def test_a_slow_service_still_answers_200_and_is_mentioned() -> None:
    line = lines(("health/auth", seen("health/auth", SLOW("auth took 3.1 s to answer"))))[0]
    assert line == Line(line.text, PASS, "2 services answering 200; auth: but auth took 3.1 s to answer")


def test_stuck_jobs() -> None:
    line = lines(("jobs/database", seen("jobs/database", STUCK_JOB("2 jobs silent for 47 min"))))[1]
    assert (line.state, line.detail) == (FAIL, "database: 2 jobs silent for 47 min")


@pytest.mark.parametrize(
    ("result", "state", "detail"),
    [
        (connections(77, 97), PASS, "database: 77 of 97 usable connections (79.3 %)"),
        (connections(80, 100), FAIL, "database: 80 of 100 usable connections (80.0 %)"),
        (connections(96, 97, HIGH("high")), FAIL, "database: 96 of 97 usable connections (98.9 %); database: high"),
        (seen("connections/database", EXHAUSTED("no slot left")), FAIL, "the connections could not be counted; database: no slot left"),
        (seen("connections/database", samples=(CANARY_UP(1),)), BLIND, "could not be counted"),
        (seen("connections/database", error="no grant"), BLIND, "database: no grant"),
        (None, UNMEASURED, "database: no result yet"),
    ],
)
def test_connections_say_their_real_figures(result: CheckResult | None, state: LineState, detail: str) -> None:
    line = lines(("connections/database", result))[2]
    assert line.state is state
    assert detail in line.detail


def test_what_nobody_saw_is_never_green() -> None:
    blind, missing, unwatched = (
        lines(("health/auth", seen("health/auth", error="no CA bundle"))),
        lines(("health/auth", None)),
        lines(watched=WATCHED[2:]),
    )
    assert (blind[0].state, blind[0].detail) == (BLIND, "auth: no CA bundle")
    assert (missing[0].state, missing[0].detail) == (UNMEASURED, "auth: no result yet")
    assert (unwatched[0].state, unwatched[0].detail) == (UNMEASURED, "no http_health check is configured")


@pytest.mark.parametrize(("age_s", "state"), [(44, PASS), (46, BLIND)])
def test_a_result_older_than_three_intervals_proves_nothing(age_s: float, state: LineState) -> None:
    line = lines(("health/auth", WELL["health/auth"]._replace(started_at=NOW - timedelta(seconds=age_s))))[0]
    assert line.state is state
    assert ("46 s old" in line.detail or "45 s old" in line.detail) == (state is BLIND)


def test_a_failure_outweighs_what_could_not_be_seen() -> None:
    report = daily(
        given_(
            ("health/auth", seen("health/auth", error="no CA bundle")),
            ("health/data", seen("health/data", DOWN("data is down"))),
            ("jobs/database", seen("jobs/database", error="no grant")),
        )
    )
    assert (report.lines[0].state, report.lines[0].detail) == (FAIL, "data: data is down; auth: no CA bundle")
    assert report.title == "Daily checklist 23 Nov: 1 of 5 failing, 1 could not look, 2 not measured"
    assert report.state is FAIL


@given(st.dictionaries(st.sampled_from(sorted(WELL)), st.sampled_from(["blind", "stale", "gone"]), min_size=1))
def test_no_line_is_green_when_one_of_its_checks_saw_nothing(spoiled: dict[str, str]) -> None:
    how = {
        "blind": lambda name: seen(name, error="no"),
        "stale": lambda name: WELL[name]._replace(started_at=NOW - timedelta(hours=1)),
        "gone": lambda _: None,
    }
    states = [line.state for line in lines(*((name, how[kind](name)) for name, kind in spoiled.items()))]
    of_line = {"health/auth": 0, "health/data": 0, "jobs/database": 1, "connections/database": 2}
    assert {states[of_line[name]] for name in spoiled} <= {BLIND, UNMEASURED}
    assert all(state is PASS for number, state in enumerate(states[:3]) if number not in {of_line[name] for name in spoiled})


def test_incidents_of_the_day() -> None:
    over = incident(
        id="i2",
        severity=Severity.P3,
        state=IncidentState.RESOLVED,
        opened_at=NOW - timedelta(hours=30),
        resolved_at=NOW - timedelta(hours=20),
        acked_at=NOW - timedelta(hours=29),
        acked_by="maria",
    )
    report = daily(replace(given_(), incidents=(over, incident()), external_url="https://monitor.example"))
    assert report.incident_summary == "1 incident opened, 1 resolved, 1 still open."
    first, second = report.incidents
    assert (first.severity, first.story) == ("P1", "opened Mon 06:00, still open after 2 h, acknowledged by nobody")
    assert first.url == "https://monitor.example/incidents/i1"
    assert second.story == "opened Sun 02:00, lasted 10 h, acknowledged after 1 h by maria"
    assert daily(given_()).incident_summary == "No incidents."


def test_availability_counts_only_looks_and_never_rounds_up() -> None:
    history = (
        RunSummary("health/auth", "health", "auth", 100_000, 99_999, 1, 0),
        RunSummary("jobs/database", "jobs", "database", 60, 40, 0, 20),
        RunSummary("connections/database", "connections", "database", 60, 60, 0, 0),
        RunSummary("health/data", "health", "data", 10, 0, 0, 10),
    )
    auth, data, database = daily(replace(given_(), history=history)).availability
    assert (auth.service, auth.share, auth.state) == ("auth", "99.99 %", FAIL)
    assert auth.detail == "99,999 of 100,000 health checks well"
    assert (data.share, data.state) == ("not measured", UNMEASURED)
    assert (database.share, database.detail, database.state) == ("100.00 %", "100 of 100 looks well, 20 could not look", BLIND)
    assert [row.share for row in daily(given_()).availability] == ["not measured"] * 3


def test_the_text_says_the_same_as_the_report() -> None:
    report = daily(replace(given_(), incidents=(incident(),), external_url="https://monitor.example"))
    text = render_text(report)
    assert text.startswith(report.title + "\n")
    for line in report.lines:
        assert line.text in text
        assert line.detail in text
    assert "[  -  ] Disk space > 20% free" in text
    assert "Status page: https://monitor.example" in text


def test_the_html_has_its_styles_inlined_and_a_dark_mode() -> None:
    html = render_html(daily(given_()))
    assert "prefers-color-scheme: dark" in html
    assert '<td class="state pass" style="' in html
    assert "http://" not in html
    assert "https://" not in html


HOSTILE = st.text(max_size=30) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=a>',
        "{{ 7*7 }}",
        "a\n[ok]    All green",
        "\u202eevil",
        "</style>",
        "\ud800",
        "\x00",
    ]
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


def with_text(text: str) -> DailyInput:
    """The same report, with ``text`` in every field that comes from outside."""
    latest = {
        f"health/{text}": seen("health/x", DOWN(text or "x"))._replace(service=text),
        "jobs/database": seen("jobs/database", error=text),
        "connections/database": WELL["connections/database"],
    }
    return DailyInput(
        now=NOW,
        timezone=ZoneInfo("Europe/Berlin"),
        period_start=NOW - timedelta(days=1),
        period_end=NOW,
        watched=(Watched(f"health/{text}", "http_health", text, 15), *WATCHED[2:]),
        latest=latest,
        incidents=(incident(id=text, title=text, service=text, acked_by=text, acked_at=NOW),),
        history=(RunSummary(f"health/{text}", "health", text, 1, 1, 0, 0),),
        external_url="https://monitor.example",
    )


@given(text=HOSTILE)
def test_hostile_text_breaks_out_of_nothing(text: str) -> None:
    hostile, tame = daily(with_text(text)), daily(with_text("x"))
    tags, expected = Tags(), Tags()
    tags.feed(render_html(hostile))
    expected.feed(render_html(tame))
    assert tags.seen == expected.seen
    assert render_text(hostile).count("\n") == render_text(tame).count("\n")
    assert len(render_text(hostile).splitlines()) == render_text(tame).count("\n")
    render_text(hostile).encode()
    assert "\u202e" not in render_html(hostile)
    assert hostile.title == tame.title


def test_the_metric_names_used_for_people_are_declared() -> None:
    declared = {metric.name for check in BUILTINS for metric in check.metrics}
    assert {figures.HTTP_STATUS, figures.CONNECTIONS_USABLE, figures.CONNECTIONS_USED_RATIO, figures.JOBS_PROCESSING} <= declared
    assert {"http_health", "stuck_jobs", "pg_connections"} <= {check.name for check in BUILTINS}
