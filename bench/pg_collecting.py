"""Our side of the PostgreSQL bench: the shipped checks on one database, each collected once per command, as the running monitor does.

Runner, checks, the held connection, engine with store, history and exposition; without scheduler, delivery and API.
"""

import asyncio
import sys
import tomllib
from pathlib import Path
from typing import Any

import uvloop

import alerts
import checks
from bench.processes import answer_commands
from monitor import config
from monitor.clock import SystemClock
from monitor.domain import Outcome
from monitor.engine import Engine
from monitor.logs import configure_logging
from monitor.memory import Memory
from monitor.metrics.exposition import Exposition
from monitor.plugins import parse_duration_s
from monitor.probes.outside import Outside
from monitor.process import tune_process
from monitor.runner import Runner
from monitor.store import Store, StoreThread

SHIPPED = Path(__file__).resolve().parents[1] / "config.toml"
FACTS = (
    "pg_connections",
    "pg_counters",
    "pg_checkpoints",
    "pg_replication",
    "pg_wal",
    "pg_vacuum",
    "pg_sizes",
    "pg_long_queries",
    "pg_indexes",
)
"""The checks that look at what postgres_exporter exports: sessions, locks, databases, sizes, background writer, replication, tables."""


def write_settings(folder: Path, dsn_file: Path, every_s: float = 15.0) -> Path:
    """A configuration of a monitor that watches one database with these checks."""
    step = '[{after = "0s", who = "on-call", channels = ["mail"]}]'
    lines = [
        f'[monitor]\nstate = "{folder}/monitor.db"',
        f'[services.postgres]\ndsn = {{file = "{dsn_file}"}}',
        *(f'[checks.{name}]\nservices = ["postgres"]\nevery = "{every_s:g}s"\ntimeout = "9s"' for name in FACTS),
        '[channels.mail]\nnotifier = "email"\nhost = "127.0.0.1"\nsender = "monitor@example.com"\nto = ["ops@example.com"]',
        "[escalation]",
        *(f"{severity} = {step}" for severity in ("P1", "P2", "P3", "P4")),
    ]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def shipped_every_s() -> dict[str, int]:
    """How often each of these checks looks in the shipped configuration, in seconds."""
    shipped = tomllib.loads(SHIPPED.read_text())["checks"]
    return {name: int(parse_duration_s(shipped[name]["every"])) for name in FACTS}


async def main(folder: Path, dsn_file: Path) -> None:
    configure_logging()
    clock, memory = SystemClock(), Memory()
    settings = config.load(
        write_settings(folder, dsn_file),
        checks={check.name: check for check in checks.BUILTINS},
        notifiers={notifier.name: notifier for notifier in alerts.BUILTINS},
    )
    store, thread, outside, exposition = Store(settings.state_url), StoreThread(), Outside(clock), Exposition("bench")
    runner = Runner(clock, lambda instance, kept: outside.check_context(instance.service, name=instance.name, kept=kept), memory)
    engine = Engine(
        settings,
        store=store,
        thread=thread,
        runner=runner,
        clock=clock,
        guides={},
        on_result=exposition.record,
        wake_delivery=lambda: None,
        memory=memory,
    )
    await engine.start()
    every_s = shipped_every_s()

    async def collect(command: dict[str, Any]) -> dict[str, Any]:
        series = 0
        for number in range(command["count"] if "count" in command else command["seconds"]):
            due = settings.instances if "count" in command else [one for one in settings.instances if number % every_s[one.name] == 0]
            await asyncio.gather(*(engine.run(instance) for instance in due))
            if due:
                series = exposition.render().count(b"\nmonitor_pg_")
        await engine.flush()
        blind = {result.check: result.error for result in engine.latest.values() if result.outcome is Outcome.BLIND}
        return {"blind": blind, "series": series}

    try:
        await answer_commands(collect)
    finally:
        await outside.close()
        thread.close()
        store.close()


if __name__ == "__main__":
    tune_process()
    uvloop.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
