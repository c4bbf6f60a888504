"""Silences on the running monitor: nobody is told while one holds, and everybody is when it ends too soon."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from monitor.clock import SystemClock
from monitor.domain import Incident, IncidentState
from monitor.store import Store
from services.externals import pagerduty
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import Target, child, free_port, ready, write_config
from tests.support.world import until, until_async


@dataclass
class Watched:
    config: Path
    target: Target
    pager: Fake
    store: Store

    async def cli(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "monitor", *arguments, "--config", str(self.config),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return said.decode()

    def incident(self) -> Incident | None:
        return next(iter(self.store.incidents.list(unresolved=False, since=SystemClock().now() - timedelta(hours=1))), None)

    async def incident_is(self, state: IncidentState, *, muted: bool) -> None:
        def reached() -> bool:
            found = self.incident()
            return found is not None and found.state is state and bool(found.muted) is muted

        await until(reached)

    async def actions(self) -> list[str]:
        return [event["event_action"] for event in (await self.pager.received())["events"]]

    async def paged(self, *actions: str) -> None:
        async def reached() -> bool:
            return await self.actions() == list(actions)

        await until_async(reached)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    authority, target, port = Authority.create(tmp_path), Target(), free_port()
    await target.up()
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(tmp_path, target=target.url, pager_url=pager.url, ca_file=authority.ca_file, port=port)
        async with child(tmp_path, "run", "--config", str(config)) as process:
            await ready(port, process, tmp_path)
            store = Store(f"sqlite:///{tmp_path / 'state' / 'monitor.db'}")
            yield Watched(config, target, pager, store)
            store.close()
    await target.down()


async def test_a_silence_tells_nobody_and_its_end_tells_who_should_know(watched: Watched) -> None:
    said = await watched.cli("silence", "add", "service=web", "--for", "1h", "-m", "moving the web server")
    assert "nothing that fires now matches" in said
    await watched.target.down()
    await watched.incident_is(IncidentState.OPEN, muted=True)
    assert await watched.actions() == []
    (listed,) = json.loads(await watched.cli("silence", "list", "--json"))
    assert (listed["state"], listed["firing"], listed["matchers"]) == ("active", 1, ['service="web"'])
    await watched.cli("silence", "expire", listed["id"][:8])
    await watched.paged("trigger")
    await watched.incident_is(IncidentState.OPEN, muted=False)
    await watched.target.up()
    await watched.paged("trigger", "resolve")


async def test_who_was_told_before_the_silence_hears_the_end_during_it(watched: Watched) -> None:
    await watched.target.down()
    await watched.paged("trigger")
    assert "P1 web" in await watched.cli("silence", "add", 'alertname=~"Service.*"', "-m", "known")
    await watched.incident_is(IncidentState.OPEN, muted=True)
    await watched.target.up()
    await watched.paged("trigger", "resolve")
    assert json.loads(await watched.cli("silence", "list", "--json"))[0]["state"] == "active"


async def test_a_dry_run_shows_and_changes_nothing(watched: Watched) -> None:
    assert "would silence" in await watched.cli("silence", "add", "service=web", "-m", "why", "--dry-run")
    assert watched.store.silences.list() == ()


async def test_explain_names_the_silence_the_next_step_and_the_check(watched: Watched) -> None:
    assert "fires at the first bad run" in " ".join((await watched.cli("explain", "http_health/web")).split())
    await watched.target.down()
    await watched.paged("trigger")
    found = watched.incident()
    assert found is not None
    said = await watched.cli("explain", found.id[:6])
    assert "P1 ServiceDown on web by http_health/web, fires since" in said.replace("\n", " ").replace("  ", " ")
    await watched.cli("silence", "add", "service=web", "-m", "known")
    await watched.incident_is(IncidentState.OPEN, muted=True)
    told = json.loads(await watched.cli("explain", found.id, "--json"))
    assert any("known" in line for line in told["told"])
    assert "the first of what mutes ends" in told["coming"][0]["what"]
    rows = json.loads(await watched.cli("stats", "--json"))
    assert (rows[0]["severity"], rows[0]["incidents"]) == ("P1", 1)
    assert (rows[0]["pages_per_week"], rows[0]["by_channel"]) == (1.0, {"oncall": 1})
