"""Digests through every built-in notifier, against the stand-ins and a real SMTP server: begin, change, end; limits; hostile text."""

import asyncio
import email
import email.policy
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from alerts import BUILTINS
from alerts.digest_message import compose_digest
from alerts.digest_text import SHOWN, by_service, digest_text
from alerts.email import EmailConfig, email_digest, render_digest
from alerts.message import compose
from alerts.pagerduty import PagerDutyConfig, digest_event, pagerduty_digest
from alerts.pagerduty_incidents import incident_of_key
from alerts.slack import SlackConfig, slack_digest
from alerts.slack_digest import build_digest_card, digest_thread_line
from alerts.webhook import BODY_BYTES, WebhookConfig, digest_bodies, payload, webhook_digest
from monitor.domain import Digest, DigestItem, Receipt, Severity, Transition
from monitor.plugins import Digesting
from monitor.store.digests import tally_of
from services.externals import pagerduty as fake_pagerduty
from services.externals import slack as fake_slack
from services.externals import tickets as fake_tickets
from services.externals.slack_blocks import check_message
from tests.integration.test_notify_tickets import SECRET, TOKEN, USER, configure
from tests.notify_parts import OPENED, Authority, Fake, StillClock, context, digest, digest_item, notification, serve

HOME = "digest-0123456789abcdef"
MANY = 312


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


def begin(number: int = MANY) -> Digest:
    return digest([digest_item(at) for at in range(number)])


def follow(first: Receipt, *, taken: int = 0, over: int = 0, news: Transition = Transition.RESOLVED, asked: int = 1, of: int = 6) -> Digest:
    """Of six incidents so many are taken and over now; what is new is ``news`` of the last one that changed."""
    kinds = [Transition.RESOLVED] * over + [Transition.ACKED] * taken + [Transition.TRIGGERED] * (of - taken - over)
    members = tuple(digest_item(number, kind, asked=asked) for number, kind in enumerate(kinds))
    return digest([digest_item(0, news, asked=asked)], first=first, tally=tally_of(members))


def test_every_builtin_tells_digests_through_the_contract() -> None:
    alone = {plugin.name for plugin in BUILTINS if plugin.digest is None}
    assert alone == {"alertmanager"}  # it keeps what it said of each incident, and refreshes all of them in batches anyway
    for plugin in BUILTINS:
        if plugin.digest is not None:
            assert isinstance(plugin.digest, Digesting)
            assert plugin.digest.gather_s > 0
            assert plugin.digest.most >= 1000


# --- Slack -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def chat(authority: Authority) -> AsyncIterator[tuple[Fake, SlackConfig]]:
    async with serve(fake_slack.create_app(burst=50), authority) as fake:
        cfg = SlackConfig(
            token=SecretStr("xoxb-1234567890"),
            signing_secret=SecretStr("s"),
            channel="#ops",
            base_url=f"{fake.url}/api/",
            ca_file=authority.ca_file,
        )
        yield fake, cfg


async def test_slack_has_one_card_that_names_the_worst_counts_the_rest_and_is_kept_up_to_date(chat: tuple[Fake, SlackConfig]) -> None:
    fake, cfg = chat
    first = await slack_digest(context(), cfg, begin())
    [card] = (await fake.received())["channels"][0]["messages"]
    shown = str(card["blocks"]) + str(card["attachments"])
    for part in (
        "🔴 [P1] 312 incidents on 4 services",
        "10 P1 (critical)",
        "and 302 more",
        "Acknowledge all 312",
        "incidents/000000000000|",
    ):
        assert part in shown
    assert shown.count("|Service not responding") == 10
    actions = next(block for block in card["attachments"][0]["blocks"] if block["type"] == "actions")
    assert actions["elements"][0]["value"] == HOME
    news = (Transition.ACKED, Transition.ESCALATED, Transition.RESOLVED)
    for taken, over, kind in ((1, 0, news[0]), (1, 0, news[1]), (0, 6, news[2])):
        receipt = await slack_digest(context(), cfg, follow(first, taken=taken, over=over, news=kind))
        assert receipt.detail == first.detail
    card, *lines = (await fake.received())["channels"][0]["messages"]
    assert (card["edits"], {line["thread_ts"] for line in lines}) == (3, {card["ts"]})
    assert [line["broadcast"] for line in lines] == [False, True, False]
    assert lines[0]["text"] == "👀 *1 acknowledged by anna* · 6 incidents: 5 open, 1 taken"
    assert lines[2]["text"] == "✅ *1 over* · all of them are over"
    assert "✅" in str(card["blocks"])
    assert "Acknowledge" not in str(card["attachments"])
    assert (await fake.received())["refused"] == []


