"""Our side of the HTTP bench: the monitor's parts wired as ``monitor.app`` wires them, driven as fast as they go.

Runner, ``http_health``, the libcurl probe, engine with store, history and exposition; without scheduler, delivery and API.
"""

import argparse
import asyncio
import contextlib
import cProfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

import alerts
import checks
from bench.processes import answer_commands
from monitor import config
from monitor.clock import SystemClock
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import Outcome
from monitor.engine import Engine
from monitor.logs import configure_logging
from monitor.metrics.exposition import Exposition
from monitor.probes.outside import Outside
from monitor.process import tune_process
from monitor.runner import Runner
from monitor.store import Store, StoreThread

SERVICES = 200
"""Different check instances; all of them ask the same target."""
SCRAPE_EVERY_S = 1.0


def write_settings(folder: Path, url: str, ca_file: Path | None = None) -> Settings:
    """Settings of a monitor that watches one target as many services."""
    names = [f"svc{number:03}" for number in range(SERVICES)]
    trust = f'\nca_file = "{ca_file}"' if ca_file else ""
    steps = '[{after = "0s", who = "on-call", channels = ["mail"]}]'
    lines = [
        f'[monitor]\nstate = "{folder}/monitor.db"',
        *(f'[services.{name}]\nurl = "{url}"' for name in names),
        f'[checks.http_health]\nservices = {names}\nevery = "30s"\npath = "/health"\nexpect_json = {{status = "healthy"}}{trust}',
        '[channels.mail]\nnotifier = "email"\nhost = "127.0.0.1"\nsender = "monitor@example.com"\nto = ["ops@example.com"]',
        "[escalation]",
        *(f"{severity} = {steps}" for severity in ("P1", "P2", "P3", "P4")),
    ]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return config.load(
        path,
        checks={check.name: check for check in checks.BUILTINS},
        notifiers={notifier.name: notifier for notifier in alerts.BUILTINS},
    )


@dataclass(frozen=True, slots=True)
class _Monitor:
    settings: Settings
    engine: Engine
    exposition: Exposition

    async def probe(self, count: int, concurrency: int) -> int:
        """Run ``count`` checks, ``concurrency`` at once, and write their history. Returns how many were not OK."""
        bad = 0
        instances = self.settings.instances
        work = islice((instances[number % len(instances)] for number in range(count)), count)

        async def drain() -> None:
            nonlocal bad
            for instance in work:
                bad += await self._is_bad(instance)

        await asyncio.gather(*(drain() for _ in range(concurrency)))
        await self.engine.flush()
        return bad

    async def _is_bad(self, instance: CheckInstance) -> bool:
        await self.engine.run(instance)
        return self.engine.latest[instance.key].outcome is not Outcome.OK

    async def scrape(self) -> None:
        while True:
            await asyncio.sleep(SCRAPE_EVERY_S)
            self.exposition.render()


async def main(folder: Path, url: str, ca_file: Path | None, profile: Path | None) -> None:
    configure_logging()
    clock = SystemClock()
    settings = write_settings(folder, url, ca_file)
    store, thread, outside, exposition = Store(settings.state_url), StoreThread(), Outside(clock), Exposition("bench")
    engine = Engine(
        settings,
        store=store,
        thread=thread,
        runner=Runner(clock, lambda instance, _: outside.check_context(instance.service)),
        clock=clock,
        guides={},
        on_result=exposition.record,
        wake_delivery=lambda: None,
    )
    monitor = _Monitor(settings, engine, exposition)
    await engine.start()
    loops = [asyncio.create_task(engine.serve()), asyncio.create_task(monitor.scrape())]

    async def handle(command: dict[str, Any]) -> dict[str, Any]:
        with _profiled(profile):
            return {"bad": await monitor.probe(command["count"], command["concurrency"])}

    try:
        await answer_commands(handle)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await outside.close()
        thread.close()
        store.close()


@contextlib.contextmanager
def _profiled(path: Path | None) -> Iterator[None]:
    """Profile the event loop's thread into ``path``, when there is one."""
    if path is None:
        yield
        return
    with cProfile.Profile() as profile:
        yield
    profile.dump_stats(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("--ca-file", type=Path)
    parser.add_argument("--profile", type=Path)
    asked = parser.parse_args()
    tune_process()
    uvloop.run(main(asked.folder, asked.url, asked.ca_file, asked.profile))
