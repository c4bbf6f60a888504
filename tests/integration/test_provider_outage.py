"""An hour of a provider's bad day, against the HTTPS stand-in of PagerDuty: nothing is lost, order is kept, nobody else is disturbed."""

from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from alerts import pagerduty as plugin
from alerts.pagerduty_incidents import PagerDutyConfig
from monitor.config.settings import Channel
from monitor.domain import EscalationStep, Severity
from services.externals import pagerduty
from tests.integration.test_delivery import Running, Switch, running
from tests.notify_parts import Authority, serve
from tests.support.world import Inbox, instance, settings, until

BAD_DAY = (
    *({"status": 429, "retry_after": 300},) * 4,
    *({"status": 503},) * 4,
    {"reset": True},
    {"reset": True, "accept": True},
    {"status": 502, "body": "<html>something in between</html>"},
    {"hang": True},
    {"status": 200, "body": "{}"},
    *({"status": 429, "retry_after": 60},) * 4,
    *({"status": 500},) * 8,
)
SUBJECTS = 4


async def calm(world: Running) -> None:
    """Wait until everything that is due has been tried."""
    await until(lambda: world.store.outbox.owners() == () and world.store.outbox.untried_s(world.clock.now()) == 0, within_s=30)


async def test_an_hour_of_every_failure_loses_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    authority, well, switch = Authority.create(tmp_path), Inbox(), Switch()
    subjects = [instance(switch.look, service=f"service{number}") for number in range(SUBJECTS)]
    async with serve(pagerduty.create_app(), authority) as pager:
        chosen = settings(tmp_path, *subjects, well=well)
        cfg = PagerDutyConfig(routing_key=SecretStr("0" * 32), base_url=pager.url, ca_file=authority.ca_file)
        channels = {**chosen.channels, "sick": Channel("sick", replace(plugin, per_minute=None), cfg)}
        chain = (EscalationStep(0, "both", ("sick", "well")),)
        chosen = replace(chosen, channels=channels, escalation=dict.fromkeys(Severity, chain))
        async with running(chosen) as world:
            await pager.script(*BAD_DAY)
            for down in (True, False):
                switch.down = down
                for subject in (*subjects, *subjects):
                    await world.engine.run(subject)
                await until(lambda down=down: len(well.arrived) == SUBJECTS * (1 if down else 2))
                for _ in range(30):  # half an hour
                    await world.wait(60)
                    await calm(world)
            await world.wait(3600)
            await until(lambda: world.store.outbox.undelivered() == ())
            received = await pager.received()
        incidents = world_incidents(received)
        assert len(incidents) == SUBJECTS
        for seen in incidents.values():
            assert (seen[0], seen[-1]) == ("trigger", "resolve")
            assert "trigger" not in seen[seen.index("resolve") :]
        assert [incident["state"] for incident in received["incidents"]] == ["resolved"] * SUBJECTS
        assert len(received["refused"]) >= 12


def world_incidents(received: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """What the provider accepted, by incident."""
    found: dict[str, list[str]] = {}
    for event in received["events"]:
        found.setdefault(event["dedup_key"], []).append(event["event_action"])
    return found
