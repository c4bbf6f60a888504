"""One cause, one page: the running monitor asks a dependency at once when a service fails, and folds the symptoms into its incident."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2

from services.externals import pagerduty
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import Target, black_hole, child, free_port, ready, write_config
from tests.support.world import until_async

CHECK: dict[str, Any] = {"check": "http_health", "deadline": "500ms", "slow_after": "400ms", "fail_after": 2, "recover_after": 2}


async def actions(pager: Fake) -> list[str]:
    """What the pager was told, in order."""
    return [call["event_action"] for call in (await pager.received())["events"]]


async def test_a_dependency_that_is_down_is_the_one_page(tmp_path: Path) -> None:
    authority, base, web, port = Authority.create(tmp_path), Target(), Target(), free_port()
    await base.up()
    await web.up()
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(
            tmp_path,
            target=web.url,
            pager_url=pager.url,
            ca_file=authority.ca_file,
            port=port,
            services={"base": {"url": base.url}, "web": {"url": web.url, "depends_on": ["base"]}},
            checks={
                # The dependency is looked at so rarely that only being asked out of turn can name it in time.
                "base_health": {**CHECK, "services": ["base"], "every": "15s", "recheck": "300ms"},
                "web_health": {**CHECK, "services": ["web"], "every": "1s", "timeout": "900ms", "recheck": "600ms"},
            },
        )
        async with (
            child(tmp_path, "run", "--config", str(config)) as process,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http,
        ):
            await ready(port, process, tmp_path)

            async def shows(line: str) -> bool:
                return line in (await http.get("/metrics")).text.splitlines()

            async def is_well(name: str) -> bool:
                return await shows(f'monitor_check_outcome{{check="{name}_health",service="{name}",outcome="ok"}} 1.0')

            await until_async(lambda: is_well("base"))
            await until_async(lambda: is_well("web"))
            await asyncio.gather(base.down(), web.down())

            async def paged() -> bool:
                return bool(await actions(pager))

            async def attached() -> bool:
                page = (await http.get("/")).text
                incident = page.split("/incidents/")[1][:12]
                return "also: " in (await http.get(f"/incidents/{incident}")).text

            await until_async(paged)
            await until_async(attached)
            assert await actions(pager) == ["trigger"]
            assert (await http.get("/")).text.count("base does not answer") >= 1
            await asyncio.gather(base.up(), web.up())

            async def over() -> bool:
                return "resolve" in await actions(pager) and await shows('monitor_incidents{severity="P1",state="open"} 0.0')

            await until_async(over, within_s=80)
            assert await actions(pager) == ["trigger", "resolve"]
    await base.down()
    await web.down()


async def test_a_cause_that_hangs_is_waited_for(tmp_path: Path) -> None:
    """Its look ends later than the symptom is confirmed, and the page is about it all the same; and so when one bad run is enough."""
    authority, web, port, way = Authority.create(tmp_path), Target(), free_port(), free_port()
    await web.up()
    once = {**CHECK, "services": ["web"], "every": "15s", "fail_after": 1}
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(
            tmp_path,
            target=web.url,
            pager_url=pager.url,
            ca_file=authority.ca_file,
            port=port,
            services={"base": {"url": f"http://127.0.0.1:{way}"}, "web": {"url": web.url, "depends_on": ["base"]}},
            checks={
                "base_health": {**CHECK, "services": ["base"], "every": "1m", "deadline": "2s", "recheck": "300ms", "fail_after": 1},
                "web_health": {**CHECK, "services": ["web"], "every": "1s", "timeout": "900ms", "recheck": "300ms"},
                "web_once": {**once, "check": "http_health", "every": "1s", "timeout": "900ms", "recheck": "300ms"},
            },
        )
        base = Target()
        base.port = way
        await base.up()
        async with (
            child(tmp_path, "run", "--config", str(config)) as process,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http,
        ):
            await ready(port, process, tmp_path)

            async def all_well() -> bool:
                lines = (await http.get("/metrics")).text.splitlines()
                return sum(line.startswith("monitor_check_outcome{") and line.endswith('outcome="ok"} 1.0') for line in lines) == 3

            async def folded() -> bool:
                page = (await http.get("/")).text
                if "/incidents/" not in page:
                    return False
                return "also: " in (await http.get(f"/incidents/{page.split('/incidents/')[1][:12]}")).text

            await until_async(all_well)
            await base.down()
            with black_hole(way):
                await web.down()
                await until_async(folded)
                await until_async(lambda: actions(pager))
                (event,) = (await pager.received())["events"]
                assert "base does not answer" in event["summary"]
    await web.down()


async def test_everything_down_behind_a_dead_network_is_one_alert_about_the_network(tmp_path: Path) -> None:
    authority, shop, mail, port, way = Authority.create(tmp_path), Target(), Target(), free_port(), free_port()
    await asyncio.gather(shop.up(), mail.up())
    health: dict[str, Any] = {**CHECK, "services": ["shop", "mail"], "every": "1s", "timeout": "900ms", "recheck": "600ms"}
    look = {"services": ["internet"], "addresses": [f"127.0.0.1:{way}"], "deadline": "200ms"}
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(
            tmp_path,
            target=shop.url,
            pager_url=pager.url,
            ca_file=authority.ca_file,
            port=port,
            services={
                "internet": {},
                "shop": {"url": shop.url, "depends_on": ["internet"]},
                "mail": {"url": mail.url, "depends_on": ["internet"]},
            },
            checks={"health": health, "witness": {**look, "every": "15s", "recheck": "200ms", "fail_after": 2, "recover_after": 2}},
        )
        async with (
            child(tmp_path, "run", "--config", str(config)) as process,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http,
        ):
            await ready(port, process, tmp_path)

            async def metrics() -> str:
                return (await http.get("/metrics")).text

            async def all_well() -> bool:
                return (await metrics()).count('outcome="ok"} 1.0') == 3

            async def folded() -> bool:
                page = (await http.get("/")).text
                if "/incidents/" not in page:
                    return False
                return (await http.get(f"/incidents/{page.split('/incidents/')[1][:12]}")).text.count("also: ") >= 2

            async def over() -> bool:
                return "resolve" in await actions(pager)

            await until_async(all_well)
            with black_hole(way):
                await asyncio.gather(shop.down(), mail.down())
                await until_async(folded)
                (event,) = (await pager.received())["events"]
                assert event["event"]["payload"]["severity"] == "error"
                assert "reaches nothing beyond its own machine" in event["summary"]
            await asyncio.gather(shop.up(), mail.up())
            await until_async(over, within_s=80)
            assert await actions(pager) == ["trigger", "resolve"]
    await asyncio.gather(shop.down(), mail.down())
