"""What channels say: wording by tables, safety and caps by properties over hostile text."""

import unicodedata
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alerts.email import render_html
from alerts.message import (
    EVIDENCE_LINES,
    LINE_CHARS,
    STEP_CHARS,
    TITLE_CHARS,
    Message,
    as_line,
    as_text,
    clean,
    compose,
    duration_words,
)
from alerts.pagerduty import build_event
from alerts.slack_card import build_card, escape, length, thread_line
from monitor.domain import Link, Severity, Transition
from services.externals.pagerduty import problems
from services.externals.slack_blocks import check_message
from tests.notify_parts import OPENED, notification

NOW = OPENED + timedelta(minutes=4)

NASTY = st.one_of(
    st.text(alphabet=st.characters(codec=None)),
    st.lists(
        st.sampled_from(
            [
                "<!channel>",
                "<!here|hi>",
                "<@U012AB3CD>",
                "<https://evil.example|click>",
                "<script>alert(1)</script>",
                '"><img src=x onerror=alert(1)>',
                "\r\nBcc: all@example.com",
                "\n\n.\n",
                "\u202egnp.exe",
                "\u2066",
                "\u200e",
                "\ud800",
                "\x00",
                "\x1b[31m",
                "\u2028",
                "```",
                "`",
                "*bold*",
                "&lt;!channel&gt;",
                "{{ 7 * 7 }}",
                "\U0001f525" * 50,
                "a" * 5000,
                "e\u0301" * 2000,
            ]
        ),
        max_size=12,
    ).map("".join),
)


@st.composite
def hostile(draw: st.DrawFn):
    transition = draw(st.sampled_from(list(Transition)))
    text = draw(NASTY)
    return notification(
        transition,
        severity=draw(st.sampled_from(list(Severity))),
        reason=draw(NASTY),
        links=tuple(Link(draw(NASTY), draw(st.sampled_from(["https://ok.example/x", "javascript:alert(1)"]) | NASTY)) for _ in range(3)),
        title=text,
        summary=draw(NASTY),
        service=draw(NASTY),
        code=draw(st.none() | NASTY),
        evidence=tuple(draw(st.lists(NASTY, max_size=6))),
        first_step=draw(NASTY),
        id=draw(NASTY),
    )


def texts(message: Message) -> list[str]:
    links = [text for link in message.links for text in (link.title, link.url)]
    one_line = [message.title, message.what, message.where, message.since, message.how_bad, message.sentence, message.incident_id]
    return [*one_line, *message.evidence, *links]


def is_harmless(text: str) -> bool:
    return all(char in "\u200c\u200d" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)


def test_says_it_in_the_words_of_the_runbook() -> None:
    message = compose(notification(), NOW)
    assert message.title == "[P1] auth: Service not responding (INC-001)"
    assert message.since == "2026-11-23 08:00:00 UTC (4 min ago)"
    assert message.how_bad == "P1, critical"
    assert message.sentence == "On-call is told at once."
    assert message.evidence == ("reason: refused", "status: none", "last good answer: 2026-11-23 07:59:42 UTC")
    assert as_line(message) == f"{message.title}: {message.what}"
    assert as_text(message) == (
        "[P1] auth: Service not responding (INC-001)\n"
        "\n"
        "Open. On-call is told at once.\n"
        "\n"
        "What:    GET http://127.0.0.1:8003/health: connection refused, 2 times in a row\n"
        "Where:   auth\n"
        "Since:   2026-11-23 08:00:00 UTC (4 min ago)\n"
        "How bad: P1, critical\n"
        "\n"
        "Evidence:\n"
        "  - reason: refused\n"
        "  - status: none\n"
        "  - last good answer: 2026-11-23 07:59:42 UTC\n"
        "\n"
        "First step:\n"
        "  ps aux | grep uvicorn\n"
        "  tail -100 logs/auth-service-error.log\n"
        "\n"
        "Incident page: https://monitor.example.com/incidents/a1b2c3d4e5f6\n"
        "Runbook INC-001: https://example.com/runbook\n"
        "\n"
        "Incident a1b2c3d4e5f6\n"
    )


def test_a_resolved_incident_says_how_long_it_lasted_and_asks_for_nothing() -> None:
    message = compose(notification(Transition.RESOLVED, reason="healthy again"), NOW + timedelta(hours=1))
    assert message.since.endswith("(lasted 12 min)")
    assert "First step" not in as_text(message)
    assert as_line(message).startswith("Resolved: ")


