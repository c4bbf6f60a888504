"""A restart does not make a check calm: what flapped before it flaps after it, and nobody is told twice."""

from pathlib import Path

from monitor.flaps import SAVE_EVERY_S
from tests.integration.test_delivery import Running, Switch, running
from tests.support.world import Inbox, ManualClock, settings, until


async def swing(world: Running, switch: Switch, looks: str) -> None:
    """``x`` is a look that finds it down, ``.`` one that finds it well."""
    for look in looks:
        switch.down = look == "x"
        world.clock.advance(15)
        await world.engine.run(switch.subject)
    world.clock.advance(SAVE_EVERY_S)
    await world.engine.flush()


async def test_what_flapped_before_a_restart_is_one_incident_until_it_is_calm(tmp_path: Path) -> None:
    page, switch, clock = Inbox(), Switch(), ManualClock()
    chosen = settings(tmp_path, switch.subject, page=page)
    async with running(chosen, clock=clock) as world:
        await swing(world, switch, "." * 10 + "x." * 6)
        assert switch.subject.key in world.engine.flaps.flapping
        await until(lambda: page.said() == ["triggered"])
    clock.advance(60)
    async with running(chosen, clock=clock) as world:
        assert switch.subject.key in world.engine.flaps.flapping
        await swing(world, switch, "....x.")  # calm enough for a check that does not flap: its alert would end, and another page follow
        assert [one.state.value for one in world.store.incidents.list(unresolved=False)] == ["open"]
        await swing(world, switch, "." * 20)
        await until(lambda: page.said() == ["triggered", "resolved"])
        assert switch.subject.key not in world.engine.flaps.flapping


async def test_a_check_that_was_always_calm_keeps_nothing(tmp_path: Path) -> None:
    switch = Switch()
    async with running(settings(tmp_path, switch.subject, page=Inbox())) as world:
        await swing(world, switch, "." * 5)
        assert world.store.kept.all() == ()
