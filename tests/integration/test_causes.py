"""One cause, one page: the running monitor asks a dependency at once when a service fails, and folds the symptoms into its incident."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from services.externals import pagerduty
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import Target, black_hole, child, free_port, ready, write_config
from tests.support.world import until_async

CHECK: dict[str, Any] = {"check": "http_health", "deadline": "500ms", "slow_after": "400ms", "fail_after": 2, "recover_after": 2}
OFTEN: dict[str, Any] = {**CHECK, "every": "1s", "timeout": "900ms", "recheck": "600ms"}


@dataclass(frozen=True, slots=True)
class Watch:
    """A monitor that runs, and the pager that it calls."""

    http: httpx2.AsyncClient
    pager: Fake

    async def told(self) -> list[str]:
        """What the pager was told, in order."""
        return [call["event_action"] for call in (await self.pager.received())["events"]]

    async def is_over(self) -> bool:
        open_now = 'monitor_incidents{severity="P1",state="open"} 0.0'
        return "resolve" in await self.told() and open_now in (await self.http.get("/metrics")).text.splitlines()

    async def are_well(self, count: int) -> bool:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(line.startswith("monitor_check_outcome{") and line.endswith('outcome="ok"} 1.0') for line in lines) == count

    async def has_joined(self, count: int) -> bool:
        """Whether so many symptoms stand in the history of the first incident on the page."""
        page = (await self.http.get("/")).text
        if "/incidents/" not in page:
            return False
        return (await self.http.get(f"/incidents/{page.split('/incidents/')[1][:12]}")).text.count("also: ") >= count


@asynccontextmanager
async def watching(folder: Path, *, services: dict[str, dict[str, Any]], checks: dict[str, dict[str, Any]]) -> AsyncIterator[Watch]:
    """Runs the monitor until every check has found all well once."""
    authority, port = Authority.create(folder), free_port()
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(
            folder, target="", pager_url=pager.url, ca_file=authority.ca_file, port=port, services=services, checks=checks
        )
        async with (
            child(folder, "run", "--config", str(config)) as process,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http,
        ):
            await ready(port, process, folder)
            watch = Watch(http, pager)
            await until_async(lambda: watch.are_well(sum(len(check["services"]) for check in checks.values())))
            yield watch


async def test_a_dependency_that_is_down_is_the_one_page(tmp_path: Path) -> None:
    base, web = Target(), Target()
    await asyncio.gather(base.up(), web.up())
    services = {"base": {"url": base.url}, "web": {"url": web.url, "depends_on": ["base"]}}
    # The dependency is looked at so rarely that only being asked out of turn can name it in time.
    rarely = {**CHECK, "services": ["base"], "every": "15s", "recheck": "300ms"}
    async with watching(tmp_path, services=services, checks={"base_health": rarely, "web_health": {**OFTEN, "services": ["web"]}}) as watch:
        await asyncio.gather(base.down(), web.down())
        await until_async(watch.told)
        await until_async(lambda: watch.has_joined(1))
        assert await watch.told() == ["trigger"]
        assert (await watch.http.get("/")).text.count("base does not answer") >= 1
        await asyncio.gather(base.up(), web.up())
        await until_async(watch.is_over, within_s=80)
        assert await watch.told() == ["trigger", "resolve"]
    await asyncio.gather(base.down(), web.down())


async def test_a_cause_that_hangs_is_waited_for(tmp_path: Path) -> None:
    """Its look ends later than the symptom is confirmed, and the page is about it all the same; and so when one bad run is enough."""
    base, web = Target(), Target()
    await asyncio.gather(base.up(), web.up())
    services = {"base": {"url": base.url}, "web": {"url": web.url, "depends_on": ["base"]}}
    checks = {
        "base_health": {**CHECK, "services": ["base"], "every": "1m", "deadline": "2s", "recheck": "300ms", "fail_after": 1},
        "web_health": {**OFTEN, "services": ["web"], "recheck": "300ms"},
        "web_once": {**OFTEN, "services": ["web"], "recheck": "300ms", "fail_after": 1},
    }
    async with watching(tmp_path, services=services, checks=checks) as watch:
        await base.down()
        with black_hole(base.port):
            await web.down()
            await until_async(lambda: watch.has_joined(1))
            await until_async(watch.told)
            (event,) = (await watch.pager.received())["events"]
            assert "base does not answer" in event["summary"]
    await web.down()


async def test_everything_down_behind_a_dead_network_is_one_alert_about_the_network(tmp_path: Path) -> None:
    shop, mail, way = Target(), Target(), free_port()
    await asyncio.gather(shop.up(), mail.up())
    services = {"internet": {}, **{name: {"url": one.url, "depends_on": ["internet"]} for name, one in (("shop", shop), ("mail", mail))}}
    witness = {"addresses": [f"127.0.0.1:{way}"], "deadline": "200ms", "every": "15s", "recheck": "200ms", "fail_after": 2}
    checks = {
        "health": {**OFTEN, "services": ["shop", "mail"]},
        "witness": {**witness, "services": ["internet"], "recover_after": 2},
    }
    async with watching(tmp_path, services=services, checks=checks) as watch:
        with black_hole(way):
            await asyncio.gather(shop.down(), mail.down())
            await until_async(lambda: watch.has_joined(2))
            (event,) = (await watch.pager.received())["events"]
            assert event["event"]["payload"]["severity"] == "error"
            assert "reaches nothing beyond its own machine" in event["summary"]
        await asyncio.gather(shop.up(), mail.up())
        await until_async(watch.is_over, within_s=80)
        assert await watch.told() == ["trigger", "resolve"]
    await asyncio.gather(shop.down(), mail.down())
