"""The state is broken on purpose while services fail: a full disk, a damaged file, a lock, a database that goes away and returns.

People hear that the monitor cannot write, once, and hear the end; what is P1 meanwhile reaches somebody; nothing is lost.
"""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from alerts.matchers import parse_matcher
from alerts.muting import Window
from monitor.config.settings import Settings
from monitor.domain import EscalationStep, Notification, Severity
from monitor.emergency import AFTER_S, Emergency
from monitor.errors import DeliveryError
from services.cluster import Cluster
from tests.integration.test_delivery import Running, Switch
from tests.support.postgres import small_cluster
from tests.support.world import Inbox, instance, settings, until

LOOK_S = 15.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A place for the state, and how to take it away and give it back."""

    url: str
    begin: Callable[[], None]
    end: Callable[[], None]


@contextmanager
def locked(folder: Path, _: Cluster) -> Iterator[Fault]:
    """Another process holds the file."""
    other = sqlite3.connect(folder / "monitor.db", isolation_level=None)
    try:
        yield Fault(f"sqlite:///{folder}/monitor.db", lambda: other.execute("BEGIN IMMEDIATE"), lambda: other.execute("ROLLBACK"))
    finally:
        other.close()


@contextmanager
def full(folder: Path, _: Cluster) -> Iterator[Fault]:
    """A small file system without a byte left."""
    place = folder / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted by this account")
    ballast = place / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(os.urandom(4096)):
                    pass
            except OSError:
                return

    try:
        yield Fault(f"sqlite:///{place}/monitor.db", fill, ballast.unlink)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def gone(_: Path, like: Cluster) -> Iterator[Fault]:
    """The database's server stops, and comes back."""
    with small_cluster(like) as cluster:

        def begin() -> None:
            cluster.stop()

        def end() -> None:
            cluster.start()

        yield Fault(f"postgresql+psycopg://postgres@127.0.0.1:{cluster.port}/postgres", begin, end)


class World(Running):
    """Rounds, looks of the emergency path and of every service when the test says."""

    def __init__(self, chosen: Settings) -> None:
        super().__init__(chosen, busy_timeout_s=0.05)
        self.emergency = Emergency(self.engine, lambda: self.engine.store_error, self.clock)
        self.engine.each_result = self.emergency.see

    async def live(self, seconds: float) -> None:
        for _ in range(int(seconds / LOOK_S)):
            self.clock.advance(LOOK_S)
            await self.engine.try_round()
            for subject in self.engine.settings.instances:
                await self.engine.run(subject)
            await self.emergency.look()
            self.delivery.wake()


@asynccontextmanager
async def living(chosen: Settings) -> AsyncIterator[World]:
    world = World(chosen)
    await world.engine.start()
    serving = asyncio.create_task(world.delivery.serve())
    try:
        yield world
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        world.thread.close()
        world.store.close()


def about(box: Inbox, service: str) -> list[str]:
    return [one.transition.value for one in box.arrived if one.incident.service == service]


@pytest.mark.parametrize("how", [locked, full, gone])
async def test_what_people_hear_while_the_state_is_away_and_after(tmp_path: Path, pg18: Cluster, how: Callable[..., object]) -> None:
    page, old, new = Inbox(), Switch(), Switch()
    subjects = (instance(old.look, service="auth"), instance(new.look, service="data"))
    with how(tmp_path, pg18) as fault:  # type: ignore[attr-defined]
        chosen = replace(settings(tmp_path, *subjects, page=page), state_url=fault.url)
        async with living(chosen) as world:
            old.down = True
            await world.live(30)
            await until(lambda: about(page, "auth") == ["triggered"])
            await until(lambda: world.store.outbox.undelivered() == ())

            fault.begin()
            new.down = True
            await world.live(AFTER_S - LOOK_S)
            assert world.engine.store_error is not None, "it is not ready, and says why"
            assert page.said() == ["triggered"], "a moment's trouble is nobody's"
            await world.live(300)
            assert about(page, "monitor") == ["triggered"], "once"
            assert about(page, "data") == ["triggered"], "what is new and P1 reaches somebody"
            assert about(page, "auth") == ["triggered"], "what they know they are not told again"

            fault.end()
            await world.live(60)
            assert world.engine.store_error is None
            assert about(page, "monitor") == ["triggered", "resolved"]
            await until(lambda: sorted(about(page, "data")) == ["resolved", "triggered", "triggered"])
            await until(lambda: world.store.outbox.undelivered() == ())
            assert {one.service for one in world.store.incidents.list(unresolved=True)} == {"auth", "data"}, "nothing is lost"
            direct = [one for one in page.arrived if one.incident.service == "data"]
            ended = next(one for one in direct if one.transition.value == "resolved")
            assert direct[0].dedup_key == ended.dedup_key, "what was told directly ends; what is still wrong has its incident"

            old.down = new.down = False
            await world.live(60)
            await until(lambda: about(page, "auth") == ["triggered", "resolved"])
            await until(lambda: len(about(page, "data")) == 4)
            assert world.store.incidents.list(unresolved=True) == ()


async def test_what_is_over_meanwhile_is_said_to_be_and_the_key_of_the_state_is_always_the_same(tmp_path: Path, pg18: Cluster) -> None:
    page, switch = Inbox(), Switch()
    with locked(tmp_path, pg18) as fault:
        async with living(settings(tmp_path, switch.subject, page=page)) as world:
            for _ in range(2):
                fault.begin()
                switch.down = True
                await world.live(AFTER_S + 30)
                switch.down = False
                await world.live(30)
                fault.end()
                await world.live(60)
            assert about(page, "auth") == ["triggered", "resolved"] * 2
            assert about(page, "monitor") == ["triggered", "resolved"] * 2
            assert len({one.dedup_key for one in page.arrived if one.incident.service == "monitor"}) == 1
            assert world.store.incidents.list(unresolved=False) == ()


async def test_a_channel_that_fails_too_is_tried_again_and_everybody_else_is_told(tmp_path: Path, pg18: Cluster) -> None:
    async def sick(_: Notification) -> None:
        raise DeliveryError("503: not now", retryable=True)

    first, second, switch = Inbox(answer=sick), Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, first=first, second=second)
    chosen = replace(chosen, escalation=dict.fromkeys(Severity, (EscalationStep(0, "on-call", ("first",)),)))
    with locked(tmp_path, pg18) as fault:
        async with living(chosen) as world:
            fault.begin()
            await world.live(AFTER_S + 120)
            assert (first.said(), about(second, "monitor")) == ([], ["triggered"])
            first.answer = None
            await world.live(120)
            fault.end()
            await world.live(60)
            assert about(second, "monitor") == ["triggered", "resolved"]
            assert about(first, "monitor") == ["triggered", "resolved"], "who was not reached at first hears it too"


async def test_planned_work_is_kept_to_without_the_state(tmp_path: Path, pg18: Cluster) -> None:
    page, switch = Inbox(), Switch()
    chosen = settings(tmp_path, switch.subject, page=page)
    with locked(tmp_path, pg18) as fault:
        world_now = World(chosen).clock.now()
        window = Window("work", (parse_matcher("service=auth"),), starts_at=world_now, ends_at=world_now + timedelta(minutes=10))
        async with living(replace(chosen, windows=(window,))) as world:
            fault.begin()
            switch.down = True
            await world.live(525)
            assert page.said() == ["triggered"]
            assert page.arrived[0].incident.service == "monitor"
            await world.live(120)
            assert about(page, "auth") == ["triggered"]
            fault.end()
