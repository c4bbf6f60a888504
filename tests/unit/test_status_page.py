"""The status page: what it says, that it says it without scripts or styles inline, and that no text breaks out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks.http_health import DOWN, STATUS
from checks.stuck_jobs import PROCESSING
from dashboards.status_page import (
    STATIC,
    CheckView,
    DeliveryView,
    PageInput,
    ServiceView,
    check_view,
    render_fragment,
    render_incident,
    render_page,
)
from monitor.domain import (
    CheckResult,
    EscalationStep,
    Incident,
    IncidentState,
    Observed,
    Outcome,
    Sample,
    Severity,
    TimelineEntry,
)

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
OPENED = NOW - timedelta(minutes=2)

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, the text, and whether all tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def view(name: str = "health", **changes: object) -> CheckView:
    base = CheckView(
        name=name,
        every_s=15,
        outcome=Outcome.OK,
        last_run=NOW - timedelta(seconds=7),
        duration_s=0.012,
        headline="status 200",
        recent=(Outcome.OK,) * 30,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def incident(**changes: object) -> Incident:
    base = Incident(
        id="i1",
        group="auth/INC-001",
        code="INC-001",
        service="auth",
        severity=Severity.P1,
        state=IncidentState.OPEN,
        title="Service not responding",
        summary="auth does not answer: connection refused",
        evidence=("reason: refused",),
        first_step="tail -100 logs/auth-service-error.log",
        opened_at=OPENED,
        chain=(EscalationStep(0, "On-call", ("pagerduty",)), EscalationStep(900, "Team Lead", ("slack", "email"))),
        chain_since=OPENED,
        told=("pagerduty",),
        step=1,
        next_escalation_at=OPENED + timedelta(minutes=15),
    )
    return base._replace(**changes)  # type: ignore[arg-type]


def page(*checks: CheckView, **changes: object) -> PageInput:
    services = (ServiceView("auth", checks or (view(),), "http://127.0.0.1:8003"), ServiceView("data", (view(),)))
    return replace(PageInput(NOW, "0.1.0", services), **changes)  # type: ignore[arg-type]


def verdict(given: PageInput) -> str:
    html = render_fragment(given)
    return " ".join(Page(html[html.index("<h1>") : html.index("</h1>") + 5]).text.split())


@pytest.mark.parametrize(
    ("given", "said", "colour"),
    [
        (page(), "All 2 services are well", "ok"),
        (page(view(outcome=Outcome.FOUND, headline="down")), "auth failing", "failing"),
        (page(view(outcome=Outcome.BLIND, error="no grant")), "Cannot see auth", "blind"),
        (page(view(last_run=NOW - timedelta(seconds=60))), "Cannot see auth", "blind"),
        (page(CheckView("health", 15)), "Looking for the first time", "waiting"),
        (page(incidents=(incident(),)), "auth: Service not responding", "failing"),
        (page(incidents=(incident(severity=Severity.P3),)), "auth: Service not responding", "blind"),
        (page(delivery=DeliveryView(0, 0, 1)), "The services are well, delivery is not", "failing"),
        (page(delivery=DeliveryView(1, 61, 0)), "The services are well, delivery is not", "blind"),
        (page(delivery=DeliveryView(1, 3, 0)), "All 2 services are well", "ok"),
        (page(store_ok=False), "The services are well, delivery is not", "failing"),
        (page(services=()), "Nothing is watched", "waiting"),
        (page(services=(ServiceView("auth", ()),)), "Nothing is watched", "waiting"),
        (page(services=(ServiceView("smtp", ()), ServiceView("auth", (view(),)))), "The one service is well", "ok"),
    ],
)
def test_the_verdict_is_green_only_when_all_is_known_to_be_well(given: PageInput, said: str, colour: str) -> None:
    assert verdict(given) == said
    assert f'class="verdict {colour}"' in render_fragment(given)


def test_the_worst_incident_leads_and_the_unacknowledged_before_the_acknowledged() -> None:
    acked = incident(id="a", title="Old", state=IncidentState.ACKED, acked_by="maria", opened_at=OPENED - timedelta(hours=1))
    assert verdict(page(incidents=(acked, incident(id="b", title="New"), incident(id="c", severity=Severity.P2)))) == "auth: New"


def test_a_check_says_what_it_saw() -> None:
    words = Page(
        render_fragment(
            page(
                view(outcome=Outcome.FOUND, headline="connection refused"),
                view("tls", outcome=Outcome.BLIND, error="no CA bundle"),
                view("old", last_run=NOW - timedelta(minutes=6)),
            )
        )
    ).words
    assert "health failing 12 ms · 7 s ago connection refused" in words
    assert "tls blind 12 ms · 7 s ago no CA bundle" in words
    assert "old stale 12 ms · 6 min ago no result for 5 min; it should come every 15 s" in words
    assert "data ok health 12 ms · 7 s ago status 200" in words
    assert "Last 30 runs: 30 ok" in words


def test_an_open_incident_says_who_knows_and_who_is_next() -> None:
    words = Page(render_fragment(page(incidents=(incident(),)))).words
    assert "P1 Service not responding opened 2 min ago auth does not answer: connection refused" in words
    assert "auth INC-001 told pagerduty not acknowledged next: Team Lead in 13 min" in words
    acked = incident(state=IncidentState.ACKED, acked_by="maria", acked_at=NOW - timedelta(minutes=1))
    assert "acknowledged by maria 60 s ago" in Page(render_fragment(page(incidents=(acked,)))).words


def test_times_are_utc_for_machines_and_relative_for_people() -> None:
    html = render_fragment(page())
    assert '<time datetime="2026-11-23T02:59:53Z" title="2026-11-23 02:59:53 UTC">7 s ago</time>' in html


def test_with_many_services_the_troubled_come_first_and_the_healthy_are_small() -> None:
    services = tuple(ServiceView(f"s{number:02}", (view(),)) for number in range(39))
    html = render_fragment(page(services=(*services, ServiceView("zz", (view(outcome=Outcome.FOUND, headline="down"),)))))
    assert html.count('class="card ok compact"') == 39
    assert html.index(">zz<") < html.index(">s00<")


def test_the_incident_page_tells_the_whole_story() -> None:
    timeline = (
        TimelineEntry("i1", OPENED + timedelta(seconds=3), "delivery-failed", "slack: 503"),
        TimelineEntry("i1", OPENED, "opened", "P1"),
        TimelineEntry("i1", OPENED + timedelta(minutes=1), "acked", "looking", actor="maria"),
    )
    words = Page(render_incident(incident(), timeline, NOW, "0.1.0")).words
    assert "02:58:00 opened P1 02:58:03 delivery failed slack: 503 02:59:00 acked looking by maria" in words
    assert "First step tail -100 logs/auth-service-error.log" in words
    assert "On-call by pagerduty, at once told Team Lead by slack and email, after 15 min in 13 min" in words
    resolved = incident(state=IncidentState.RESOLVED, resolved_at=NOW, next_escalation_at=None)
    words = Page(render_incident(resolved, (), NOW)).words
    assert "resolved after 2 min" in words
    assert "Team Lead by slack and email, after 15 min not needed" in words


def result(*samples: Sample, **changes: object) -> CheckResult:
    base = CheckResult("health/auth", "health", "auth", Outcome.OK, NOW, 0.01, Observed(samples))
    return base._replace(**changes)  # type: ignore[arg-type]


def test_a_view_is_made_from_a_result() -> None:
    assert check_view("health", 15, None) == CheckView("health", 15)
    assert check_view("health", 15, result(STATUS(200))).headline == "status 200"
    assert check_view("jobs", 15, result(PROCESSING(1))).headline == "1 job in processing"
    found = result(outcome=Outcome.FOUND, observed=Observed((), (DOWN("refused"), DOWN("and late"))))
    assert check_view("health", 15, found, (Outcome.OK,)).headline == "refused (and 1 more)"


PAGES = {
    "status": lambda text="x": render_page(everything(text)),
    "fragment": lambda text="x": render_fragment(everything(text)),
    "incident": lambda text="x": render_incident(
        everything(text).incidents[0], (TimelineEntry(text, NOW, text, text, actor=text),), NOW, text
    ),
}


def everything(text: str) -> PageInput:
    """A page with ``text`` in every field that comes from outside."""
    spoiled = incident(
        id=f"i{text}",
        code=f"c{text}",
        service=text,
        title=text,
        summary=text,
        evidence=(text,),
        first_step=text,
        chain=(EscalationStep(0, text, (text,)), EscalationStep(900, text, (text,))),
        told=(text,),
    )
    acked = spoiled._replace(state=IncidentState.ACKED, acked_by=text, acked_at=NOW)
    views = (view(text, outcome=Outcome.FOUND, headline=text), view(text, outcome=Outcome.BLIND, error=text), view(text))
    return PageInput(
        now=NOW,
        version=text,
        services=(
            ServiceView(text, views, f"javascript:{text}"),
            ServiceView(text, (view(headline="x"),), f"http://{text.replace('@', '')}"),
        ),
        incidents=(spoiled, acked),
        resolved=(spoiled._replace(state=IncidentState.RESOLVED, resolved_at=NOW),),
    )


HOSTILE = st.text(max_size=30) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=a>',
        "' hx-on:click='x",
        "{{ 7*7 }}",
        "</title>",
        "</p></main>",
        "\u202e",
        "\ud800",
        "]]>",
    ]
)


@pytest.mark.parametrize("name", sorted(PAGES))
@settings(deadline=None)  # a busy machine is no defect of the page
@given(text=HOSTILE)
def test_hostile_text_breaks_out_of_nothing(name: str, text: str) -> None:
    html = PAGES[name](f"x{text}x")
    hostile, tame = Page(html), Page(PAGES[name]("x"))
    assert hostile.shape == tame.shape
    assert hostile.open == tame.open == []
    html.encode()
    assert not set("\u202e\x00\x1b") & set(html)
    assert all(not (attributes.get("href") or "").startswith("javascript") for _, attributes in hostile.tags)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_everything_works_under_the_strict_policy(name: str) -> None:
    parsed = Page(PAGES[name]())
    for tag, attributes in parsed.tags:
        assert "style" not in attributes
        assert not any(attribute.startswith(("on", "hx-on")) for attribute in attributes), tag
        assert tag != "style"
        if tag == "script":
            assert attributes["src"]
        source = attributes.get("src") or (attributes.get("href") if tag == "link" else None)
        if source:
            assert source.startswith("/static/")
            assert (STATIC / source.removeprefix("/static/")).is_file()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_ids_are_unique_and_headings_are_in_order(name: str) -> None:
    parsed = Page(PAGES[name]())
    html_ids = [attributes["id"] for _, attributes in Page(render_page(page(incidents=(incident(),)))).tags if "id" in attributes]
    assert len(set(html_ids)) == len(html_ids)
    levels = [int(tag[1]) for tag, _ in parsed.tags if tag in {"h1", "h2", "h3"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_credentials_in_an_address_are_never_shown() -> None:
    services = (ServiceView("auth", (view(),), "http://user:hunter2@127.0.0.1"),)
    assert "hunter2" not in render_page(page(services=services))
