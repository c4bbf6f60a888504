"""An hour of a provider's bad day, against the HTTPS stand-in of PagerDuty: nothing is lost, order is kept, nobody else is disturbed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from alerts import pagerduty as plugin
from alerts.pagerduty_incidents import PagerDutyConfig
from monitor.config.settings import Channel
from monitor.domain import EscalationStep, Severity
from services.externals import pagerduty
from tests.integration.test_delivery import Running, Switch, running
from tests.notify_parts import Authority, serve
from tests.support.world import Inbox, instance, settings, until

BAD_DAY = (
    *({"status": 429, "retry_after": 300},) * 4,
    *({"status": 503},) * 4,
    {"reset": True},
    {"reset": True, "accept": True},
    {"status": 502, "body": "<html>something in between</html>"},
    {"hang": True},
    {"status": 200, "body": "{}"},
    *({"status": 429, "retry_after": 60},) * 4,
    *({"status": 500},) * 8,
)
SUBJECTS = 4


async def calm(world: Running) -> None:
    """Wait until everything that is due has been tried."""
    await until(lambda: world.store.outbox.owners() == () and world.store.outbox.untried_s(world.clock.now()) == 0, within_s=30)


class Front:
    """What stands before a provider: passes connections on, or to an impostor, or answers without TLS."""

    def __init__(self, real: int, impostor: int) -> None:
        self._ports = {"well": real, "impostor": impostor}
        self.mode = "well"

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._meet, "127.0.0.1", 0) as server:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._ports.get(self.mode)
        with closing(writer), suppress(OSError):
            if port is None:
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                await writer.drain()
                return
            there, back = await asyncio.open_connection("127.0.0.1", port)
            with closing(back):
                await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while some := await reader.read(65_536):
            writer.write(some)
            await writer.drain()
    writer.close()


async def test_an_hour_of_every_failure_loses_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    (tmp_path / "impostor").mkdir()
    authority, stranger = Authority.create(tmp_path), Authority.create(tmp_path / "impostor")
    well, switch = Inbox(), Switch()
    reasons: set[str] = set()
    subjects = [instance(switch.look, service=f"service{number}") for number in range(SUBJECTS)]
    async with serve(pagerduty.create_app(), authority) as pager, serve(pagerduty.create_app(), stranger) as impostor:
        front = Front(*(urlsplit(fake.url).port or 0 for fake in (pager, impostor)))
        chosen = settings(tmp_path, *subjects, well=well)
        async with front.serve() as url:
            cfg = PagerDutyConfig(routing_key=SecretStr("0" * 32), base_url=url, ca_file=authority.ca_file)
            channels = {**chosen.channels, "sick": Channel("sick", replace(plugin, per_minute=None), cfg)}
            chain = (EscalationStep(0, "both", ("sick", "well")),)
            chosen = replace(chosen, channels=channels, escalation=dict.fromkeys(Severity, chain))
            async with running(chosen) as world:
                await pager.script(*BAD_DAY)
                for down in (True, False):
                    switch.down, front.mode = down, "impostor"
                    for subject in (*subjects, *subjects):
                        await world.engine.run(subject)
                    await until(lambda down=down: len(well.arrived) == SUBJECTS * (1 if down else 2))
                    for minute in range(30):
                        front.mode = {0: "impostor", 2: "not tls", 4: "well"}.get(minute, front.mode)
                        await world.wait(60)
                        await calm(world)
                        reasons |= {row.last_error or "" for row in world.store.outbox.undelivered()}
                front.mode = "well"
                await world.wait(3600)
                await until(lambda: world.store.outbox.undelivered() == ())
                received = await pager.received()
                assert (await impostor.received())["events"] == []
        incidents = world_incidents(received)
        assert len(incidents) == SUBJECTS
        for seen in incidents.values():
            assert (seen[0], seen[-1]) == ("trigger", "resolve")
            assert "trigger" not in seen[seen.index("resolve") :]
        assert [incident["state"] for incident in received["incidents"]] == ["resolved"] * SUBJECTS
        assert len(received["refused"]) >= 12
    for kind in ("429", "503", "500", "Timeout", "RemoteProtocol", "CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER"):
        assert any(kind in reason for reason in reasons), f"never seen: {kind}; seen: {reasons}"


def world_incidents(received: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    """What the provider accepted, by incident."""
    found: dict[str, list[str]] = {}
    for event in received["events"]:
        found.setdefault(event["dedup_key"], []).append(event["event_action"])
    return found
