"""The Slack notifier against the stand-in, over real HTTPS; and the stand-in against Slack's own client."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from alerts import DeliveryError, slack
from alerts.slack import SlackConfig
from monitor.domain import Receipt, Severity, Transition
from monitor.plugins import Notifier
from services.externals import slack as fake_slack
from services.externals.slack_markup import mrkdwn_html, plain_html
from tests.notify_parts import Authority, Fake, context, notification, serve, unused_port

TOKEN = "xoxb-1234567890-abcdefghij"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(slots=True)
class Seconds:
    at: float = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@dataclass(frozen=True, slots=True)
class Workspace:
    fake: Fake
    cfg: SlackConfig
    clock: Seconds

    async def messages(self) -> list[dict[str, Any]]:
        channels = (await self.fake.received())["channels"]
        return [message for channel in channels for message in channel["messages"]]

    async def call(self, method: str, **body: object) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.fake.client.post(f"/api/{method}", json=body, headers=HEADERS)).json()
        return answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def workspace(authority: Authority) -> AsyncIterator[Workspace]:
    clock = Seconds()
    async with serve(fake_slack.create_app(clock=clock, burst=10), authority) as fake:
        cfg = SlackConfig(token=SecretStr(TOKEN), channel="#ops", base_url=f"{fake.url}/api/", ca_file=authority.ca_file)
        yield Workspace(fake, cfg, clock)


async def test_one_card_per_incident_with_its_history_in_the_thread(workspace: Workspace) -> None:
    first = await slack.send(context(), workspace.cfg, notification())
    later = [
        (Transition.ESCALATED, "team lead is told"),
        (Transition.ACKED, "acknowledged by anna"),
        (Transition.RESOLVED, "healthy again"),
    ]
    for transition, reason in later:
        receipt = await slack.send(context(), workspace.cfg, notification(transition, reason=reason, first=first))
        assert receipt.detail == first.detail
    card, *lines = await workspace.messages()
    assert card["ts"] == first.reference
    assert card["edits"] == 3
    assert "✅" in str(card["blocks"])
    assert [line["thread_ts"] for line in lines] == [card["ts"]] * 3
    assert [line["broadcast"] for line in lines] == [True, False, False]
    assert [line["text"] for line in lines] == [
        "⏫ *Escalated* · Team lead is told.",
        "👀 *Acknowledged* · Acknowledged by anna.",
        "✅ *Resolved* · Healthy again.",
    ]
    assert (await workspace.fake.received())["refused"] == []


async def test_a_card_has_everything_a_person_needs(workspace: Workspace) -> None:
    await slack.send(context(), workspace.cfg, notification())
    [card] = await workspace.messages()
    assert card["text"].startswith("[P1] auth: Service not responding (INC-001): GET")
    shown = str(card["blocks"]) + str(card["attachments"])
    for part in (
        "🔴 [P1] auth",
        "connection refused",
        "2026-11-23 08:00:00 UTC",
        "4 min so far",
        "reason: refused",
        "ps aux | grep uvicorn",
    ):
        assert part in shown
    [actions] = [block for block in card["attachments"][0]["blocks"] if block["type"] == "actions"]
    assert [button["url"] for button in actions["elements"]] == [
        "https://monitor.example.com/incidents/a1b2c3d4e5f6",
        "https://example.com/runbook",
    ]


async def test_a_deleted_card_is_posted_anew(workspace: Workspace) -> None:
    first = await slack.send(context(), workspace.cfg, notification())
    await workspace.fake.client.post("/_clear")
    again = await slack.send(context(), workspace.cfg, notification(Transition.ACKED, first=first))
    [card] = await workspace.messages()
    assert again.reference == card["ts"] != first.reference


async def test_a_receipt_without_a_card_posts_one(workspace: Workspace) -> None:
    await slack.send(context(), workspace.cfg, notification(Transition.ESCALATED, first=Receipt(reference="1.1")))
    assert len(await workspace.messages()) == 1


async def test_hostile_text_mentions_nobody_and_links_nowhere(workspace: Workspace) -> None:
    evil = "<!channel> <@U012AB3CD> <https://evil.example|click> ``` *x* &lt;!here&gt;"
    await slack.send(
        context(), workspace.cfg, notification(title=evil, summary=evil, evidence=(evil,), first_step=evil, reason=evil, id=evil)
    )
    page = (await workspace.fake.client.get("/")).text
    assert 'class="mention"' not in page
    assert 'href="https://evil.example' not in page
    assert "&lt;!channel&gt;" in page


@pytest.mark.parametrize(
    ("step", "retryable", "retry_after_s", "says"),
    [
        ({"status": 429, "retry_after": 30}, True, 30.0, "429"),
        ({"status": 500}, True, None, "500"),
        ({"status": 503, "body": "<html>"}, True, None, "503"),
        ({"status": 403, "body": "a proxy says no"}, False, None, "403"),
        ({"status": 302, "location": "https://127.0.0.1:1/"}, False, None, "redirects are not followed"),
        ({"status": 200, "body": "<html>a captive portal</html>"}, True, None, "not JSON"),
        ({"status": 200, "body": "[]"}, True, None, "not a JSON object"),
        ({"status": 200, "body": '{"ok": true}'}, True, None, "names no message"),
        ({"status": 200, "body": "x" * 1_100_000}, True, None, "larger than 1 MiB"),
        ({"error": "invalid_auth"}, False, None, "invalid_auth (the token is not valid)"),
        ({"error": "channel_not_found"}, False, None, "invite the app"),
        ({"error": "is_archived"}, False, None, "archived"),
        ({"error": "msg_blocks_too_long"}, False, None, "msg_blocks_too_long"),
        ({"error": "ratelimited"}, True, None, "ratelimited"),
        ({"error": "internal_error"}, True, None, "internal_error"),
        ({"error": "something_new"}, True, None, "something_new"),
        ({"reset": True}, True, None, "not reachable"),
    ],
)
async def test_failures_are_sorted_at_the_first_answer(
    workspace: Workspace, step: dict[str, object], retryable: bool, retry_after_s: float | None, says: str
) -> None:
    await workspace.fake.script(step, {"status": 418})
    with pytest.raises(DeliveryError) as caught:
        await slack.send(context(), workspace.cfg, notification())
    assert (caught.value.retryable, caught.value.retry_after_s) == (retryable, retry_after_s)
    assert says in str(caught.value)
    assert TOKEN not in str(caught.value)
    with pytest.raises(DeliveryError, match="418"):
        await slack.send(context(), workspace.cfg, notification())


async def test_a_line_that_failed_is_added_by_the_retry_and_only_once(workspace: Workspace) -> None:
    first = await slack.send(context(), workspace.cfg, notification())
    acked = notification(Transition.ACKED, first=first)
    await workspace.fake.script({"accept": True, "status": 200, "body": '{"ok": true}'}, {"status": 429, "retry_after": 1})
    with pytest.raises(DeliveryError) as caught:
        await slack.send(context(), workspace.cfg, acked)
    assert caught.value.retry_after_s == 1
    await slack.send(context(), workspace.cfg, acked)
    card, *lines = await workspace.messages()
    assert len(lines) == 1
    assert card["edits"] == 2


async def test_more_than_one_a_second_is_told_when_to_come_back(workspace: Workspace) -> None:
    for _ in range(10):
        await slack.send(context(), workspace.cfg, notification())
    with pytest.raises(DeliveryError) as caught:
        await slack.send(context(), workspace.cfg, notification())
    assert (caught.value.retryable, caught.value.retry_after_s) == (True, 1)
    workspace.clock.at += 1
    await slack.send(context(), workspace.cfg, notification())


async def test_a_hanging_provider_is_left_at_the_deadline(workspace: Workspace) -> None:
    await workspace.fake.script({"hang": True})
    started = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        await slack.send(context(deadline_s=0.3), workspace.cfg, notification())
    assert caught.value.retryable
    assert 0.2 < time.monotonic() - started < 2


async def test_a_cancelled_send_is_cancelled(workspace: Workspace) -> None:
    await workspace.fake.script({"hang": True})
    sending = asyncio.create_task(slack.send(context(), workspace.cfg, notification()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sending, 0.2)
    assert sending.cancelled()


async def test_nobody_listens(workspace: Workspace) -> None:
    cfg = workspace.cfg.model_copy(update={"base_url": f"https://127.0.0.1:{unused_port()}/api"})
    with pytest.raises(DeliveryError, match="not reachable") as caught:
        await slack.send(context(), cfg, notification())
    assert caught.value.retryable


async def test_an_untrusted_certificate_is_refused_before_the_token_leaves(workspace: Workspace) -> None:
    with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
        await slack.send(context(), workspace.cfg.model_copy(update={"ca_file": None}), notification())


@pytest.mark.parametrize(
    "values",
    [
        {"token": SecretStr("xoxb-wei rd"), "channel": "#ops"},
        {"token": SecretStr("xoxb-\nx"), "channel": "#ops"},
        {"token": SecretStr(TOKEN), "channel": "#"},
        {"token": SecretStr(TOKEN), "channel": "my ops"},
        {"token": SecretStr(TOKEN), "channel": "#ops", "base_url": "http://slack.com/api/"},
        {"token": TOKEN, "channel": "#ops"},
    ],
)
def test_bad_configuration_is_refused_and_never_echoed(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        SlackConfig.model_validate(values)
    assert "xoxb-1" not in str(caught.value)
    assert "wei rd" not in str(caught.value)


def test_the_declaration() -> None:
    assert isinstance(slack, Notifier)
    assert (slack.name, slack.config) == ("slack", SlackConfig)
    assert TOKEN not in repr(SlackConfig(token=SecretStr(TOKEN), channel="#ops"))


# --- the stand-in speaks as Slack does -------------------------------------------------------------------------------


async def test_slacks_own_client_is_content(workspace: Workspace, authority: Authority) -> None:
    client = WebClient(
        TOKEN, base_url=f"{workspace.fake.url}/api/", ssl=ssl.create_default_context(cafile=authority.ca_file), timeout=5, retry_handlers=[]
    )
    client.proxy = None
    assert (await asyncio.to_thread(client.auth_test))["ok"]
    posted = await asyncio.to_thread(lambda: client.chat_postMessage(channel="#ops", text="hello"))
    await asyncio.to_thread(lambda: client.chat_update(channel=posted["channel"], ts=posted["ts"], text="hello again"))
    form = {"channel": "#ops", "text": "by form", "blocks": '[{"type": "divider"}]'}
    await asyncio.to_thread(lambda: client.api_call("chat.postMessage", params=form))
    assert [message["text"] for message in await workspace.messages()] == ["hello again", "by form"]
    with pytest.raises(SlackApiError, match="message_not_found"):
        await asyncio.to_thread(lambda: client.chat_update(channel="#ops", ts="1.000001", text="x"))
    client.token = "wrong"
    with pytest.raises(SlackApiError, match="invalid_auth"):
        await asyncio.to_thread(client.auth_test)


def section(text: str) -> dict[str, object]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def plain(text: str) -> dict[str, str]:
    return {"type": "plain_text", "text": text}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "no_text"),
        ({"text": "x" * 40_001}, "msg_too_long"),
        ({"text": 1}, "invalid_arguments"),
        ({"blocks": [{"type": "divider"}] * 51}, "invalid_blocks"),
        ({"blocks": [{"type": "header", "text": plain("x" * 151)}]}, "invalid_blocks"),
        ({"blocks": [{"type": "header", "text": {"type": "mrkdwn", "text": "x"}}]}, "invalid_blocks"),
        ({"blocks": [section("x" * 3001)]}, "invalid_blocks"),
        ({"blocks": [section("")]}, "invalid_blocks"),
        ({"blocks": [{"type": "section"}]}, "invalid_blocks"),
        ({"blocks": [{"type": "section", "fields": [plain("x")] * 11}]}, "invalid_blocks"),
        ({"blocks": [{"type": "section", "fields": [plain("x" * 2001)]}]}, "invalid_blocks"),
        ({"blocks": [{"type": "context", "elements": [plain("x")] * 11}]}, "invalid_blocks"),
        ({"blocks": [{"type": "actions", "elements": []}]}, "invalid_blocks"),
        ({"blocks": [{"type": "actions", "elements": [{"type": "button", "text": plain("x" * 76)}]}]}, "invalid_blocks"),
        ({"blocks": [{"type": "actions", "elements": [{"type": "button", "text": plain("x"), "url": "javascript:1"}]}]}, "invalid_blocks"),
        ({"blocks": [{"type": "marquee"}]}, "invalid_blocks"),
        ({"blocks": ["x"]}, "invalid_blocks"),
        ({"blocks": [section("x" * 2900)] * 5}, "msg_blocks_too_long"),
        ({"attachments": [{"blocks": [section("x" * 2900)] * 5}]}, "msg_blocks_too_long"),
        ({"attachments": [{}] * 101}, "too_many_attachments"),
        ({"attachments": ["x"]}, "invalid_attachments"),
        ({"text": "x", "thread_ts": "1.000001"}, "thread_not_found"),
        ({"text": "x", "channel": "No Such"}, "channel_not_found"),
    ],
)
async def test_what_slack_refuses_is_refused(workspace: Workspace, body: dict[str, object], error: str) -> None:
    answer = await workspace.call("chat.postMessage", **{"channel": "#ops", **body})
    assert (answer["ok"], answer["error"]) == (False, error)
    assert await workspace.messages() == []


async def test_who_has_no_token_or_method_is_told(workspace: Workspace) -> None:
    post = workspace.fake.client.post
    assert (await post("/api/auth.test")).json()["error"] == "not_authed"
    assert (await post("/api/auth.test", headers={"Authorization": "Bearer xoxp-1"})).json()["error"] == "invalid_auth"
    assert (await post("/api/chat.delete", headers=HEADERS)).json()["error"] == "unknown_method"
    json_headers = {**HEADERS, "Content-Type": "application/json"}
    assert (await post("/api/auth.test", headers=json_headers, content=b"{")).json()["error"] == "invalid_json"
    assert (await post("/api/auth.test", headers=json_headers, content=b"[]")).json()["error"] == "json_not_object"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("*bold* _it_ `a*b*` 2*3*4", "<b>bold</b> <i>it</i> <code>a*b*</code> 2*3*4"),
        ("&lt;b&gt; &amp;amp;", "&lt;b&gt; &amp;amp;"),
        ("<!channel> <@U1>", '<b class="mention">@channel</b> <b class="mention">@U1</b>'),
        ("`<!here>`", '<code><b class="mention">@here</b></code>'),
        ("<https://a.example|A>", '<a href="https://a.example" rel="noreferrer">A</a>'),
        ("<javascript:alert(1)|A>", "&lt;javascript:alert(1)|A&gt;"),
        ("a\nb", "a<br>b"),
        ("```x\n*y*```", "<pre>x\n*y*</pre>"),
    ],
)
def test_mrkdwn_reads_as_in_slack(text: str, html: str) -> None:
    assert str(mrkdwn_html(text)) == html


def test_plain_text_has_no_markup() -> None:
    assert str(plain_html("*x* <!channel> &lt;")) == "*x* &lt;!channel&gt; &lt;"


@pytest.mark.parametrize("severity", list(Severity))
async def test_the_page_shows_the_channel(workspace: Workspace, severity: Severity) -> None:
    await slack.send(context(), workspace.cfg, notification(severity=severity))
    page = await workspace.fake.client.get("/")
    assert "# ops" in page.text
    assert f"[{severity.name}] auth: Service not responding (INC-001)" in page.text
