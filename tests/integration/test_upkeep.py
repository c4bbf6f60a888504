"""Reconciliation with the HTTPS stand-in of PagerDuty: outages on either side, lost webhooks, restarts, limits; one timeline, no loops."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from alerts import pagerduty as plugin
from alerts.pagerduty_incidents import PagerDutyConfig
from monitor.config.settings import Channel
from monitor.domain import EscalationStep, Incident, IncidentState, Severity
from monitor.engine import UPKEEP, acknowledge
from monitor.metrics.exposition import Exposition
from monitor.upkeep import FAILING_AFTER, UpkeepLoop
from services.externals import pagerduty
from tests.integration.test_delivery import Running, Switch, running
from tests.notify_parts import Authority, Fake, serve
from tests.support.world import Inbox, settings, until

KEY = "0123456789abcdef0123456789abcdef"


@dataclass
class Desk:
    """A monitor with one subject that is down, and PagerDuty."""

    world: Running
    pager: Fake
    loop: UpkeepLoop
    show: Exposition
    switch: Switch

    @property
    def incident(self) -> Incident:
        return self.world.store.incidents.list(unresolved=False)[0]

    def history(self) -> list[str]:
        return [entry.text for entry in self.world.store.incidents.timeline(self.incident.id)]

    async def delivered(self) -> None:
        await until(lambda: self.world.store.outbox.undelivered() == ())

    async def down(self, *, down: bool = True) -> None:
        self.switch.down = down
        await self.world.look(self.switch.subject, 3)
        await self.delivered()

    async def compare(self, after_s: float = 400) -> None:
        await self.world.wait(after_s)
        await self.loop.look()
        await self.delivered()

    async def there(self, action: str, who: str | None = "Ben", key: str = "") -> None:
        done = await self.pager.client.post("/_people", json={"key": key or self.incident.id, "action": action, "who": who})
        done.raise_for_status()

    async def events(self) -> list[str]:
        return [event["event_action"] for event in (await self.pager.received())["events"]]

    async def state_there(self) -> str:
        return str((await self.pager.received())["incidents"][-1]["state"])

    async def script_rest(self, *steps: dict[str, Any]) -> None:
        (await self.pager.client.post("/_script_rest", json={"next": list(steps)})).raise_for_status()

    def metric(self, name: str) -> float:
        (line,) = [line for line in self.show.render().decode().splitlines() if line.startswith(f"{name} ")]
        return float(line.rpartition(" ")[2])


@asynccontextmanager
async def desk(folder: Path, authority: Authority, **more: Any) -> AsyncIterator[Desk]:
    switch, well = Switch(), Inbox()
    worlds: list[Running] = []
    app = pagerduty.create_app(clock=lambda: worlds[0].clock.now().timestamp(), rest_per_min=30)
    async with serve(app, authority) as pager:
        chosen = settings(folder, switch.subject, well=well)
        cfg = PagerDutyConfig(
            routing_key=SecretStr(KEY),
            base_url=pager.url,
            api_url=pager.url,
            ca_file=authority.ca_file,
            **{"api_token": SecretStr("t" * 20), **more},
        )
        channels = {**chosen.channels, "oncall": Channel("oncall", replace(plugin, per_minute=None), cfg)}
        chain = (EscalationStep(0, "on-call", ("oncall",)),)
        chosen = replace(chosen, channels=channels, escalation=dict.fromkeys(Severity, chain))
        async with running(chosen) as world:
            worlds.append(world)
            show = Exposition("test")
            loop = UpkeepLoop(world.engine, store=world.store, thread=world.thread, clock=world.clock, show=show)
            yield Desk(world, pager, loop, show, switch)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def at(tmp_path: Path, authority: Authority) -> AsyncIterator[Desk]:
    async with desk(tmp_path, authority, service_id=pagerduty.service_id(KEY)) as opened:
        await opened.down()
        assert await opened.events() == ["trigger"]
        yield opened


async def test_both_sides_agree_and_nothing_is_sent_or_written(at: Desk) -> None:
    before = at.history()
    for _ in range(3):
        await at.compare()
    assert at.history() == before
    assert await at.events() == ["trigger"]
    assert at.metric('monitor_upkeep_total{channel="oncall",outcome="ok"}') == 3


async def test_an_acknowledgement_whose_webhook_was_lost_is_taken_once_and_does_not_echo(at: Desk) -> None:
    await at.there("acknowledge")
    for _ in range(4):
        await at.compare()
    assert (at.incident.state, at.incident.acked_by) == (IncidentState.ACKED, "Ben (PagerDuty)")
    assert await at.events() == ["trigger", "acknowledge"]
    assert sum(text.startswith("acknowledged by") for text in at.history()) == 1
    assert at.metric('monitor_upkeep_repairs_total{channel="oncall",repair="acknowledged"}') == 1


async def test_resolved_there_while_it_fails_is_decided_as_the_webhook_decides(at: Desk) -> None:
    await at.there("resolve")
    for _ in range(3):
        await at.compare()
    assert at.incident.state is IncidentState.ACKED
    assert sum("stays open until the check sees health" in text for text in at.history()) == 1
    assert await at.state_there() == "resolved"


async def test_an_end_that_pagerduty_lost_is_sent_again(at: Desk) -> None:
    await at.down(down=False)
    await at.there("reopen", who=None)  # as if the end had never arrived
    await at.compare()
    assert await at.events() == ["trigger", "resolve", "resolve"]
    assert await at.state_there() == "resolved"
    await at.compare()
    assert len(await at.events()) == 3


async def test_what_somebody_reopened_there_is_theirs(at: Desk) -> None:
    await at.down(down=False)
    await at.world.wait(60)
    await at.there("reopen", who="Cleo")
    for _ in range(2):
        await at.compare()
    assert await at.state_there() == "triggered"
    assert sum("Cleo (PagerDuty) reopened it" in text for text in at.history()) == 1
    assert at.metric('monitor_upkeep_drift{channel="oncall"}') == 1


async def test_what_pagerduty_forgot_is_told_once_more_and_said(at: Desk) -> None:
    await at.pager.client.post("/_clear")
    await at.compare()
    assert await at.state_there() == "triggered"
    await at.pager.client.post("/_clear")
    for _ in range(3):
        await at.compare()
    assert await at.events() == []
    assert sum("knows nothing of it" in text for text in at.history()) == 1
    assert at.metric('monitor_upkeep_drift{channel="oncall"}') == 1


async def test_our_acknowledgement_that_was_lost_there_is_sent_again_but_its_timeout_there_is_not_undone(at: Desk) -> None:
    acknowledge(at.world.store, at.incident.id, "ada", at.world.clock)
    await at.world.wait(1)
    await at.delivered()
    await at.there("unacknowledge", who=None)
    await at.compare()
    assert await at.events() == ["trigger", "acknowledge", "acknowledge"]
    await at.there("unacknowledge", who=None)
    await at.compare()
    assert len(await at.events()) == 3


async def test_nothing_is_judged_while_the_outbox_still_works_on_it(at: Desk) -> None:
    await at.pager.script({"status": 503})
    at.switch.down = False
    await at.world.look(at.switch.subject, 3)
    await until(lambda: ("oncall", "retried") in at.world.outcomes)
    await at.loop.look()
    assert at.metric('monitor_upkeep_total{channel="oncall",outcome="ok"}') == 1
    await at.world.wait(600)
    await at.delivered()
    assert await at.events() == ["trigger", "resolve"]


async def test_a_channel_that_works_again_is_compared_as_soon_as_things_have_settled(at: Desk) -> None:
    await at.compare()
    done = at.metric('monitor_upkeep_total{channel="oncall",outcome="ok"}')
    for outcome in ("sent", "retried", "sent"):
        at.loop.heard("oncall", outcome)
    await at.compare(after_s=62)
    assert at.metric('monitor_upkeep_total{channel="oncall",outcome="ok"}') == done + 1
    await at.compare(after_s=62)
    assert at.metric('monitor_upkeep_total{channel="oncall",outcome="ok"}') == done + 1


async def test_their_outage_is_asked_again_as_they_wish_and_becomes_an_incident_that_ends(at: Desk) -> None:
    await at.script_rest(
        {"status": 429, "retry_after": 900}, {"reset": True}, {"status": 502, "body": "<html>"}, {"status": 200, "body": "{}"}
    )
    await at.compare()
    await at.compare(after_s=600)
    assert at.metric('monitor_upkeep_total{channel="oncall",outcome="failed"}') == 1
    for _ in range(FAILING_AFTER):
        await at.compare(after_s=400)
    assert at.metric('monitor_upkeep_total{channel="oncall",outcome="failed"}') == FAILING_AFTER + 1
    await at.loop.judge()
    (alert,) = [alert for alert in at.world.store.incidents.live_alerts() if alert.instance == UPKEEP]
    assert "lists no incidents" in alert.summary
    await at.compare()
    await at.loop.judge()
    assert [alert for alert in at.world.store.incidents.live_alerts() if alert.instance == UPKEEP] == []
    assert at.metric('monitor_upkeep_last_success_timestamp_seconds{channel="oncall"}') == at.world.clock.now().timestamp()


async def test_a_wrong_token_is_said_without_it(tmp_path: Path, authority: Authority) -> None:
    async with desk(tmp_path, authority, api_token=SecretStr("wrong-token")) as opened:
        for _ in range(FAILING_AFTER):
            await opened.compare()
        await opened.loop.judge()
        (alert,) = [alert for alert in opened.world.store.incidents.live_alerts() if alert.instance == UPKEEP]
        assert "401: Authentication failed" in alert.summary
        assert "wrong-token" not in alert.summary


async def test_without_a_token_nothing_is_asked(tmp_path: Path, authority: Authority) -> None:
    async with desk(tmp_path, authority, api_token=None) as opened:
        await opened.compare()
        assert "monitor_upkeep_total{" not in opened.show.render().decode()


async def test_ours_is_found_among_many_pages_of_others(at: Desk) -> None:
    payload = {"summary": "another's", "source": "x", "severity": "info"}
    for number in range(110):
        key = f"{number % 2:032}"
        await at.pager.client.post(
            "/v2/enqueue", json={"routing_key": key, "event_action": "trigger", "dedup_key": f"other-{number}", "payload": payload}
        )
    await at.there("acknowledge")
    at.world.engine.settings = replace(
        at.world.engine.settings,
        channels={
            name: replace(channel, config=channel.config.model_copy(update={"service_id": None})) if name == "oncall" else channel
            for name, channel in at.world.engine.settings.channels.items()
        },
    )
    await at.compare()
    assert at.incident.acked_by == "Ben (PagerDuty)"


async def test_a_restart_compares_at_once_with_what_is_stored(at: Desk) -> None:
    await at.world.wait(3600)
    await at.there("acknowledge")
    fresh = UpkeepLoop(at.world.engine, store=at.world.store, thread=at.world.thread, clock=at.world.clock, show=at.show)
    await fresh.look()
    assert at.incident.acked_by == "Ben (PagerDuty)"