# --- PagerDuty -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def pager(authority: Authority) -> AsyncIterator[tuple[Fake, PagerDutyConfig]]:
    async with serve(fake_pagerduty.create_app(), authority) as fake:
        yield fake, PagerDutyConfig(routing_key=SecretStr("R" * 32), base_url=fake.url, ca_file=authority.ca_file)


async def test_pagerduty_has_one_alert_that_ends_with_the_last_of_its_incidents(pager: tuple[Fake, PagerDutyConfig]) -> None:
    fake, cfg = pager
    first = await pagerduty_digest(context(), cfg, begin())
    for step in (
        follow(first, over=2),
        follow(first, over=2, taken=1, news=Transition.ACKED),
        follow(first, over=2, taken=1, news=Transition.ESCALATED),
        follow(first, over=2, taken=4, news=Transition.ACKED),
        follow(first, over=6),
    ):
        await pagerduty_digest(context(), cfg, step)
    received = await fake.received()
    assert [call["outcome"] for call in received["events"]] == ["opened", "folded", "acknowledged", "resolved"]
    assert {call["dedup_key"] for call in received["events"]} == {HOME}
    [alert] = received["incidents"]
    assert alert["summary"].startswith("[P1] 312 incidents on 4 services: 10 P1 (critical)")
    listed = received["events"][0]["event"]["payload"]["custom_details"]["incidents"]
    assert listed[0].startswith("P1 auth: Service not responding (INC-001): GET")


async def test_asked_again_pagerduty_pages_anew_and_the_older_alert_ends(pager: tuple[Fake, PagerDutyConfig]) -> None:
    fake, cfg = pager
    first = await pagerduty_digest(context(), cfg, begin(6))
    await pagerduty_digest(context(), cfg, follow(first, taken=6, news=Transition.ACKED))
    await pagerduty_digest(context(), cfg, follow(first, news=Transition.REMINDED, asked=2))
    states = {one["dedup_key"]: one["state"] for one in (await fake.received())["incidents"]}
    assert states == {HOME: "resolved", f"{HOME}.2": "triggered"}
    assert incident_of_key(f"{HOME}.2") == HOME
    await pagerduty_digest(context(), cfg, follow(first, over=6, asked=2))
    assert {one["state"] for one in (await fake.received())["incidents"]} == {"resolved"}


async def test_what_begins_is_told_even_if_it_is_over_by_then(pager: tuple[Fake, PagerDutyConfig]) -> None:
    fake, cfg = pager
    over = [digest_item(number, state=digest_item(0, Transition.RESOLVED).state) for number in range(6)]
    first = await pagerduty_digest(context(), cfg, digest(over))
    await pagerduty_digest(context(), cfg, follow(first, over=6))
    assert [call["outcome"] for call in (await fake.received())["events"]] == ["opened", "resolved"]


# --- e-mail ----------------------------------------------------------------------------------------------------------


class Room:
    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


