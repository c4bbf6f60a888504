"""Heartbeats: jobs ping the running monitor, and silence is told, once, across restarts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx2

from monitor.probes_contract import Beat, Ping
from monitor.store import Store
from services.externals import pagerduty
from tests.integration.test_store import T0, store, url  # noqa: F401
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import child, free_port, ready, write_config
from tests.support.world import until_async

KEY = "0123456789abcdef"
MINUTE = timedelta(minutes=1)


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_what_pings_change(store: Store) -> None:  # noqa: F811
    beats = store.heartbeats
    assert beats.of("job", T0) == Beat(known_since=T0)
    assert beats.of("job", T0 + MINUTE) == Beat(known_since=T0)
    beats.ping(["job", "other"], Ping("start", body="begins"), T0 + MINUTE)
    assert beats.of("job", T0) == Beat(T0, started_at=T0 + MINUTE, body="begins")
    beats.ping(["job"], Ping("success", exit_code=0, body="all done"), T0 + 3 * MINUTE)
    beat = beats.of("job", T0)
    assert (beat.success_at, beat.exit_code, beat.duration_s, beat.running) == (T0 + 3 * MINUTE, 0, 120.0, False)
    beats.ping(["job"], Ping("fail", exit_code=3), T0 + 4 * MINUTE)
    assert (beats.of("job", T0).failed_at, beats.of("job", T0).duration_s) == (T0 + 4 * MINUTE, 120.0)
    beats.ping(["job"], Ping("log", body="by the way"), T0 + 5 * MINUTE)
    assert (beats.of("job", T0).ended_at, beats.of("job", T0).body) == (T0 + 4 * MINUTE, "by the way")
    assert beats.all()["other"].known_since == T0 + MINUTE
    beats.retain(["job"])
    assert set(beats.all()) == {"job"}
    beats.retain([])
    assert beats.of("job", T0 + 9 * MINUTE) == Beat(known_since=T0 + 9 * MINUTE)


# --- the running monitor ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(folder: Path, pager: Fake, ca_file: str, port: int, **keys: object) -> AsyncIterator[httpx2.AsyncClient]:
    config = write_config(
        folder,
        target="http://127.0.0.1:1",
        pager_url=pager.url,
        ca_file=ca_file,
        port=port,
        services={"nightly": {}},
        checks={
            "dump": {
                "check": "heartbeat",
                "services": ["nightly"],
                "every": "1s",
                "fail_after": 1,
                "recover_after": 1,
                "key": {"env": "DUMP_KEY"},
                "period": "1h",
                "grace": "0s",
                **keys,
            }
        },
    )
    async with child(folder, "run", "--config", str(config), env={"DUMP_KEY": KEY}) as process:
        await ready(port, process, folder)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http:
            yield http


async def shows(http: httpx2.AsyncClient, line: str) -> bool:
    return line in (await http.get("/metrics")).text.splitlines()


def outcome(of: str) -> str:
    return f'monitor_check_outcome{{check="dump",service="nightly",outcome="{of}"}} 1.0'


async def test_a_job_that_fails_is_told_and_its_success_ends_it(tmp_path: Path) -> None:
    authority, port = Authority.create(tmp_path), free_port()
    async with serve(pagerduty.create_app(), authority) as pager:
        async with watching(tmp_path, pager, authority.ca_file, port) as http:
            await until_async(lambda: shows(http, outcome("ok")))
            assert (await http.get(f"/ping/{KEY}")).text == "OK\n"
            said = "pg_dump: error: no space\x1b[31m left\n<b>"
            assert (await http.post(f"/ping/{KEY}/3", content=said.encode() + b"\xff" * 100_000)).status_code == 200

            async def told() -> bool:
                return bool((await pager.received())["events"])

            await until_async(told)
            (event,) = (await pager.received())["events"]
            assert "dump failed with exit status 3" in event["event"]["payload"]["summary"]
            assert "pg_dump: error: no space" in str(event["event"]["payload"]["custom_details"])
            assert "\x1b" not in str(event)

        # What was pinged is on the disk: another process knows it.
        async with watching(tmp_path, pager, authority.ca_file, port) as http:
            await until_async(lambda: shows(http, outcome("found")))
            assert (await http.head(f"/ping/{KEY}")).status_code == 200

            async def over() -> bool:
                return [event["event_action"] for event in (await pager.received())["events"]] == ["trigger", "resolve"]

            await until_async(over)
            assert KEY not in (tmp_path / "monitor.log").read_text()


async def test_a_job_that_dies_in_each_run_is_told_although_it_starts_again_and_again(tmp_path: Path) -> None:
    authority, port = Authority.create(tmp_path), free_port()
    async with (
        serve(pagerduty.create_app(), authority) as pager,
        watching(tmp_path, pager, authority.ca_file, port, period="1s", max_run="1s") as http,
    ):

        async def told() -> bool:
            assert (await http.get(f"/ping/{KEY}/start")).status_code == 200
            return bool((await pager.received())["events"])

        await until_async(told)
        (event,) = (await pager.received())["events"]
        assert "dump starts and does not end: its run is" in event["event"]["payload"]["summary"]


async def test_what_is_no_ping_changes_nothing(tmp_path: Path) -> None:
    authority, port = Authority.create(tmp_path), free_port()
    async with (
        serve(pagerduty.create_app(), authority) as pager,
        watching(tmp_path, pager, authority.ca_file, port) as http,
    ):
        for path in (
            f"/ping/{KEY}x",
            "/ping/dump",
            f"/ping/{KEY}/256",
            f"/ping/{KEY}/-1",
            f"/ping/{KEY}/stop",
            f"/ping/{KEY}/٣",
            "/ping/%ff",
        ):
            assert (await http.post(path)).status_code == 404, path
        assert (await http.put(f"/ping/{KEY}")).status_code == 405
        store_of_it = Store(f"sqlite:///{tmp_path / 'state' / 'monitor.db'}")
        try:
            assert all(beat.success_at is None for beat in store_of_it.heartbeats.all().values())
        finally:
            store_of_it.close()


async def test_many_pings_at_once_are_all_taken(tmp_path: Path) -> None:
    authority, port = Authority.create(tmp_path), free_port()
    async with (
        serve(pagerduty.create_app(), authority) as pager,
        watching(tmp_path, pager, authority.ca_file, port) as http,
    ):
        answers = await asyncio.gather(*(http.get(f"/ping/{KEY}/{what}") for what in ["start", "success"] * 100))
        assert {answer.status_code for answer in answers} == {200}
        await until_async(lambda: shows(http, outcome("ok")))
