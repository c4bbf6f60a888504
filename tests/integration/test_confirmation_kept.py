"""The clock of a confirmation runs on through a restart and a reload."""

from dataclasses import replace
from pathlib import Path

from monitor.domain import AlertPolicy
from tests.integration.test_delivery import Switch, running
from tests.support.world import Inbox, settings, until


async def test_a_restart_and_a_reload_keep_the_clock(tmp_path: Path) -> None:
    page, switch = Inbox(), Switch()
    switch.subject = replace(switch.subject, policy=AlertPolicy(fail_after=1, recover_after=1, fail_for_s=100, recover_for_s=100))
    chosen = settings(tmp_path, switch.subject, page=page)
    switch.down = True
    async with running(chosen) as world:
        assert await world.engine.run(switch.subject) == 100
    async with running(chosen) as world:
        world.clock.advance(60)
        world.engine.reconfigure(settings(tmp_path, switch.subject, page=page))
        assert await world.engine.run(switch.subject) == 40
        world.clock.advance(40)
        assert await world.engine.run(switch.subject) is None
        await until(lambda: page.said() == ["triggered"])
        switch.down = False
        assert await world.engine.run(switch.subject) == 100
    async with running(chosen) as world:
        world.clock.advance(199)
        assert await world.engine.run(switch.subject) == 1
        world.clock.advance(1)
        assert await world.engine.run(switch.subject) is None
        await until(lambda: page.said() == ["triggered", "resolved"])