async def test_mail_is_one_thread_grouped_by_service_and_capped() -> None:
    room = Room()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: SMTP(room, hostname="localhost"), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    cfg = EmailConfig(host="127.0.0.1", port=port, security="none", sender="monitor@example.com", to=("ops@example.com",))
    first = await email_digest(context(), cfg, begin())
    again = await email_digest(context(), cfg, begin())
    end = await email_digest(context(), cfg, follow(first, over=6))
    listening.close()
    mails = room.mails
    assert (mails[0]["Message-ID"].strip(), mails[1]["Message-ID"].strip()) == (first.reference, again.reference)
    assert first.reference == again.reference != end.reference
    assert mails[0]["Subject"] == "[P1] 312 incidents on 4 services: 312 new"
    assert mails[0]["Importance"] == "high"
    assert (mails[2]["In-Reply-To"].strip(), mails[2]["Importance"]) == (first.reference, None)
    assert mails[2]["Subject"].startswith("All over: ")
    text, html = (part.get_content() for part in mails[0].iter_parts())
    assert text.count("/incidents/") == html.count("/incidents/") == SHOWN
    assert "and 112 more" in text
    assert "and 112 more" in html
    assert [line for line in text.splitlines() if line in {"auth:", "data:", "analytics:", "nginx:"}] == [
        "auth:",
        "data:",
        "analytics:",
        "nginx:",
    ]


# --- webhook ---------------------------------------------------------------------------------------------------------


async def test_a_webhook_hears_all_of_them_in_one_body_and_their_end_in_the_same_group(authority: Authority) -> None:
    bodies: list[tuple[dict[str, Any], str]] = []

    async def take(request: Request) -> Response:
        bodies.append((await request.json(), request.headers["Idempotency-Key"]))
        return JSONResponse({})

    async with serve(Starlette(routes=[Route("/hook", take, methods=["POST"])]), authority) as fake:
        cfg = WebhookConfig(url=f"{fake.url}/hook", ca_file=authority.ca_file)
        first = await webhook_digest(context(), cfg, begin(1000))
        await webhook_digest(context(), cfg, follow(first, over=2))
        await webhook_digest(context(), cfg, follow(first, over=6))
    (opened, key), (some, _), (all_over, last_key) = bodies
    assert (len(opened["alerts"]), opened["status"], opened["truncatedAlerts"], opened["version"]) == (1000, "firing", 0, "4")
    assert {body["groupKey"] for body, _ in bodies} == {f'{{}}:{{digest="{HOME}"}}'}
    assert (some["status"], some["alerts"][0]["status"], all_over["status"]) == ("firing", "resolved", "resolved")
    assert opened["commonLabels"] == {"alertname": "Service not responding", "incident": "INC-001"}
    assert key.startswith(HOME)
    assert key != last_key
    alert = opened["alerts"][7]
    assert re.fullmatch("[0-9a-f]{16}", alert["fingerprint"])
    alone = notification(id=alert["labels"]["incident_id"], service="nginx", opened_at=OPENED)
    told_alone = payload(alone, compose(alone, StillClock().now()), "monitor")["alerts"][0]
    assert (told_alone["labels"], told_alone["fingerprint"]) == (alert["labels"], alert["fingerprint"])


def test_the_end_has_the_fingerprint_of_the_begin_though_the_severity_rose_between() -> None:
    now, alerts = StillClock().now(), []
    for transition, severity in ((Transition.TRIGGERED, Severity.P3), (Transition.RAISED, Severity.P1), (Transition.RESOLVED, Severity.P1)):
        told = notification(transition, severity=severity)
        alerts.append(payload(told, compose(told, now), "monitor")["alerts"][0])
    assert len({alert["labels"]["severity"] for alert in alerts}) == 2
    assert len({alert["fingerprint"] for alert in alerts}) == 1


def test_a_body_that_would_be_too_large_is_several_and_nothing_is_left_out() -> None:
    big = digest([digest_item(number, summary="x" * 300, evidence=("y" * 300,) * 3) for number in range(1000)])
    bodies = list(digest_bodies(big, "monitor"))
    assert 2 <= len(bodies) <= 4
    assert all(len(body) < BODY_BYTES + 10_000 for _, body in bodies)
    assert len({part for part, _ in bodies}) == len(bodies)
    listed = [alert["labels"]["incident_id"] for _, body in bodies for alert in json.loads(body)["alerts"]]
    assert listed == [item.id for item in big.items]


