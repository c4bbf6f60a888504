"""Every door through which an incident is taken, on the running monitor: signed, once, and into one timeline."""

import hashlib
import hmac
import html
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from alerts import slack
from alerts.email import render_html
from alerts.message import compose, links_for
from alerts.slack import SlackConfig
from monitor.alerting import Alerting
from monitor.api.doors import door_routes
from monitor.clock import SystemClock
from monitor.config.settings import Channel
from monitor.domain import Incident, IncidentState
from monitor.intake import Intake
from monitor.store import Store
from services.externals import pagerduty
from tests.integration.test_delivery import Switch, running
from tests.notify_parts import Authority, Fake, serve
from tests.notify_parts import notification as sample
from tests.support.monitoring import Target, child, free_port, ready, secret, write_config
from tests.support.world import Inbox, settings, until, until_async

TOKEN, SIGNING, WEBHOOK = "let-me-in", "slack-signing-secret", "pagerduty-webhook-secret"


@dataclass
class Doors:
    http: httpx2.AsyncClient
    pager: Fake
    store: Store
    target: Target

    @property
    def incident(self) -> Incident:
        return self.store.incidents.list(unresolved=False)[0]

    def history(self) -> str:
        return "\n".join(f"{entry.kind} {entry.text}" for entry in self.store.incidents.timeline(self.incident.id))

    async def slack(self, action: str, value: str, *, at: float | None = None, secret: str = SIGNING) -> httpx2.Response:
        payload = {"type": "block_actions", "user": {"id": "U1", "name": "anna"}, "actions": [{"action_id": action, "value": value}]}
        body = urlencode({"payload": json.dumps(payload)}).encode()
        stamp = str(int(time.time() if at is None else at))
        signature = "v0=" + hmac.new(secret.encode(), f"v0:{stamp}:{body.decode()}".encode(), hashlib.sha256).hexdigest()
        headers = {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": signature}
        return await self.http.post("/slack/interactions", content=body, headers=headers)

    async def pagerduty(
        self,
        kind: str,
        *,
        event_id: str = "e1",
        delivery: str = "w-1",
        agent: Any = None,
        secret: str = WEBHOOK,
        at: datetime | None = None,
        **data: Any,
    ) -> httpx2.Response:
        person = {"type": "user_reference", "summary": "Ben"} if agent is None else agent
        key = {"incident_key": self.incident.id}
        event = {"id": event_id, "event_type": kind, "agent": person, "data": {**key, **data}}
        event["occurred_at"] = (at or SystemClock().now()).isoformat()
        body = json.dumps({"event": event}).encode()
        right = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-PagerDuty-Signature": f"v1={'0' * 64},v1={right}", "X-Webhook-Id": delivery}
        return await self.http.post("/pagerduty/webhook", content=body, headers=headers)

    async def actions(self) -> list[str]:
        return [event["event_action"] for event in (await self.pager.received())["events"]]


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    """With one incident open, and its page delivered."""
    authority, target, port = Authority.create(tmp_path), Target(), free_port()
    for name, text in (("signing", SIGNING), ("webhook", WEBHOOK), ("slack", "xoxb-1")):
        secret(tmp_path, name, text)
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(tmp_path, target=target.url, pager_url=pager.url, ca_file=authority.ca_file, port=port, token=TOKEN)
        text = config.read_text().replace("[channels.oncall]\n", '[channels.oncall]\nwebhook_secret = {file = "webhook"}\n')
        slack = '[channels.ops]\nnotifier = "slack"\nchannel = "#ops"\ntoken = {file = "slack"}\nsigning_secret = {file = "signing"}\n'
        config.write_text(text + slack)
        async with child(tmp_path, "run", "--config", str(config)) as process:
            await ready(port, process, tmp_path)
            store = Store(f"sqlite:///{tmp_path / 'state' / 'monitor.db'}")
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http:
                opened = Doors(http, pager, store, target)
                await until_async(lambda: _is(opened, ["trigger"]))
                yield opened
            store.close()


async def _is(doors: Doors, actions: list[str]) -> bool:
    return await doors.actions() == actions


async def test_slacks_button_takes_it_once_and_everybody_told_hears(doors: Doors) -> None:
    assert (await doors.slack("acknowledge", doors.incident.id)).status_code == 200
    assert (doors.incident.state, doors.incident.acked_by) == (IncidentState.ACKED, "anna (Slack)")
    await until_async(lambda: _is(doors, ["trigger", "acknowledge"]))
    assert doors.history().count("acked acknowledged") == 1


async def test_a_forged_stale_or_repeated_slack_request_changes_nothing(doors: Doors) -> None:
    incident_id = doors.incident.id
    assert (await doors.slack("acknowledge", incident_id, secret="wrong")).status_code == 401
    assert (await doors.slack("acknowledge", incident_id, at=time.time() - 400)).status_code == 401
    for headers in ({}, {"X-Slack-Request-Timestamp": "x", "X-Slack-Signature": "v0=é"}, {"X-Slack-Request-Timestamp": "9" * 400}):
        sent = {name: value.encode() for name, value in headers.items()}
        assert (await doors.http.post("/slack/interactions", content=b"\xff", headers=sent)).status_code == 401
    assert doors.incident.state is IncidentState.OPEN
    at = time.time()
    assert (await doors.slack("silence-1h", incident_id, at=at)).status_code == 200
    assert (await doors.slack("silence-1h", incident_id, at=at)).status_code == 200
    assert len(doors.store.silences.list()) == 1


async def test_slacks_silence_covers_exactly_what_holds_it_open(doors: Doors) -> None:
    assert (await doors.slack("silence-1h", doors.incident.id)).status_code == 200
    (silence,) = doors.store.silences.list()
    assert {(matcher.name, matcher.value) for matcher in silence.matchers} == {("alertname", "ServiceDown"), ("service", "web")}
    await until(lambda: doors.incident.muted)
    assert "silenced until" in doors.history()
    assert (await doors.slack("silence-1h", "ffffffffffff")).status_code == 404


async def test_pagerdutys_acknowledgement_arrives_once_and_signed(doors: Doors) -> None:
    assert (await doors.pagerduty("incident.acknowledged", secret="wrong")).status_code == 401
    assert (await doors.http.post("/pagerduty/webhook", json={})).status_code == 401
    assert doors.incident.state is IncidentState.OPEN
    echo = {"type": "inbound_integration_reference", "summary": "monitor"}
    assert (await doors.pagerduty("incident.acknowledged", event_id="e0", agent=echo)).status_code == 200
    assert doors.incident.state is IncidentState.OPEN
    for _ in range(2):
        assert (await doors.pagerduty("incident.acknowledged")).status_code == 200
    assert (doors.incident.state, doors.incident.acked_by) == (IncidentState.ACKED, "Ben (PagerDuty)")
    assert doors.history().count("acked acknowledged") == 1


async def test_an_old_event_of_pagerduty_is_refused_and_a_header_makes_no_new_one(doors: Doors) -> None:
    assert (await doors.pagerduty("incident.acknowledged", at=SystemClock().now() - timedelta(hours=7))).status_code == 401
    assert doors.incident.state is IncidentState.OPEN
    for delivery in ("w-1", "w-2"):  # the header is not signed: whoever captured the request may change it
        answer = await doors.pagerduty("incident.reassigned", delivery=delivery, assignees=[{"summary": "Cleo"}])
        assert answer.status_code == 200
    assert doors.history().count("now assigned to Cleo") == 1


async def test_what_else_happens_in_pagerduty_is_a_line_in_the_history(doors: Doors) -> None:
    nobody: dict[str, str] = {}
    people, policy = [{"summary": "Cleo"}, {"summary": "Dan"}], {"summary": "Data"}
    await doors.pagerduty("incident.delegated", event_id="e1", assignees=people, escalation_policy=policy)
    await doors.pagerduty("incident.unacknowledged", event_id="e2", agent=nobody)
    await doors.pagerduty("incident.reopened", event_id="e3")
    await doors.pagerduty("incident.priority_updated", event_id="e4")
    history = doors.history()
    assert "in PagerDuty now assigned to Cleo, Dan by the policy Data" in history
    assert "the acknowledgement in PagerDuty ended: PagerDuty asks again" in history
    assert "Ben (PagerDuty) reopened it there" in history
    assert doors.incident.state is IncidentState.OPEN


async def test_a_captured_request_is_not_obeyed_again_after_a_restart(tmp_path: Path) -> None:
    """Slack's silence, captured within its five minutes: somebody ended it meanwhile, and it stays ended."""
    switch, page = Switch(), Inbox()
    chosen = settings(tmp_path, switch.subject, page=page)
    cfg = SlackConfig(token=SecretStr("xoxb-1"), signing_secret=SecretStr(SIGNING), channel="#ops")
    async with running(replace(chosen, channels={**chosen.channels, "ops": Channel("ops", slack, cfg)})) as world:
        world.clock.advance((SystemClock().now() - world.clock.now()).total_seconds())
        switch.down = True
        await world.look(switch.subject, 2)
        (incident,) = world.store.incidents.list(unresolved=True)
        for run in range(2):  # what a restart forgets is forgotten
            intake = Intake(world.engine, store=world.store, thread=world.thread, clock=world.clock, guides={})
            alerting = Alerting(
                world.engine, intake, store=world.store, thread=world.thread, reading=world.thread, clock=world.clock, version="1"
            )
            app = FastAPI()
            app.include_router(door_routes(alerting, lambda _: None))
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://monitor.test") as http:
                doors = Doors(http, Fake("", http), world.store, Target())
                at = world.clock.now().timestamp() - 40 * run
                assert (await doors.slack("silence-1h", incident.id, at=at)).status_code == 200
                (silence,) = world.store.silences.list()
                if run == 0:
                    await alerting.expire(silence)
            world.clock.advance(40)
        assert silence.ends_at < world.clock.now()


async def test_resolved_in_pagerduty_while_it_fails_is_taken_and_said(doors: Doors) -> None:
    assert (await doors.pagerduty("incident.reassigned", assignees=[{"summary": "Cleo"}])).status_code == 200
    assert "now assigned to Cleo" in doors.history()
    assert (await doors.pagerduty("incident.resolved", event_id="e2")).status_code == 200
    assert doors.incident.state is IncidentState.ACKED
    assert "stays open until the check sees health" in doors.history()


async def test_the_form_needs_the_token_and_a_get_takes_nothing(doors: Doors) -> None:
    place = f"/incidents/{doors.incident.id}"
    assert 'name="token"' in (await doors.http.get(place)).text
    assert (await doors.http.get(f"{place}/ack")).status_code == 405
    assert (await doors.http.post(f"{place}/ack", data={"who": "mallory", "token": "wrong"})).status_code == 401
    assert (await doors.http.post(f"{place}/ack", data={"who": " ", "token": TOKEN})).status_code == 400
    assert doors.incident.state is IncidentState.OPEN
    taken = await doors.http.post(f"{place}/ack", data={"who": "<b>anna</b>", "token": TOKEN})
    assert (taken.status_code, taken.headers["location"]) == (303, place)
    shown = (await doors.http.get(place)).text
    assert "&lt;b&gt;anna" in shown
    assert 'name="token"' not in shown


async def test_a_scanner_that_follows_every_link_of_a_mail_takes_nothing(doors: Doors) -> None:
    site = str(doors.http.base_url)
    incident = doors.incident
    told = replace(sample(), incident=incident, links=links_for(incident, site))
    hrefs = re.findall(r'href="([^"]+)"', render_html(compose(told, SystemClock().now())))
    assert {link.url for link in told.links} == set(map(html.unescape, hrefs))
    assert {link.title for link in told.links} == {"Incident", "Acknowledge", "Runbook"}
    page = (await doors.http.get(f"/incidents/{incident.id}")).text
    assert all(f'id="{link.url.partition("#")[2]}"' in page for link in told.links if "#" in link.url)
    for url in (*hrefs, f"{site}/incidents/{incident.id}/ack"):
        for method in ("GET", "HEAD", "OPTIONS"):
            await doors.http.request(method, url)
    assert doors.incident.state is IncidentState.OPEN


async def test_any_junk_is_refused_without_a_traceback(doors: Doors) -> None:
    for body in (b"", b"payload=", b"payload=[]", b"payload=%7B%22user%22%3A1%7D"):
        stamp = str(int(time.time()))
        signature = "v0=" + hmac.new(SIGNING.encode(), f"v0:{stamp}:{body.decode()}".encode(), hashlib.sha256).hexdigest()
        headers = {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": signature}
        assert (await doors.http.post("/slack/interactions", content=body, headers=headers)).status_code == 400
    for body in (b"", b"[]", b'{"event": 1}', b'{"event": {"id": 1, "event_type": "x", "data": 3}}'):
        right = hmac.new(WEBHOOK.encode(), body, hashlib.sha256).hexdigest()
        answer = await doors.http.post("/pagerduty/webhook", content=body, headers={"X-PagerDuty-Signature": f"v1={right}"})
        assert answer.status_code == 400


async def test_a_digest_acknowledged_in_pagerduty_or_slack_takes_its_incidents(doors: Doors) -> None:
    assert (await doors.pagerduty("incident.acknowledged", event_id="e1", incident_key="digest-none")).status_code == 200
    assert doors.incident.state is IncidentState.OPEN
    with doors.store._database.write() as connection:  # one incident makes no digest by itself
        connection.exec_driver_sql("UPDATE outbox SET digest = 'digest-0a1b'")
    assert (
        await doors.pagerduty("incident.reassigned", event_id="e2", incident_key="digest-0a1b.2", assignees=[{"summary": "Cleo"}])
    ).is_success
    assert "now assigned to Cleo" in doors.history()
    assert (await doors.pagerduty("incident.acknowledged", event_id="e3", incident_key="digest-0a1b")).status_code == 200
    assert (doors.incident.state, doors.incident.acked_by) == (IncidentState.ACKED, "Ben (PagerDuty)")
    assert (await doors.slack("acknowledge", "digest-0a1b")).status_code == 200
    assert (await doors.slack("acknowledge", "digest-none")).status_code == 404
