"""Every notification, by every built-in notifier, of every transition, says all of it: what, where, since when, how bad, what was seen,
the first step of the runbook, and where to go to see the incident and to take it."""

import html
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from alerts import BUILTINS, AnyNotifier
from alerts.alertmanager import AlertmanagerConfig
from alerts.message import links_for
from alerts.pagerduty_incidents import PagerDutyConfig
from alerts.slack import SlackConfig
from monitor.domain import IncidentState, Receipt, Transition
from monitor.plugins import PluginConfig
from services.externals import pagerduty, slack, tickets
from tests.integration.test_notify_email import config as mail_config
from tests.integration.test_notify_email import serving
from tests.integration.test_notify_tickets import SECRET, TOKEN, USER, configure
from tests.notify_parts import Authority, Fake, context, notification, serve

SITE = "https://monitor.example.com"
NOTIFIERS = {plugin.name: plugin for plugin in BUILTINS}
SILENT = {("pagerduty", Transition.ACKED), ("pagerduty", Transition.RESOLVED)}
"""PagerDuty's API takes no text with an acknowledgement or an end: they change the alert that said all of it."""

Seen = Callable[[], Awaitable[str]]
"""Everything that the far side has, as one text."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def far_side(name: str, authority: Authority) -> AsyncIterator[tuple[PluginConfig, Seen]]:
    if name == "email":
        async with serving(authority) as relay:

            async def mails() -> str:
                _, mail = relay.room.mails[-1]
                text, page = (part.get_content() for part in mail.iter_parts())  # type: ignore[attr-defined]
                return json.dumps([str(mail["Subject"]), text, html.unescape(page)], ensure_ascii=False)

            yield mail_config(relay, authority), mails
        return
    posted: list[Any] = []
    async with serve(app_of(name, posted), authority) as fake:

        async def received() -> str:
            return json.dumps(posted or await fake.received(), ensure_ascii=False)

        yield config_of(name, fake, authority), received


def app_of(name: str, posted: list[Any]) -> Starlette:
    async def take(request: Request) -> Response:
        posted.append(await request.json())
        return Response()

    match name:
        case "pagerduty":
            return pagerduty.create_app()
        case "slack":
            return slack.create_app(burst=10)
        case "alertmanager":
            return Starlette(routes=[Route("/api/v2/alerts", take, methods=["POST"])])
        case "webhook":
            return Starlette(routes=[Route("/hook", take, methods=["POST"])])
        case _:
            return tickets.create_app(token=TOKEN, user=USER, secret=SECRET)


def config_of(name: str, fake: Fake, authority: Authority) -> PluginConfig:
    match name:
        case "pagerduty":
            return PagerDutyConfig(routing_key=SecretStr("0" * 32), base_url=fake.url, ca_file=authority.ca_file)
        case "slack":
            return SlackConfig(
                token=SecretStr("xoxb-1234567890-abcdefghij"), channel="#ops", base_url=f"{fake.url}/api/", ca_file=authority.ca_file
            )
        case "alertmanager":
            return AlertmanagerConfig(urls=(fake.url,), ca_file=authority.ca_file)
        case _:
            return configure(name, fake.url, authority.ca_file)


async def tell(plugin: AnyNotifier, cfg: PluginConfig, transition: Transition, first: Receipt | None = None) -> Receipt:
    sent = notification(transition, reason="because of this", first=first, acked_by="ada" if transition is Transition.ACKED else None)
    return await plugin.send(context(), cfg, replace(sent, links=links_for(sent.incident, SITE)))


@pytest.mark.parametrize("transition", Transition)
@pytest.mark.parametrize("name", NOTIFIERS)
async def test_it_says_all_of_it(name: str, transition: Transition, authority: Authority, tmp_path: Path) -> None:
    sample = notification(transition).incident
    async with far_side(name, authority) as (cfg, seen):
        before, first = "", None
        if transition is not Transition.TRIGGERED:
            first = await tell(NOTIFIERS[name], cfg, Transition.TRIGGERED)
            before = await seen()
        await tell(NOTIFIERS[name], cfg, transition, first)
        said = await seen()
    assert said != before
    assert sample.summary in said
    assert "auth" in said
    assert "2026-11-23 08:00" in said or "2026-11-23T08:00" in said
    assert "P1" in said
    assert [line for line in sample.evidence[:3] if line not in said] == []
    assert f"{SITE}/incidents/{sample.id}" in said
    if (name, transition) in SILENT:
        return
    if sample.state is IncidentState.OPEN:
        assert f"{SITE}/incidents/{sample.id}#acknowledge" in said
    if transition is not Transition.RESOLVED:
        assert [line for line in sample.first_step.splitlines() if line not in said] == []


async def test_where_slacks_button_takes_it_no_link_offers_the_same(authority: Authority) -> None:
    async with far_side("slack", authority) as (cfg, seen):
        await tell(NOTIFIERS["slack"], cfg.model_copy(update={"signing_secret": SecretStr("s")}), Transition.TRIGGERED)
        said = await seen()
    assert "#acknowledge" not in said
    for button in ("Acknowledge", "Silence 1 h", "Incident", "Runbook"):
        assert said.count(f'"text": "{button}"') == 1
