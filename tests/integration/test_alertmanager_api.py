"""The Alertmanager v2 API of the running monitor, asked by the real amtool, by a real Prometheus, and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from alerts.fingerprint import fingerprint
from monitor.domain import pairs
from services.externals import pagerduty
from tests.conftest import tool
from tests.notify_parts import Authority, Fake, serve
from tests.support.monitoring import Target, child, free_port, ready, write_config
from tests.support.world import until_async

TOKEN = "let-me-post"
INHIBIT = {"source": ["alertname=HostDown"], "target": ['severity="warning"'], "equal": ["zone"]}


@dataclass
class Api:
    folder: Path
    port: int
    http: httpx2.AsyncClient
    pager: Fake

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(f"/api/v2{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, *alerts: dict[str, Any]) -> httpx2.Response:
        return await self.http.post("/api/v2/alerts", json=list(alerts))

    async def names(self, **query: Any) -> list[str]:
        return sorted(alert["labels"]["alertname"] for alert in await self.get("/alerts", **query))

    async def amtool(self, *arguments: str, code: int = 0) -> str:
        credentials = self.folder / "http.yml"
        credentials.write_text(f"authorization:\n  credentials: {TOKEN}\n")
        process = await asyncio.create_subprocess_exec(
            tool("amtool"), f"--alertmanager.url=http://127.0.0.1:{self.port}", f"--http.config.file={credentials}", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, warned = await process.communicate()
        assert process.returncode == code, (said + warned).decode()
        return (warned if code else said).decode()

    async def pages(self) -> list[str]:
        return [event["event_action"] for event in (await self.pager.received())["events"]]

    async def paged(self, *actions: str) -> None:
        async def reached() -> bool:
            return await self.pages() == list(actions)

        await until_async(reached)


Starting = Callable[[], AbstractAsyncContextManager[asyncio.subprocess.Process]]


@asynccontextmanager
async def restarted(folder: Path) -> AsyncIterator[tuple[Api, Starting]]:
    """The API of a monitor, and what starts it, again and again over the same state."""
    authority, target, port = Authority.create(folder), Target(), free_port()
    await target.up()
    async with serve(pagerduty.create_app(), authority) as pager:
        config = write_config(
            folder, target=target.url, pager_url=pager.url, ca_file=authority.ca_file, port=port, token=TOKEN, inhibit=[INHIBIT]
        )

        @asynccontextmanager
        async def start() -> AsyncIterator[asyncio.subprocess.Process]:
            async with child(folder, "run", "--config", str(config)) as process:
                await ready(port, process, folder)
                yield process

        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=5) as http:
            yield Api(folder, port, http, pager), start
    await target.down()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with restarted(tmp_path) as (api, start), start():
        yield api


def alert(name: str = "DiskFull", **labels: str) -> dict[str, Any]:
    return {"labels": {"alertname": name, "service": "files", **labels}, "annotations": {"summary": f"{name} on files"}}


def moment(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()  # noqa: TID251 - what a foreign sender's clock says


async def test_a_posted_alert_takes_the_way_of_our_own(api: Api) -> None:
    sent = alert(severity="critical") | {"generatorURL": "http://prometheus/graph", "startsAt": moment(minutes=-5)}
    answer = await api.post(sent)
    assert (answer.status_code, answer.content) == (200, b"")
    await api.paged("trigger")
    (shown,) = await api.get("/alerts")
    assert shown["fingerprint"] == fingerprint(pairs(sent["labels"]))
    assert shown["status"] == {"state": "active", "silencedBy": [], "inhibitedBy": [], "mutedBy": []}
    assert (shown["receivers"], shown["generatorURL"]) == ([{"name": "P1"}], "http://prometheus/graph")
    (event,) = (await api.pager.received())["events"]
    assert "DiskFull on files" in event["summary"]
    await api.post(sent | {"annotations": {"summary": "fuller"}})
    assert (await api.get("/alerts"))[0]["annotations"] == {"summary": "fuller"}
    await api.post(sent | {"endsAt": moment(seconds=-1)})
    await api.paged("trigger", "resolve")
    assert await api.get("/alerts") == []


async def test_an_alert_that_is_sent_no_more_ends_by_itself(api: Api) -> None:
    await api.post(alert() | {"endsAt": moment(seconds=2)})
    await api.paged("trigger", "resolve")


async def test_valid_alerts_are_taken_beside_invalid_ones_and_errors_are_json_strings(api: Api) -> None:
    answer = await api.post(alert(), {"labels": {}}, {"labels": {"a b": "c"}}, {"labels": {"empty": ""}})
    assert answer.status_code == 400
    assert "at least one label pair" in answer.json()
    assert "invalid label name 'a b'" in answer.json()
    assert await api.names() == ["DiskFull"]
    for path, body in (("/alerts", b"[{"), ("/alerts", b'[{"labels": {"a": 1}}]'), ("/silences", b"{}")):
        refused = await api.http.post(f"/api/v2{path}", content=body)
        assert refused.status_code == 400
        assert isinstance(refused.json(), str)
    assert (await api.http.get("/api/v2/alerts", params={"filter": "=="})).status_code == 400
    assert (await api.http.get("/api/v2/silence/00000000-0000-0000-0000-000000000000")).status_code == 404


async def test_nothing_can_be_changed_without_the_token(api: Api) -> None:
    for method, path in (("POST", "/alerts"), ("POST", "/silences"), ("DELETE", "/silence/x")):
        answer = await api.http.request(method, f"/api/v2{path}", json=[], headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert "bearer token" in answer.json()


async def test_filters_flags_groups_and_inhibition(api: Api) -> None:
    await api.post(alert("HostDown", zone="a"), alert("Slow", severity="warning", zone="a"), alert("Slow", severity="warning", zone="b"))
    assert await api.names() == ["HostDown", "Slow", "Slow"]
    assert await api.names(inhibited="false") == ["HostDown", "Slow"]
    assert await api.names(filter=['alertname="Slow"', "zone=b"]) == ["Slow"]
    assert await api.names(filter='{alertname=~"S.*",zone="a"}', active="false") == ["Slow"]
    assert await api.names(receiver="P1") == []
    (inhibited,) = await api.get("/alerts", filter=["alertname=Slow", "zone=a"])
    assert inhibited["status"]["inhibitedBy"] == [(await api.get("/alerts", filter="alertname=HostDown"))[0]["fingerprint"]]
    groups = await api.get("/alerts/groups")
    assert [(group["labels"]["alertname"], len(group["alerts"])) for group in groups] == [("HostDown", 1), ("Slow", 2)]


async def test_amtool_adds_and_queries_alerts(api: Api) -> None:
    await api.amtool("alert", "add", "DiskFull", "service=files", "severity=critical", "--annotation=summary=the disk is full")
    await api.paged("trigger")
    listed = json.loads(await api.amtool("alert", "query", "alertname=DiskFull", "--output=json"))
    assert [one["annotations"]["summary"] for one in listed] == ["the disk is full"]
    assert "DiskFull" in await api.amtool("alert", "query", "severity=~crit.*")
    assert "DiskFull" not in await api.amtool("alert", "query", "severity=warning")


async def test_amtool_silences_expires_and_imports(api: Api) -> None:
    silence_id = (await api.amtool("silence", "add", "alertname=DiskFull", "--comment=known", "--duration=2h", "--author=anna")).strip()
    await api.post(alert(severity="critical"))
    (shown,) = await api.get("/alerts")
    assert (shown["status"]["state"], shown["status"]["silencedBy"]) == ("suppressed", [silence_id])
    assert "DiskFull" not in await api.amtool("alert", "query")
    assert "DiskFull" in await api.amtool("alert", "query", "--silenced")
    exported = await api.amtool("silence", "query", "--output=json")
    assert json.loads(exported)[0]["comment"] == "known"
    longer = (await api.amtool("silence", "update", silence_id, "--duration=4h", "--output=json")).strip()
    assert json.loads(longer)[0]["id"] == silence_id
    assert await api.pages() == []
    await api.amtool("silence", "expire", silence_id)
    await api.paged("trigger")
    assert silence_id in await api.amtool("silence", "query", "--expired", "--within=1h", "-q")
    (api.folder / "silences.json").write_text(exported)
    await api.amtool("silence", "import", str(api.folder / "silences.json"))
    assert [one["status"]["state"] for one in await api.get("/silences")] == ["active", "expired"]
    past = {"matchers": [{"name": "a", "value": "b", "isRegex": False}], "startsAt": moment(hours=-2), "endsAt": moment(hours=-1)}
    refused = await api.http.post("/api/v2/silences", json=past | {"createdBy": "anna", "comment": "late"})
    assert (refused.status_code, refused.json()) == (400, "end time can't be in the past")


async def test_amtool_reads_the_configuration_and_its_routes(api: Api) -> None:
    assert "P1" in await api.amtool("config", "show")
    for severity, receiver in (("critical", "P1"), ("P2", "P2"), ("info", "P4"), ("what", "P3")):
        routed = await api.amtool("config", "routes", "test", f"severity={severity}", f"--verify.receivers={receiver}")
        assert receiver in routed
    assert "version" in (await api.get("/status"))["versionInfo"]


async def test_a_real_prometheus_sends_its_alerts_here(api: Api) -> None:
    folder, port = api.folder / "prometheus", free_port()
    folder.mkdir()
    rules = {"groups": [{"name": "g", "rules": [{"alert": "Always", "expr": "vector(1)", "labels": {"severity": "critical", "service": "x"},
             "annotations": {"summary": "it is {{ $value }}"}}]}]}  # fmt: skip
    (folder / "rules.yml").write_text(json.dumps(rules))
    config = {
        "global": {"evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{api.port}"]}], "authorization": {"credentials": TOKEN}}]
        },
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--rules.alert.resend-delay=1s",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until_async(lambda: _lists(api, "Always"), within_s=30)
        await api.paged("trigger")
        assert (await api.get("/alerts"))[0]["annotations"] == {"summary": "it is 1"}
    finally:
        process.terminate()
        await process.wait()
    (folder / "rules.yml").unlink()
    await until_async(lambda: _gone(api), within_s=30)
    await api.paged("trigger", "resolve")


async def _lists(api: Api, name: str) -> bool:
    return name in await api.names()


async def _gone(api: Api) -> bool:
    return await api.names() == []


async def test_silences_and_alerts_for_ever_are_kept_until_the_calendar_ends(tmp_path: Path) -> None:
    for_ever = "9999-12-31T23:59:59-05:00"
    async with restarted(tmp_path) as (api, start):
        async with start():
            assert (await api.post(alert("Forever") | {"endsAt": for_ever})).status_code == 200
            silence_id = (await api.amtool("silence", "add", "alertname=Forever", "--comment=x", f"--end={for_ever}")).strip()
            assert [one["endsAt"] for one in await api.get("/alerts")] == ["9999-12-30T00:00:00.000Z"]
        async with start():
            assert [one["status"]["silencedBy"] for one in await api.get("/alerts")] == [[silence_id]]
            assert [one["endsAt"] for one in json.loads(await api.amtool("silence", "query", "-o", "json"))] == ["9999-12-30T00:00:00.000Z"]
            await api.post(alert("Loud", severity="critical"))
            await api.paged("trigger", "trigger")


async def test_a_moment_without_an_offset_is_refused(api: Api) -> None:
    silence = {"matchers": [{"name": "a", "value": "b", "isRegex": False}], "createdBy": "anna", "comment": "known"}
    for starts, ends in ((moment(), "2999-01-01T00:00:00"), ("2026-11-25T00:00:00", moment(hours=1))):
        refused = await api.http.post("/api/v2/silences", json=silence | {"startsAt": starts, "endsAt": ends})
        assert (refused.status_code, refused.json()) == (400, "a moment without an offset from UTC")


async def test_what_was_posted_and_silenced_survives_a_kill(tmp_path: Path) -> None:
    async with restarted(tmp_path) as (api, start):
        async with start() as process:
            silence_id = (await api.amtool("silence", "add", "alertname=Quiet", "--comment=known")).strip()
            assert (await api.post(alert("Quiet"), alert("Loud"))).status_code == 200
            process.kill()
            await process.wait()
        async with start():
            assert await api.names() == ["Loud", "Quiet"]
            assert [one["id"] for one in await api.get("/silences")] == [silence_id]
            await api.paged("trigger")
