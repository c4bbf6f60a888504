"""From a check's result to somebody's inbox: the engine and delivery together, over a real store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.config.settings import CheckInstance, Settings
from monitor.delivery import BACKOFF_MOST_S, Delivery, retry_at
from monitor.domain import CheckResult, Notification, Observed
from monitor.engine import Engine, acknowledge
from monitor.errors import DeliveryError, StoreError
from monitor.plugins import CheckContext
from monitor.runner import Runner
from monitor.store import Store, StoreThread
from tests.support.looking import with_parts
from tests.support.world import DOWN, Inbox, ManualClock, instance, settings, until


class Switch:
    """A check's subject: up or down, as the test says."""

    def __init__(self) -> None:
        self.down = False
        self.subject: CheckInstance = instance(self.look)

    async def look(self, _: CheckContext) -> Observed:
        return Observed(findings=(DOWN("it does not answer", facts={"reason": "refused"}),)) if self.down else Observed()


class Running:
    """Engine and delivery over one store; checks run when the test says, delivery by itself."""

    def __init__(self, chosen: Settings, busy_timeout_s: float = 5.0, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.outcomes: list[tuple[str, str]] = []
        self.results: list[CheckResult] = []
        self.store = Store(chosen.state_url, busy_timeout_s=busy_timeout_s)
        self.thread = StoreThread()
        self.delivery = Delivery(
            chosen, store=self.store, thread=self.thread, clock=self.clock, on_outcome=lambda *what: self.outcomes.append(what)
        )
        context = lambda inst, _: with_parts(inst.service, clock=self.clock)  # noqa: E731
        self.engine = Engine(
            chosen,
            store=self.store,
            thread=self.thread,
            runner=Runner(self.clock, context),
            clock=self.clock,
            guides={},
            on_result=self.results.append,
            wake_delivery=self.delivery.wake,
        )

    async def look(self, subject: CheckInstance, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(15)
            await self.engine.run(subject)

    async def wait(self, seconds: float) -> None:
        """Let time pass, and delivery see it."""
        self.clock.advance(seconds)
        self.delivery.wake()


@asynccontextmanager
async def running(chosen: Settings, busy_timeout_s: float = 5.0, clock: ManualClock | None = None) -> AsyncIterator[Running]:
    world = Running(chosen, busy_timeout_s, clock)
    await world.engine.start()
    loops = [asyncio.create_task(world.delivery.serve()), asyncio.create_task(world.engine.serve())]
    try:
        yield world
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        world.thread.close()
        world.store.close()


async def test_one_page_one_resolve_and_a_timeline_that_proves_it(tmp_path: Path) -> None:
    page, switch = Inbox(), Switch()
    async with running(settings(tmp_path, switch.subject, page=page)) as world:
        await world.look(switch.subject, 3)
        switch.down = True
        await world.look(switch.subject, 5)
        await until(lambda: page.said() == ["triggered"])
        switch.down = False
        await world.look(switch.subject, 4)
        await until(lambda: page.said() == ["triggered", "resolved"])
        await until(lambda: len(world.outcomes) == 2)
        (incident,) = world.store.incidents.list(unresolved=False)
        kinds = [entry.kind for entry in world.store.incidents.timeline(incident.id)]
        assert kinds == ["opened", "triggered", "delivered", "resolved", "delivered"]
        assert page.arrived[0].dedup_key == page.arrived[1].dedup_key == incident.id
        assert page.arrived[1].first_receipt is not None


async def test_unacknowledged_incidents_climb_and_acknowledged_ones_stop(tmp_path: Path) -> None:
    first, second, third, switch = Inbox(), Inbox(), Inbox(), Switch()
    async with running(settings(tmp_path, switch.subject, first=first, second=second, third=third)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: first.said() == ["triggered"])
        await world.wait(15 * 60)
        await until(lambda: second.said() == ["escalated"])
        (incident,) = world.store.incidents.list(unresolved=True)
        assert acknowledge(world.store, incident.id[:6], "ada", world.clock)[1]
        assert not acknowledge(world.store, incident.id, "bob", world.clock)[1]
        await world.wait(3600)
        await until(lambda: first.said() == ["triggered", "acked"] and second.said() == ["escalated", "acked"])
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: first.said()[-1] == second.said()[-1] == "resolved")
        assert third.said() == []


async def test_a_provider_that_fails_is_asked_again_in_order_and_disturbs_no_other(tmp_path: Path) -> None:
    async def busy(_: Notification) -> None:
        raise DeliveryError("429: slow down", retryable=True, retry_after_s=30)

    sick, well, switch = Inbox(answer=busy), Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, sick=sick, well=well)
    steps = {severity: (type(chain[0])(0, "both", ("sick", "well")),) for severity, chain in chosen.escalation.items()}
    import dataclasses

    async with running(dataclasses.replace(chosen, escalation=steps)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: well.said() == ["triggered"] and ("sick", "retried") in world.outcomes)
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: well.said() == ["triggered", "resolved"])
        assert sick.said() == []
        await until(lambda: len(world.store.outbox.queues()) == 1)
        (queue,) = world.store.outbox.queues()
        assert (queue.pending, queue.last_error) == (2, "429: slow down")
        sick.answer = None
        await world.wait(40)
        await until(lambda: sick.said() == ["triggered", "resolved"])