def test_the_title_stays_the_same_over_transitions_so_that_mails_thread() -> None:
    assert len({compose(notification(transition), NOW).title for transition in Transition}) == 1


def test_missing_parts_leave_no_holes() -> None:
    message = compose(notification(code=None, title="", summary="", evidence=(), first_step="", links=(), reason=""), NOW)
    assert message.title == "[P1] auth: incident"
    assert message.what == "no summary"
    assert message.sentence == "Open"
    assert "Evidence" not in as_text(message)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "file:///etc/passwd",
        "https://",
        "//x",
        "https://a b",
        "https://a\nb",
        "https://[::1",
        "https://x/|y>",
        "x" * 3000,
    ],
)
def test_only_whole_web_addresses_become_links(url: str) -> None:
    assert compose(notification(links=(Link("Open", url),)), NOW).links == ()


@given(NASTY, st.integers(1, 400), st.integers(1, 5))
@example("\x00" * 1_048_576, 100, 1)
@example("a" * 1_048_576, 100, 1)
@example("a\n" * 524_288, 100, 3)
def test_clean_text_is_harmless_and_capped(text: str, limit: int, lines: int) -> None:
    cleaned = clean(text, limit, lines=lines)
    assert len(cleaned) <= limit
    assert cleaned.count("\n") < lines
    assert all(is_harmless(line) for line in cleaned.split("\n"))
    cleaned.encode()
    assert clean(cleaned, limit, lines=lines) == cleaned or cleaned.endswith("…")


@given(hostile())
@settings(max_examples=150, deadline=None)
def test_every_channel_survives_hostile_text(sample) -> None:
    message = compose(sample, NOW)
    assert len(message.title) <= TITLE_CHARS
    assert len(message.evidence) <= EVIDENCE_LINES
    assert len(message.first_step) <= STEP_CHARS
    assert all(is_harmless(text) and len(text) <= 2000 for text in texts(message))
    assert all(len(text) <= LINE_CHARS + 1 for text in (*message.evidence, message.what, message.sentence))
    assert all(link.url.startswith("https://") for link in message.links if link.url.startswith("http"))
    assert all(is_harmless(line) for line in as_text(message).split("\n"))

    event = build_event(sample, NOW)
    if event:
        assert problems({"routing_key": "k" * 32, "event_action": "trigger", "dedup_key": "d", **event}) == []

    card = build_card(message)
    check_message(**card)
    assert length(str(card)) < 13_200 * 2
    shown = [card["text"], thread_line(message), *_strings(card["blocks"]), *_strings(card["attachments"][0]["blocks"])]
    assert not any("<" in text or ">" in text for text in shown)


@given(NASTY)
def test_no_slack_markup_survives_escaping(text: str) -> None:
    assert "<" not in escape(text)
    assert ">" not in escape(text)


@given(hostile())
@settings(max_examples=30, deadline=None)
def test_html_mail_holds_no_foreign_element(sample) -> None:
    html = render_html(compose(sample, NOW))
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert html.count("<h1") == 1


def test_a_megabyte_of_everything_stays_small() -> None:
    huge = "<!channel>\u202e\ud800&" * 80_000
    sample = notification(title=huge, summary=huge, evidence=(huge,) * 8, first_step=huge, reason=huge, service=huge, id=huge, code=huge)
    message = compose(sample, NOW)
    check_message(**build_card(message))
    assert len(as_text(message)) < 5_000
    assert len(str(build_event(sample, NOW))) < 20_000


def test_colour_and_sign_follow_severity_until_it_is_over() -> None:
    cards = {severity: build_card(compose(notification(severity=severity), NOW)) for severity in Severity}
    assert len({card["attachments"][0]["color"] for card in cards.values()}) == 4
    over = build_card(compose(notification(Transition.RESOLVED), NOW))
    assert over["blocks"][0]["text"]["text"].startswith("✅")
    assert "First step" not in str(over)


def test_a_worse_incident_is_a_worse_title() -> None:
    sample = notification()
    worse = replace(sample, incident=sample.incident._replace(severity=Severity.P2))
    assert compose(worse, NOW).title.startswith("[P2]")


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for name, part in value.items() if name not in {"url", "type"} for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []
