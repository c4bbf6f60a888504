"""The PagerDuty notifier against the stand-in, over real HTTPS; and the stand-in's own rules."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr, ValidationError

from alerts import DeliveryError, pagerduty
from alerts.pagerduty_incidents import PagerDutyConfig
from alerts.transport import retry_after_s
from monitor.domain import Severity, Transition
from monitor.plugins import Notifier
from services.externals import pagerduty as fake_pagerduty
from tests.notify_parts import Authority, Fake, context, notification, serve, unused_port

KEY = "R0123456789abcdefghijklmnopqrstu"


@dataclass(slots=True)
class Seconds:
    at: float = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@dataclass(frozen=True, slots=True)
class Pager:
    fake: Fake
    cfg: PagerDutyConfig
    clock: Seconds

    async def enqueue(self, **event: object) -> tuple[int, dict[str, object], dict[str, str]]:
        answer = await self.fake.client.post("/v2/enqueue", json=event)
        return answer.status_code, answer.json(), dict(answer.headers)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def pager(authority: Authority) -> AsyncIterator[Pager]:
    clock = Seconds()
    async with serve(fake_pagerduty.create_app(clock=clock, rate_per_min=20), authority) as fake:
        yield Pager(fake, PagerDutyConfig(routing_key=SecretStr(KEY), base_url=fake.url, ca_file=authority.ca_file), clock)


def event(**changes: object) -> dict[str, object]:
    payload = {"summary": "auth is down", "source": "auth", "severity": "critical"}
    return {"routing_key": KEY, "event_action": "trigger", "dedup_key": "k1", "payload": payload, **changes}


async def test_an_incident_lives_one_life(pager: Pager) -> None:
    for transition in (Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED, Transition.ACKED, Transition.RESOLVED):
        receipt = await pagerduty.send(context(), pager.cfg, notification(transition))
        assert receipt.reference == "a1b2c3d4e5f6"
    received = await pager.fake.received()
    assert [call["outcome"] for call in received["events"]] == ["opened", "folded", "folded", "acknowledged", "resolved"]
    assert received["refused"] == []
    [incident] = received["incidents"]
    assert (incident["state"], incident["triggers"], incident["dedup_key"]) == ("resolved", 3, "a1b2c3d4e5f6")
    assert incident["summary"] == (
        "[P1] auth: Service not responding (INC-001): GET http://127.0.0.1:8003/health: connection refused, 2 times in a row"
    )


async def test_the_page_carries_evidence_first_step_and_links(pager: Pager) -> None:
    await pagerduty.send(context(), pager.cfg, notification())
    sent = (await pager.fake.received())["events"][0]["event"]
    assert sent["payload"]["timestamp"] == "2026-11-23T08:00:00+00:00"
    assert sent["payload"]["source"] == "auth"
    details = sent["payload"]["custom_details"]
    assert details["evidence"][0] == "reason: refused"
    assert details["first step"].startswith("ps aux")
    assert sent["client"] == "monitor"
    assert sent["client_url"] == sent["links"][0]["href"] == "https://monitor.example.com/incidents/a1b2c3d4e5f6"


@pytest.mark.parametrize(
    ("severity", "word"), [(Severity.P1, "critical"), (Severity.P2, "error"), (Severity.P3, "warning"), (Severity.P4, "info")]
)
async def test_severities(pager: Pager, severity: Severity, word: str) -> None:
    await pagerduty.send(context(), pager.cfg, notification(severity=severity))
    assert (await pager.fake.received())["incidents"][0]["severity"] == word


@pytest.mark.parametrize(
    ("step", "retryable", "retry_after_s", "says"),
    [
        ({"status": 429, "retry_after": 2}, True, 2.0, "429"),
        ({"status": 429}, True, None, "429"),
        ({"status": 429, "retry_after": 1e9}, True, 3600.0, "429"),
        ({"status": 500}, True, None, "500"),
        ({"status": 503}, True, None, "503"),
        ({"status": 504}, True, None, "504"),
        ({"status": 400}, False, None, "400: Event object is invalid"),
        ({"status": 401}, False, None, "401"),
        ({"status": 403}, False, None, "403"),
        ({"status": 404}, False, None, "404"),
        ({"status": 302, "location": "https://127.0.0.1:1/"}, False, None, "redirects are not followed"),
        ({"status": 200, "body": "<html>a captive portal</html>"}, True, None, "200"),
        ({"status": 202, "body": "[]"}, True, None, "202"),
        ({"status": 400, "body": KEY}, False, None, "400"),
        ({"reset": True}, True, None, "not reachable"),
    ],
)
async def test_failures_are_sorted_at_the_first_answer(
    pager: Pager, step: dict[str, object], retryable: bool, retry_after_s: float | None, says: str
) -> None:
    await pager.fake.script(step, {"status": 418})
    started = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        await pagerduty.send(context(), pager.cfg, notification())
    assert (caught.value.retryable, caught.value.retry_after_s) == (retryable, retry_after_s)
    assert says in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY[-4:] not in str(caught.value)
    assert time.monotonic() - started < 2, "the client slept or tried again by itself"
    with pytest.raises(DeliveryError, match="418"):  # the second step is still there: one send is one request
        await pagerduty.send(context(), pager.cfg, notification())


def test_a_date_as_retry_after() -> None:
    def answer(seconds: int) -> str:
        return f"Mon, 23 Nov 2026 08:04:{seconds:02} GMT"

    now = context().clock.now()
    assert retry_after_s(answer(30), now) == 30
    assert retry_after_s("Mon, 23 Nov 2026 07:00:00 GMT", now) == 0
    assert [retry_after_s(junk, now) for junk in (None, "", "soon", "nan", "inf")] == [None] * 5


async def test_a_hanging_provider_is_left_at_the_deadline(pager: Pager) -> None:
    await pager.fake.script({"hang": True})
    started = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        await pagerduty.send(context(deadline_s=0.3), pager.cfg, notification())
    assert caught.value.retryable
    assert 0.2 < time.monotonic() - started < 2


async def test_a_cancelled_send_is_cancelled(pager: Pager) -> None:
    await pager.fake.script({"hang": True})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await pagerduty.send(context(deadline_s=1), pager.cfg, notification())


async def test_an_accepted_page_whose_answer_is_lost_folds_when_repeated(pager: Pager) -> None:
    await pager.fake.script({"reset": True, "accept": True})
    with pytest.raises(DeliveryError) as caught:
        await pagerduty.send(context(), pager.cfg, notification())
    assert caught.value.retryable
    await pagerduty.send(context(), pager.cfg, notification())
    received = await pager.fake.received()
    assert [incident["triggers"] for incident in received["incidents"]] == [2]


async def test_nobody_listens(pager: Pager) -> None:
    cfg = pager.cfg.model_copy(update={"base_url": f"https://127.0.0.1:{unused_port()}"})
    with pytest.raises(DeliveryError, match="not reachable") as caught:
        await pagerduty.send(context(), cfg, notification())
    assert caught.value.retryable


async def test_an_untrusted_certificate_is_refused(pager: Pager) -> None:
    with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        await pagerduty.send(context(), pager.cfg.model_copy(update={"ca_file": None}), notification())
    assert caught.value.retryable
    assert (await pager.fake.received())["events"] == []


async def test_a_missing_ca_file_is_named(pager: Pager) -> None:
    with pytest.raises(DeliveryError, match=r"ca_file /nowhere/ca\.pem cannot be used: No such file"):
        await pagerduty.send(context(), pager.cfg.model_copy(update={"ca_file": "/nowhere/ca.pem"}), notification())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"routing_key": SecretStr("short-secret")}, "32 letters and digits, got 12"),
        ({"routing_key": SecretStr(KEY), "base_url": "http://events.pagerduty.com"}, "https://"),
        ({"routing_key": SecretStr(KEY), "base_url": "https://[::1"}, "base_url"),
        ({"routing_key": KEY}, "routing_key"),
        ({"routing_key": SecretStr(KEY), "routing": 1}, "routing"),
    ],
)
def test_bad_configuration_is_named_and_never_echoed(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PagerDutyConfig.model_validate(values)
    assert says in str(caught.value)
    assert "short-secret" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_the_declaration() -> None:
    assert isinstance(pagerduty, Notifier)
    assert (pagerduty.name, pagerduty.config) == ("pagerduty", PagerDutyConfig)
    assert pagerduty.help
    assert KEY not in repr(PagerDutyConfig(routing_key=SecretStr(KEY)))


# --- the stand-in keeps PagerDuty's rules ----------------------------------------------------------------------------


async def test_keys_decide_what_folds(pager: Pager) -> None:
    assert (await pager.enqueue(**event()))[:2] == (202, {"status": "success", "message": "Event processed", "dedup_key": "k1"})
    await pager.enqueue(**event(routing_key="X" * 32))
    await pager.enqueue(**event(routing_key="Y" * 32, event_action="resolve"))
    await pager.enqueue(**event(event_action="resolve"))
    await pager.enqueue(**event(event_action="resolve"))
    await pager.enqueue(**event(event_action="acknowledge"))
    await pager.enqueue(**event())
    received = await pager.fake.received()
    outcomes = [call["outcome"] for call in received["events"]]
    assert outcomes == ["opened", "opened", "dropped", "resolved", "dropped", "dropped", "opened"]
    assert [incident["number"] for incident in received["incidents"]] == [1, 2, 3]
    assert KEY not in str(received)


async def test_without_a_key_every_trigger_is_new(pager: Pager) -> None:
    keys = {(await pager.enqueue(**event(dedup_key=None)))[1]["dedup_key"] for _ in range(2)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"routing_key": "short"}, "Length of 'routing_key' is incorrect (should be 32 characters)"),
        ({"routing_key": None}, "'routing_key' is missing or blank"),
        ({"event_action": "page"}, "'event_action' is invalid"),
        ({"event_action": "resolve", "dedup_key": ""}, "'dedup_key' is missing"),
        ({"dedup_key": "k" * 256}, "Length of 'dedup_key'"),
        ({"payload": None}, "'payload' is missing or blank"),
        ({"payload": {"summary": "x"}}, "'payload.source' is missing or blank"),
        ({"payload": {"summary": "x", "source": "x", "severity": "P1"}}, "'payload.severity' is invalid"),
        ({"payload": {"summary": "x" * 1025, "source": "x", "severity": "info"}}, "Length of 'payload.summary'"),
        ({"payload": {"summary": "x", "source": "x", "severity": "info", "timestamp": "now"}}, "timestamp"),
        ({"links": [{"text": "no address"}]}, "'links.href' is missing"),
        ({"images": [{"src": "http://example.com/x.png"}]}, "HTTPS"),
    ],
)
async def test_invalid_events_are_refused_in_pagerdutys_words(pager: Pager, changes: dict[str, object], says: str) -> None:
    status, answer, _ = await pager.enqueue(**event(**changes))
    assert (status, answer["status"], answer["message"]) == (400, "invalid event", "Event object is invalid")
    assert says in str(answer["errors"])


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b'{"a": "' + b"x" * 524_288 + b'"}', 413)])
async def test_bodies_that_are_no_event(pager: Pager, body: bytes, status: int) -> None:
    assert (await pager.fake.client.post("/v2/enqueue", content=body)).status_code == status


async def test_too_many_in_a_minute_wait_for_the_oldest_to_leave_it(pager: Pager) -> None:
    statuses = [(await pager.enqueue(**event()))[0] for _ in range(20)]
    assert set(statuses) == {202}
    pager.clock.at += 20
    status, answer, headers = await pager.enqueue(**event())
    assert (status, answer["status"], headers["retry-after"]) == (429, "throttle exceeded", "40")
    assert (await pager.enqueue(**event(routing_key="X" * 32)))[0] == 202
    with pytest.raises(DeliveryError) as caught:
        await pagerduty.send(context(), pager.cfg, notification())
    assert caught.value.retry_after_s == 40
    pager.clock.at += 40
    await pagerduty.send(context(), pager.cfg, notification())


async def test_the_page_shows_people_what_came_and_runs_nothing_of_it(pager: Pager) -> None:
    await pagerduty.send(context(), pager.cfg, notification(title="<script>alert(1)</script>"))
    page = await pager.fake.client.get("/")
    assert "&lt;script&gt;alert(1)" in page.text
    assert "<script>alert" not in page.text
    assert "script-src 'nonce-" in page.headers["content-security-policy"]
    assert (await pager.fake.client.post("/_clear")).status_code == 303
    assert "Nobody was paged yet." in (await pager.fake.client.get("/")).text


async def test_a_bad_script_is_refused(pager: Pager) -> None:
    assert (await pager.fake.client.post("/_script", json={"next": [{"statsu": 429}]})).status_code == 400
