"""kill -9 at every step between decision and delivery: the page and its resolve arrive after a restart, under one key."""

import signal
from pathlib import Path

import pytest

from monitor.store import Store
from services.externals import pagerduty
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import Target, child, free_port, ready, write_config
from tests.support.world import until, until_async

STEPS = ("decided", "claimed", "accepted", "recorded")


async def calls(fake: Fake, action: str) -> list[str]:
    received = await fake.received()
    return [call["dedup_key"] for call in received["events"] if call["event_action"] == action]


async def recorded(folder: Path) -> None:
    """Wait until what arrived is marked as sent: a monitor that is told to stop before that rightly sends it again."""
    store = Store(f"sqlite:///{folder / 'state' / 'monitor.db'}")
    try:
        await until(lambda: store.outbox.undelivered() == ())
    finally:
        store.close()


@pytest.mark.parametrize("step", STEPS)
async def test_the_page_survives_kill_nine(step: str, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    async with serve(pagerduty.create_app(), authority) as fake:
        target, port = Target(), free_port()
        config = write_config(tmp_path, target=target.url, pager_url=fake.url, ca_file=authority.ca_file, port=port)
        crash = (step, "run", "--config", str(config))

        async with child(tmp_path, *crash, module="tests.support.crashing") as dying:  # the target is down: it must page
            assert await dying.wait() == -signal.SIGKILL
        async with child(tmp_path, "run", "--config", str(config)) as monitor:
            await ready(port, monitor, tmp_path)
            await until_async(lambda: calls(fake, "trigger"))
            await recorded(tmp_path)

        await target.up()
        async with child(tmp_path, *crash, module="tests.support.crashing") as dying:  # now it must resolve
            assert await dying.wait() == -signal.SIGKILL
        async with child(tmp_path, "run", "--config", str(config)) as monitor:
            await ready(port, monitor, tmp_path)
            await until_async(lambda: calls(fake, "resolve"))
            await recorded(tmp_path)
        await target.down()

        received = await fake.received()
        assert len({call["dedup_key"] for call in received["events"]}) == 1
        assert len(received["incidents"]) == 1
        assert received["refused"] == []
        limit = 2 if step == "accepted" else 1  # only a death between the send and its record may send twice
        assert 1 <= len(await calls(fake, "trigger")) <= limit
        assert 1 <= len(await calls(fake, "resolve")) <= limit