@pytest.mark.parametrize("fault", [DeliveryError("401: wrong key", retryable=False), None])
async def test_what_cannot_ever_be_delivered_is_a_visible_dead_letter(tmp_path: Path, fault: DeliveryError | None) -> None:
    async def refuse(_: Notification) -> None:
        assert fault is not None
        raise fault

    switch, inbox = Switch(), Inbox(answer=refuse)
    chosen = settings(tmp_path, switch.subject, page=inbox)
    if fault is None:  # the channel left the configuration after the decision
        chosen.channels.clear()  # type: ignore[attr-defined]
    async with running(chosen) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: world.outcomes == [("page", "dead")])
        (queue,) = world.store.outbox.queues()
        assert (queue.dead, queue.pending) == (1, 0)
        (incident,) = world.store.incidents.list(unresolved=True)
        assert world.store.incidents.timeline(incident.id)[-1].kind == "delivery-failed"


async def test_a_notifier_that_raises_anything_is_retried(tmp_path: Path) -> None:
    async def break_(_: Notification) -> None:
        raise KeyError("oops")

    switch, inbox = Switch(), Inbox(answer=break_)
    async with running(settings(tmp_path, switch.subject, page=inbox)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: ("page", "retried") in world.outcomes)
        inbox.answer = None
        await world.wait(10)
        await until(lambda: inbox.said() == ["triggered"])


async def test_stopping_in_the_middle_of_a_send_gives_the_row_back(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def hang(_: Notification) -> None:
        begun.set()
        await asyncio.Event().wait()

    switch, inbox = Switch(), Inbox(answer=hang)
    chosen = settings(tmp_path, switch.subject, page=inbox)
    async with running(chosen) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await asyncio.wait_for(begun.wait(), 10)
    inbox.answer = None
    async with running(chosen) as world:
        await world.wait(60)
        await until(lambda: inbox.said() == ["triggered"])


async def test_a_check_that_leaves_the_configuration_ends_its_incident(tmp_path: Path) -> None:
    switch, other, inbox = Switch(), instance(Switch().look, service="data"), Inbox()
    async with running(settings(tmp_path, switch.subject, other, page=inbox)) as world:
        switch.down = True
        await world.look(switch.subject, 2)
        await until(lambda: inbox.said() == ["triggered"])
        world.engine.reconfigure(settings(tmp_path, other, page=inbox))
        await until(lambda: inbox.said() == ["triggered", "resolved"])
        assert "look/auth" not in world.engine.latest


async def test_while_the_state_cannot_be_written_checking_goes_on_and_nothing_is_lost(tmp_path: Path) -> None:
    import sqlite3

    switch, inbox = Switch(), Inbox()
    async with running(settings(tmp_path, switch.subject, page=inbox), busy_timeout_s=0.05) as world:
        holder = sqlite3.connect(tmp_path / "monitor.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        switch.down = True
        await world.look(switch.subject, 3)
        assert len(world.results) == 3
        assert "locked" in (world.engine.store_error or "")
        holder.execute("ROLLBACK")
        holder.close()
        await world.look(switch.subject, 2)
        await until(lambda: inbox.said() == ["triggered"])
        assert world.engine.store_error is None


async def test_a_check_that_was_removed_while_it_ran_pages_nobody(tmp_path: Path) -> None:
    release, running_now = asyncio.Event(), asyncio.Event()

    async def slow(_: CheckContext) -> Observed:
        running_now.set()
        await release.wait()
        return Observed(findings=(DOWN("gone"),))

    subject, other, inbox = instance(slow), instance(Switch().look, service="data"), Inbox()
    async with running(settings(tmp_path, subject, other, page=inbox)) as world:
        late = asyncio.create_task(world.engine.run(subject))
        await running_now.wait()
        world.engine.reconfigure(settings(tmp_path, other, page=inbox))
        release.set()
        assert await late is None
        assert world.store.incidents.list(unresolved=False) == ()
        assert "look/auth" not in world.engine.latest


async def test_a_store_that_fails_after_the_commit_leaves_no_incident_open(tmp_path: Path) -> None:
    switch, inbox = Switch(), Inbox()
    async with running(settings(tmp_path, switch.subject, page=inbox)) as world:
        switch.down = True
        await world.look(switch.subject)
        whole = world.store.incidents.live_instances

        def fails() -> frozenset[str]:
            world.store.incidents.live_instances = whole  # type: ignore[method-assign]
            raise StoreError("the answer was lost")

        world.store.incidents.live_instances = fails  # type: ignore[method-assign]
        await world.look(switch.subject)
        await until(lambda: inbox.said() == ["triggered"])
        switch.down = False
        await world.look(switch.subject, 2)
        await until(lambda: inbox.said() == ["triggered", "resolved"])


@pytest.mark.parametrize("junk", ["lone \ud800 surrogate", "a \0 in it", "x" * 100_000])
async def test_texts_that_no_store_can_carry_are_made_fit(tmp_path: Path, junk: str) -> None:
    async def look(_: CheckContext) -> Observed:
        return Observed(findings=(DOWN(junk, labels={"where": junk}, facts={"what": junk}),))

    async def refuse(_: Notification) -> None:
        raise DeliveryError(junk, retryable=True)

    subject, inbox = instance(look), Inbox(answer=refuse)
    async with running(settings(tmp_path, subject, page=inbox)) as world:
        await world.look(subject, 2)
        await until(lambda: ("page", "retried") in world.outcomes)
        inbox.answer = None
        await world.wait(10)
        await until(lambda: inbox.said() == ["triggered"])
        assert world.engine.store_error is None


@given(st.integers(1, 10_000), st.one_of(st.none(), st.floats(0, 86_400)))
def test_backoff_is_bounded_and_never_sooner_than_asked(attempts: int, asked: float | None) -> None:
    now = ManualClock().now()
    wait = retry_at(now, attempts, asked) - now
    if asked is None:
        assert timedelta(seconds=0.8) <= wait <= timedelta(seconds=BACKOFF_MOST_S * 1.2)
    else:
        assert wait >= timedelta(seconds=asked) - timedelta(microseconds=1)
