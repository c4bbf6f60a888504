"""Channels that fail: what they could not tell another one tells, the failure itself is told, and nothing is tried too fast."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from alerts.silences import make
from monitor.config.settings import Channel, Settings
from monitor.delivery import TokenBucket
from monitor.domain import EscalationStep, Notification, Severity
from monitor.errors import DeliveryError
from monitor.plugins import Notifier, PluginConfig
from monitor.selfwatch import SelfWatch
from tests.integration.test_delivery import Running, Switch, running
from tests.support.world import Inbox, instance, settings, until


async def refused(_: Notification) -> None:
    raise DeliveryError("404: no such key", retryable=False)


async def busy(_: Notification) -> None:
    raise DeliveryError("503: not now", retryable=True, retry_after_s=30)


def with_fallback(folder: Path, switch: Switch, sick: Inbox, well: Inbox) -> Settings:
    """Everybody is told through ``sick``, for which ``well`` stands in after five minutes."""
    chosen = settings(folder, switch.subject, sick=sick, well=well)
    channels = {**chosen.channels, "sick": replace(chosen.channels["sick"], fallback="well")}
    return replace(chosen, channels=channels, escalation=dict.fromkeys(Severity, (EscalationStep(0, "on-call", ("sick",)),)))


def watch_itself(world: Running) -> None:
    world.engine.each_round = SelfWatch(world.engine, store=world.store, thread=world.thread, clock=world.clock).look


@pytest.mark.parametrize(("answer", "after_s"), [(refused, 20), (busy, 400)])
async def test_what_a_channel_cannot_tell_its_stand_in_tells_once_and_its_end_too(tmp_path: Path, answer: object, after_s: int) -> None:
    sick, well, switch = Inbox(answer=answer), Inbox(), Switch()  # type: ignore[arg-type]
    async with running(with_fallback(tmp_path, switch, sick, well)) as world:
        watch_itself(world)
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes)
        own = lambda: [one for one in well.arrived if one.incident.service == "auth"]  # noqa: E731
        for _ in range(4):
            await world.wait(after_s)
            before = world.engine.last_round
            await until(lambda before=before: world.engine.last_round > before)
        await until(own)
        assert "sick could not deliver" in own()[0].reason
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: len(own()) == 2)
        assert [one.transition.value for one in own()] == ["triggered", "resolved"]


async def test_a_failing_channel_is_told_over_another_one_and_clears_when_it_works(tmp_path: Path) -> None:
    sick, well, switch = Inbox(answer=busy), Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, sick=sick, well=well)
    chosen = replace(chosen, escalation=dict.fromkeys(Severity, (EscalationStep(0, "on-call", ("sick",)),)))
    async with running(chosen) as world:
        watch_itself(world)
        switch.down = True
        await world.look(switch.subject, 2)
        for number in range(1, 6):
            await until(lambda number=number: len(world.outcomes) >= number)
            await world.wait(60)
        await until(lambda: well.said() == ["triggered"])
        assert "channel sick does not deliver: 503: not now" in well.arrived[0].incident.summary
        sick.answer = None
        for _ in range(8):
            await world.wait(20)
            before = world.engine.last_round
            await until(lambda before=before: world.engine.last_round > before)
        await until(lambda: sick.said() == ["triggered"] and well.said() == ["triggered", "resolved"])


async def test_a_dead_letter_can_be_tried_again_by_hand(tmp_path: Path) -> None:
    sick, switch = Inbox(answer=refused), Switch()
    async with running(settings(tmp_path, switch.subject, sick=sick)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: ("sick", "dead") in world.outcomes)
        (row,) = world.store.outbox.undelivered()
        assert (row.state, row.last_error) == ("dead", "404: no such key")
        sick.answer = None
        assert world.store.outbox.revive(row.id + 1, world.clock.now()) == 0
        assert world.store.outbox.revive(None, world.clock.now()) == 1
        world.delivery.wake()
        await until(lambda: sick.said() == ["triggered"] and world.store.outbox.undelivered() == ())


async def test_by_hand_no_beginning_of_what_is_over_is_told(tmp_path: Path) -> None:
    sick, switch = Inbox(answer=refused), Switch()
    async with running(settings(tmp_path, switch.subject, sick=sick)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: ("sick", "dead") in world.outcomes)
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: {row.state for row in world.store.outbox.undelivered()} == {"dead"})
        sick.answer = None
        assert world.store.outbox.revive(None, world.clock.now()) == 0
        world.delivery.wake()
        assert "triggered" not in sick.said()


async def test_what_was_silenced_while_its_channel_failed_is_handed_on_when_the_silence_ends(tmp_path: Path) -> None:
    sick, well, switch = Inbox(answer=busy), Inbox(), Switch()
    async with running(with_fallback(tmp_path, switch, sick, well)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes)
        now = world.clock.now()
        world.store.silences.save(make(["service=auth"], now, now + timedelta(minutes=30), "anna", "known", now))
        await until(lambda: world.store.incidents.list(unresolved=True)[0].muted)
        watch_itself(world)
        await world.wait(400)
        before = world.engine.last_round
        await until(lambda: world.engine.last_round > before)
        own = lambda: [one for one in well.arrived if one.incident.service == "auth"]  # noqa: E731
        assert own() == []
        await world.wait(1800)
        await until(lambda: not world.store.incidents.list(unresolved=True)[0].muted)
        await world.wait(20)
        await until(own)


async def test_nobody_is_woken_by_a_stand_in_for_what_is_over(tmp_path: Path) -> None:
    sick, well, switch = Inbox(answer=refused), Inbox(), Switch()
    async with running(with_fallback(tmp_path, switch, sick, well)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: ("sick", "dead") in world.outcomes)
        switch.down = False
        await world.look(switch.subject, 2)
        watch_itself(world)
        await world.wait(20)
        await until(lambda: any(one.incident.service == "monitor" for one in well.arrived))
        assert not [one for one in well.arrived if one.incident.service == "auth"]


def reload(world: Running, chosen: Settings) -> None:
    """As the running program does it."""
    world.delivery.settings = chosen
    world.engine.reconfigure(chosen)


async def another_round(world: Running) -> None:
    """From one look at delivery to the end of a later one."""
    for _ in range(2):
        await world.wait(16)
        before = world.engine.last_round
        await until(lambda before=before: world.engine.last_round > before)


@pytest.mark.parametrize("renamed", [True, False])
async def test_a_step_through_a_channel_that_is_gone_reaches_somebody_all_the_same(tmp_path: Path, renamed: bool) -> None:
    first, second, third, switch = Inbox(), Inbox(), Inbox(), Switch()
    async with running(settings(tmp_path, switch.subject, first=first, second=second, third=third)) as world:
        watch_itself(world)
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: first.said() == ["triggered"])
        left = {"first": first, "renamed": second, "third": third} if renamed else {"first": first, "third": third}
        reload(world, settings(tmp_path, switch.subject, **left))
        await world.wait(15 * 60)
        await until(lambda: ("second", "dead") in world.outcomes)
        await another_round(world)
        own = lambda inbox: [one.transition.value for one in inbox.arrived if one.incident.service == "auth"]  # noqa: E731
        heir, other = (second, third) if renamed else (third, second)
        await until(lambda: own(heir) == ["escalated"])
        assert (own(first), own(other)) == (["triggered"], [])
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: own(heir) == ["escalated", "resolved"])


async def test_who_takes_the_place_of_a_channel_hears_the_end_of_what_that_one_was_told(tmp_path: Path) -> None:
    inbox, switch = Inbox(), Switch()
    async with running(settings(tmp_path, switch.subject, old=inbox)) as world:
        watch_itself(world)
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes == [("old", "sent")])
        await another_round(world)
        reload(world, settings(tmp_path, switch.subject, new=inbox))
        await another_round(world)
        await until(lambda: inbox.said() == ["triggered", "reminded"])
        await another_round(world)
        assert inbox.arrived[1].reason == "channel old is no longer configured"
        switch.down = False
        await world.look(switch.subject, 2)
        own = lambda: [one.transition.value for one in inbox.arrived if one.incident.service == "auth"]  # noqa: E731
        await until(lambda: own() == ["triggered", "reminded", "resolved"])
        assert inbox.arrived[-1].channel == "new"


async def test_nobody_further_is_woken_for_a_channel_that_was_removed_while_another_knows(tmp_path: Path) -> None:
    page, chat, boss, switch = Inbox(), Inbox(), Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, page=page, chat=chat, boss=boss)
    steps = (EscalationStep(0, "on-call", ("page", "chat")), EscalationStep(3600, "boss", ("boss",)))
    async with running(replace(chosen, escalation=dict.fromkeys(Severity, steps))) as world:
        watch_itself(world)
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: len(world.outcomes) == 2)
        fewer = settings(tmp_path, switch.subject, chat=chat, boss=boss)
        steps = (EscalationStep(0, "on-call", ("chat",)), steps[1])
        reload(world, replace(fewer, escalation=dict.fromkeys(Severity, steps)))
        await another_round(world)
        assert (chat.said(), boss.said()) == (["triggered"], [])


async def test_a_limited_channel_is_not_asked_faster_than_it_takes(tmp_path: Path) -> None:
    slow, switch = Inbox(), Switch()
    switch.down = True
    subjects = [instance(switch.look, service=f"service{number}") for number in range(10)]
    chosen = settings(tmp_path, *subjects, slow=slow)
    limited = Notifier(name="slow", help="An inbox.", config=PluginConfig, send=slow.send, per_minute=60)
    chosen = replace(chosen, channels={"slow": Channel("slow", limited, PluginConfig())})
    async with running(chosen) as world:
        for subject in (*subjects, *subjects):
            await world.engine.run(subject)
        await until(lambda: len(slow.arrived) == 4)  # what is let through at once
        for seconds in range(1, 7):
            await until(lambda: len(world.outcomes) == len(slow.arrived))
            await world.wait(1)
            await until(lambda seconds=seconds: len(slow.arrived) == 4 + seconds)


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket, now, sent = TokenBucket(60), 0.0, 0
    while now < 60:
        if bucket.wait_s(now) == 0:
            bucket.take(now)
            sent += 1
        else:
            assert bucket.wait_s(now) <= 1
        now += 0.1
    assert 60 <= sent <= 64
    assert TokenBucket(None).wait_s(0) == 0