# --- tickets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["github", "jira"])
async def test_a_digest_is_one_ticket_closed_when_all_of_it_is_over(authority: Authority, name: str) -> None:
    send = {plugin.name: plugin.digest.send for plugin in BUILTINS if plugin.digest}[name]
    async with serve(fake_tickets.create_app(token=TOKEN, user=USER, secret=SECRET), authority) as fake:
        cfg = configure(name, fake.url, authority.ca_file)
        first = await send(context(), cfg, begin())
        again = await send(context(), cfg, begin())
        assert again.reference == first.reference
        await send(context(), cfg, follow(first, over=2))
        await send(context(), cfg, follow(first, over=6))
        received = await fake.received()
    assert received["refused"] == []
    [issue] = received["issues"]
    assert (issue["state"], len(issue["comments"])) == ("closed", 2)


# --- hostile text ----------------------------------------------------------------------------------------------------

TEXT = st.one_of(
    st.text(max_size=400), st.sampled_from(["<!channel> <@U1> <https://evil.example|x>", "```", "\r\nBcc: x", "&" * 5000, "😀" * 3000, ""])
)
ITEMS = st.lists(
    st.builds(
        digest_item,
        st.integers(0, 10_000),
        st.sampled_from(list(Transition)),
        title=TEXT,
        summary=TEXT,
        service=TEXT,
        code=st.one_of(st.none(), TEXT),
        reason=TEXT,
        acked_by=st.one_of(st.none(), TEXT),
        evidence=st.lists(TEXT, max_size=5).map(tuple),
        first_step=TEXT,
        severity=st.sampled_from(list(Severity)),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.booleans())
def test_whatever_incidents_say_every_channel_keeps_its_limits_and_mentions_nobody(items: list[DigestItem], follows: bool) -> None:
    told = digest(items, first=Receipt("1", (("channel", "C1"), ("ts", "1"))) if follows else None)
    now = StillClock().now()
    message = compose_digest(told, now)
    card = build_digest_card(message, told, interactive=True)
    check_message(**card)  # the stand-in's own judgement of Slack's limits
    line = digest_thread_line(message, told)
    for text in (line, *_mrkdwn(card)):
        assert "<!" not in text
        assert "<@" not in text
        assert "<https://evil" not in text
    event = digest_event(told, now)
    assert fake_pagerduty.problems({"routing_key": "R" * 32, "event_action": "trigger", "dedup_key": told.home, **event}) == []
    assert len(json.dumps(event)) < 300_000
    whole = compose_digest(told, now, SHOWN)
    assert "<script" not in render_digest(whole, told.home)
    assert "\r" not in digest_text(whole, by_service(whole), told.home)
    assert "\n" not in whole.title + whole.news
    for _, body in digest_bodies(told, "monitor"):
        assert json.loads(body.decode(errors="strict"))["alerts"]


def _mrkdwn(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["text"]] if part.get("type") == "mrkdwn" else []
        return own + [text for value in part.values() for text in _mrkdwn(value)]
    return [text for value in part for text in _mrkdwn(value)] if isinstance(part, list) else []


def test_ten_thousand_incidents_are_a_card_and_a_page_within_the_limits(tmp_path: Path) -> None:
    told = begin(10_000)
    now = StillClock().now()
    message = compose_digest(told, now)
    check_message(**build_digest_card(message, told, interactive=True))
    assert message.more == 9990
    assert "10,000 incidents" in message.title
    event = digest_event(told, now)
    assert len(event["payload"]["custom_details"]["incidents"]) == 500
    assert event["payload"]["custom_details"]["and more"] == "9500 more on https://monitor.example.com"
