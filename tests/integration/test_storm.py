"""A storm through engine, store, delivery and PagerDuty's stand-in: few pages that name everything, the end of each, a stand-in's turn."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from alerts import pagerduty as plugin
from alerts.pagerduty import PagerDutyConfig
from monitor.config.settings import Channel, CheckInstance, Settings
from monitor.digested import acknowledge_digest
from monitor.domain import Digest, EscalationStep, Receipt, Severity, Transition
from monitor.errors import DeliveryError
from monitor.plugins import Digesting, Notifier, NotifyContext, PluginConfig
from monitor.selfwatch import SelfWatch
from services.externals import pagerduty
from tests.integration.test_delivery import Running, Switch, running
from tests.notify_parts import Authority, serve
from tests.support.world import Inbox, instance, settings, until

MANY = 40


class Crowd:
    """A channel that tells many at once; ``fault`` is raised while it is set."""

    def __init__(self) -> None:
        self.alone = Inbox()
        self.digests: list[Digest] = []
        self.fault: DeliveryError | None = None

    async def tell_many(self, ctx: NotifyContext, cfg: PluginConfig, digest: Digest) -> Receipt:
        if self.fault is not None:
            raise self.fault
        self.digests.append(digest)
        return Receipt(digest.home)

    def channel(self, name: str, **more: object) -> Channel:
        notifier = Notifier(name=name, help="A crowd.", config=PluginConfig, send=self.alone.send, digest=Digesting(self.tell_many))
        return Channel(name, notifier, PluginConfig(), **more)  # type: ignore[arg-type]


def told_by(folder: Path, subjects: list[CheckInstance], *channels: Channel) -> Settings:
    """Everybody hears through the first channel."""
    chosen = settings(folder, *subjects)
    chain = (EscalationStep(0, "on-call", (channels[0].name,)),)
    return replace(chosen, channels={channel.name: channel for channel in channels}, escalation=dict.fromkeys(Severity, chain))


def _heard(crowd: Crowd, *kinds: Transition) -> set[str]:
    """The services of which something arrived, or something of that kind, alone or in a digest."""
    alone = [(one.transition, one.incident.service) for one in crowd.alone.arrived]
    together = [(item.transition, item.service) for digest in crowd.digests for item in digest.items]
    return {service for kind, service in (*alone, *together) if not kinds or kind in kinds}


def subjects_of(switch: Switch) -> list[CheckInstance]:
    return [instance(switch.look, service=f"service{number:02}") for number in range(MANY)]


async def look(world: Running, subjects: list[CheckInstance]) -> None:
    for subject in (*subjects, *subjects):
        await world.engine.run(subject)


async def test_a_storm_pages_a_few_alone_and_the_rest_at_once_and_everything_ends(tmp_path: Path) -> None:
    authority, switch = Authority.create(tmp_path), Switch()
    subjects = subjects_of(switch)
    async with serve(pagerduty.create_app(), authority) as fake:
        cfg = PagerDutyConfig(routing_key=SecretStr("0" * 32), base_url=fake.url, ca_file=authority.ca_file)
        chosen = told_by(tmp_path, subjects, Channel("pager", replace(plugin, per_minute=None), cfg, digest_from=5))
        async with running(chosen) as world:
            switch.down = True
            await look(world, subjects)
            await until(lambda: len(world.outcomes) == 5)
            await world.wait(10)
            await until(lambda: len(world.outcomes) == 6)
            received = await fake.received()
            assert len(received["incidents"]) == 6
            (digest,) = [one for one in received["incidents"] if one["dedup_key"].startswith("digest-")]
            assert len(digest["details"]["incidents"]) == MANY - 5
            assert acknowledge_digest(world.store, digest["dedup_key"], "Ben (PagerDuty)", world.clock) == MANY - 5
            await world.wait(10)
            await until(lambda: len(world.outcomes) == 7)
            switch.down = False
            await look(world, subjects)
            await until(lambda: len(world.outcomes) == 12)
            await world.wait(10)
            await until(lambda: world.store.outbox.undelivered() == ())
            received = await fake.received()
        assert {one["state"] for one in received["incidents"]} == {"resolved"}
        actions = [event["event_action"] for event in received["events"] if event["dedup_key"] == digest["dedup_key"]]
        assert actions == ["trigger", "acknowledge", "resolve"]


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_stand_in_tells_the_storm_together_too_and_its_end(tmp_path: Path, retryable: bool) -> None:
    sick, well, switch = Crowd(), Crowd(), Switch()
    sick.fault = DeliveryError("503: not now", retryable=retryable, retry_after_s=60)
    subjects = subjects_of(switch)
    chosen = told_by(tmp_path, subjects, sick.channel("sick", fallback="well", digest_from=1), well.channel("well", digest_from=1))
    async with running(chosen) as world:
        world.engine.each_round = SelfWatch(world.engine, store=world.store, thread=world.thread, clock=world.clock).look
        switch.down = True
        await look(world, subjects)
        await until(lambda: len(sick.alone.arrived) == 1)
        everybody = {subject.service.name for subject in subjects}
        for _ in range(12):
            await world.wait(60)
            before = world.engine.last_round
            await until(lambda before=before: world.engine.last_round > before)
            if _heard(sick) | _heard(well) >= everybody:
                break
        assert _heard(sick) | _heard(well) >= everybody
        assert len(well.digests) <= 2
        switch.down = False
        await look(world, subjects)
        await world.wait(10)
        await until(lambda: _heard(well, Transition.RESOLVED) == _heard(well) - {"monitor"})  # which tells that the other one fails


async def test_told_in_a_digest_it_is_told_of_once_a_reload_turns_them_off(tmp_path: Path) -> None:
    crowd, switch = Crowd(), Switch()
    subjects = subjects_of(switch)
    chosen = told_by(tmp_path, subjects, crowd.channel("crowd", digest_from=1))
    async with running(chosen) as world:
        switch.down = True
        await look(world, subjects)
        await world.wait(10)
        await until(lambda: len(crowd.digests) == 1)
        world.delivery.settings = told_by(tmp_path, subjects, crowd.channel("crowd", digest_from=None))
        switch.down = False
        await look(world, subjects)
        await world.wait(10)
        await until(lambda: len(crowd.digests) == 2)
        assert crowd.digests[1].follows
        assert len(crowd.digests[1].items) == MANY - 1
        assert [one.transition.value for one in crowd.alone.arrived] == ["triggered", "resolved"]
