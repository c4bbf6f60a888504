"""The Alertmanager notifier against real Alertmanagers in a cluster, and against another monitor."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr, ValidationError

from alerts import DeliveryError, alertmanager
from alerts.alertmanager import AlertmanagerConfig, alerts_of
from monitor.clock import SystemClock
from monitor.config.settings import Channel
from monitor.domain import EscalationStep, Receipt, Severity, Transition, pairs
from monitor.engine import acknowledge
from monitor.metrics.exposition import Exposition
from monitor.plugins import NotifyContext
from monitor.store import Store
from monitor.upkeep import UpkeepLoop
from tests.conftest import tool
from tests.integration.test_delivery import Running, Switch, running
from tests.notify_parts import Authority, context, notification
from tests.support.monitoring import Target, child, free_port, ready, write_config
from tests.support.world import settings, until, until_async

TOKEN = "let-me-post"
# of "s3cret"
PASSWORD_HASH = "$2b$05$wvfRfzo/khEEL17HVsDfNuWg4oHPdC54C5hkNdm6I7.brKDtKfOyu"


@dataclass
class Peer:
    """A real Alertmanager, which can be stopped and started anew, with nothing in memory."""

    folder: Path
    web: int
    mesh: int
    others: tuple[int, ...] = ()
    web_config: Path | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"{'https' if self.web_config else 'http'}://127.0.0.1:{self.web}"

    async def start(self, **client: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
        flags = {
            "config.file": self.folder / "am.yml",
            "storage.path": self.folder / "data",
            "web.listen-address": f"127.0.0.1:{self.web}",
            "cluster.listen-address": f"127.0.0.1:{self.mesh}",
            "cluster.advertise-address": f"127.0.0.1:{self.mesh}",
            "cluster.settle-timeout": "1s",
            **({"web.config.file": self.web_config} if self.web_config else {}),
        }
        command = [tool("prometheus-alertmanager"), *(f"--{name}={value}" for name, value in flags.items())]
        command += [f"--cluster.peer=127.0.0.1:{port}" for port in self.others]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False, **client) as http:

            async def answers() -> bool:
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / "log").read_text()
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx2.HTTPError:
                    return False

            await until_async(answers, within_s=40)

    async def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait, 20)
            self.process = None

    async def query(self, *matchers: str) -> list[dict[str, Any]]:
        """What amtool shows."""
        process = await asyncio.create_subprocess_exec(
            tool("amtool"), f"--alertmanager.url={self.url}", "alert", "query", *matchers, "-o", "json", stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        found: list[dict[str, Any]] = json.loads(said)
        return found

    async def shows(self, count: int, *matchers: str) -> None:
        async def so() -> bool:
            return len(await self.query(*matchers)) == count

        await until_async(so)


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[Peer, Peer]]:
    mesh = free_port(), free_port()
    first, second = Peer(folder / "a", free_port(), mesh[0], mesh[1:]), Peer(folder / "b", free_port(), mesh[1], mesh[:1])
    async with AsyncExitStack() as stack:
        for peer in (first, second):
            stack.push_async_callback(peer.stop)
        await first.start()
        yield first, second


@dataclass
class Fed:
    world: Running
    loop: UpkeepLoop
    show: Exposition
    switch: Switch

    async def down(self, *, down: bool = True) -> None:
        self.switch.down = down
        await self.world.look(self.switch.subject, 3)
        await self.delivered()

    async def delivered(self) -> None:
        await until(lambda: self.world.store.outbox.undelivered() == (), within_s=20)

    async def refresh(self) -> None:
        self.world.clock.advance(62)
        await self.loop.look()

    def rounds(self, outcome: str) -> str:
        name = f'monitor_upkeep_total{{channel="fleet",outcome="{outcome}"}} '
        return "".join(line.removeprefix(name) for line in self.show.render().decode().splitlines() if line.startswith(name))


@asynccontextmanager
async def fed(folder: Path, urls: Iterable[str], **more: Any) -> AsyncIterator[Fed]:
    """A monitor whose P1 goes to these Alertmanagers. Its clock is ten minutes late, and so may be moved."""
    switch = Switch()
    chosen = settings(folder, switch.subject)
    channels = {"fleet": Channel("fleet", alertmanager, AlertmanagerConfig(urls=tuple(urls), **more))}
    chain = (EscalationStep(0, "the fleet", ("fleet",)),)
    async with running(replace(chosen, channels=channels, escalation=dict.fromkeys(Severity, chain))) as world:
        world.clock.advance((SystemClock().now() - timedelta(minutes=10) - world.clock.now()).total_seconds())
        show = Exposition("test")
        loop = UpkeepLoop(world.engine, store=world.store, thread=world.thread, clock=world.clock, show=show)
        yield Fed(world, loop, show, switch)


async def test_a_cluster_with_a_peer_down_hears_all_of_it_and_the_peer_learns_it_later(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (up, away), fed(tmp_path, (up.url, away.url)) as one:
        await one.down()
        (incident,) = one.world.store.incidents.list(unresolved=True)
        (alert,) = await up.query(
            "alertname=ServiceDown", "service=auth", 'severity="P1"', f"incident_id={incident.id}", "incident=INC-001"
        )
        assert alert["annotations"]["summary"] == "it does not answer"
        assert alert["annotations"]["evidence"] == "reason: refused"
        assert alert["annotations"]["state"] == "open"
        assert alert["generatorURL"] == f"http://monitor.test/incidents/{incident.id}"
        await one.refresh()
        assert (one.rounds("failed"), one.rounds("ok")) == ("1.0", "")
        await away.start()
        await one.refresh()
        assert one.rounds("ok") == "1.0"
        await away.shows(1, "alertname=ServiceDown")
        acknowledge(one.world.store, incident.id, "ada", one.world.clock)
        await one.world.wait(1)
        await one.delivered()
        for peer in (up, away):
            (alert,) = await peer.query()
            assert alert["annotations"]["state"] == "acknowledged by ada"
        await up.stop()
        await one.down(down=False)
        await away.shows(0)
        await up.start()  # with nothing in memory
        await up.shows(0)


async def test_an_alertmanager_that_lost_its_memory_is_told_again_and_a_lost_end_too(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (only, _), fed(tmp_path, (only.url,)) as one:
        await one.down()
        await only.stop()
        await only.start()
        await only.shows(0)
        await one.refresh()
        await only.shows(1)
        (before,) = await only.query()
        await one.refresh()
        (after,) = await only.query()
        assert after["fingerprint"] == before["fingerprint"]
        assert after["endsAt"] > before["endsAt"]
        await one.down(down=False)
        await only.shows(0)
        async with httpx2.AsyncClient(base_url=only.url, trust_env=False) as http:  # as if the end had been overtaken by a refresh
            again = {"labels": before["labels"], "startsAt": before["startsAt"], "endsAt": after["endsAt"]}
            (await http.post("/api/v2/alerts", json=[again])).raise_for_status()
        await only.shows(1)
        await one.refresh()
        await only.shows(0)


async def test_tls_and_a_password_as_alertmanagers_own_web_configuration_asks(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    web = tmp_path / "web.yml"
    files = f"tls_server_config: {{cert_file: {authority.chain}, key_file: {authority.key}}}"
    web.write_text(f"{files}\nbasic_auth_users: {{monitor: '{PASSWORD_HASH}'}}\n")
    peer = Peer(tmp_path / "a", free_port(), free_port(), web_config=web)
    try:
        await peer.start(verify=ssl.create_default_context(cafile=authority.ca_file), auth=("monitor", "s3cret"))
        right = {"urls": (peer.url,), "user": "monitor", "password": SecretStr("s3cret"), "ca_file": authority.ca_file}
        ctx = NotifyContext(clock=SystemClock(), deadline_s=10)
        await alertmanager.send(ctx, AlertmanagerConfig(**right), notification())
        with pytest.raises(DeliveryError, match="answered 401") as refused:
            await alertmanager.send(ctx, AlertmanagerConfig(**{**right, "password": SecretStr("wr0ng")}), notification())
        assert not refused.value.retryable
        assert "wr0ng" not in str(refused.value)
    finally:
        await peer.stop()


async def test_a_monitor_feeds_another_one_which_does_not_feed_on(tmp_path: Path) -> None:
    far, target, port = tmp_path / "far", Target(), free_port()
    far.mkdir()
    authority = Authority.create(far)
    config = write_config(far, target=target.url, pager_url="https://127.0.0.1:1", ca_file=authority.ca_file, port=port, token=TOKEN)
    await target.up()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(target.down)
        process = await stack.enter_async_context(child(far, "run", "--config", str(config)))
        await ready(port, process, far)
        store = Store(f"sqlite:///{far / 'state' / 'monitor.db'}")
        async with fed(tmp_path, (f"http://127.0.0.1:{port}",), bearer=SecretStr(TOKEN)) as one:
            await one.down()
            await until(lambda: store.incidents.list(unresolved=True))
            (there,) = store.incidents.list(unresolved=True)
            (here,) = one.world.store.incidents.list(unresolved=True)
            assert (there.service, there.severity, there.code) == ("auth", Severity.P1, "INC-001")
            (alert,) = store.incidents.firing()
            assert dict(alert.labels)["incident_id"] == here.id
            told_on = notification(labels=alert.labels)
            await alertmanager.send(context(), AlertmanagerConfig(urls=("http://127.0.0.1:1",)), told_on)
            await one.down(down=False)
            await until(lambda: not store.incidents.list(unresolved=True), within_s=20)
        store.close()


async def test_when_no_peer_takes_it_the_outbox_tries_again(tmp_path: Path) -> None:
    gone = (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(DeliveryError, match=r"not reachable.*; .*not reachable") as failed:
        await alertmanager.send(context(), AlertmanagerConfig(urls=gone), notification())
    assert failed.value.retryable


def test_a_rising_severity_ends_the_alerts_it_had_before() -> None:
    cfg = AlertmanagerConfig(urls=("https://am.example.com",))
    now = context().clock.now()
    first = {"label.alertname": "ServiceDown", "label.severity": "P3", "label.incident_id": "a1"}
    told = notification(Transition.RAISED, severity=Severity.P1)
    alerts = alerts_of(told.incident, Receipt("r", pairs(first)), cfg, now)
    assert [(alert["labels"]["severity"], datetime.fromisoformat(alert["endsAt"]) > now) for alert in alerts] == [
        ("P1", True),
        ("P2", False),
        ("P3", False),
    ]
    assert {alert["labels"]["alertname"] for alert in alerts} == {"ServiceDown"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"urls": ("ftp://am",)}, "expected the address"),
        ({"urls": ("http://user:secret@am",)}, "expected the address"),
        ({"urls": ()}, "at least 1"),
        ({"urls": ("http://am.example.com",), "bearer": SecretStr("x")}, "never travel in clear"),
        ({"urls": ("https://am",), "user": "x"}, "together or not at all"),
        ({"urls": ("https://am",), "user": "x", "password": SecretStr("y"), "bearer": SecretStr("z")}, "either user"),
        ({"urls": ("https://am",), "hold": 300.0, "refresh": 200.0}, "three times refresh"),
    ],
)
def test_a_wrong_configuration_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AlertmanagerConfig(**values)
