"""Two monitors on one state: when one dies, the other ends what it raised, and leaves alone what only the other watches."""

from pathlib import Path

from monitor.domain import IncidentState
from monitor.engine import LEARN_EVERY_S
from tests.integration.test_delivery import Running, Switch, running
from tests.support.world import Inbox, ManualClock, instance, settings


def states(world: Running) -> list[IncidentState]:
    return [one.state for one in world.store.incidents.list(unresolved=False)]


async def learn(world: Running) -> None:
    world.clock.advance(LEARN_EVERY_S)
    await world.engine.round()


async def test_the_survivor_ends_the_alert_of_one_that_died(tmp_path: Path) -> None:
    switch, clock = Switch(), ManualClock()
    chosen = settings(tmp_path, switch.subject, page=Inbox())
    async with running(chosen, clock=clock) as survivor:
        async with running(chosen, clock=clock) as other:
            switch.down = True
            await other.look(switch.subject, 3)
        switch.down = False
        await learn(survivor)
        await survivor.look(switch.subject, 3)
        assert states(survivor) == [IncidentState.RESOLVED]


async def test_what_only_the_other_watches_is_left_to_it(tmp_path: Path) -> None:
    switch, clock = Switch(), ManualClock()
    less = settings(tmp_path, instance(switch.subject.check.run, name="another"), page=Inbox())
    async with running(less, clock=clock) as old, running(settings(tmp_path, switch.subject, page=Inbox()), clock=clock) as new:
        switch.down = True
        await new.look(switch.subject, 3)
        await learn(old)
        assert states(old) == [IncidentState.OPEN]
