"""Our side of the PostgreSQL bench: the shipped checks on one database, as the running monitor runs them.

Runner, checks, the held connection, engine with store, history and exposition; without scheduler, delivery and API. Two ways to run: the
facts that postgres_exporter collects too, all of them each time, or everything as often as config.toml says.
"""

import asyncio
import json
import sys
import tomllib
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop

import alerts
import checks
from bench.processes import answer_commands
from monitor import config
from monitor.clock import SystemClock
from monitor.domain import Outcome
from monitor.engine import TICK_S, Engine
from monitor.logs import configure_logging
from monitor.memory import Memory
from monitor.metrics.exposition import Exposition
from monitor.probes.outside import Outside
from monitor.process import tune_process
from monitor.runner import Runner
from monitor.store import Store, StoreThread

SHIPPED = Path(__file__).resolve().parents[1] / "config.toml"
FACTS: Mapping[str, Mapping[str, object]] = {
    "pg_connections": {"login_every": "5m"},
    "pg_counters": {},
    "pg_checkpoints": {},
    "pg_replication": {},
    "pg_wal": {},
    "pg_vacuum": {},
    "pg_sizes": {"top": 0},
    "pg_long_queries": {},
    "pg_indexes": {"look_for": ["missing"]},
}
"""The checks that look at what postgres_exporter exports, and how what it does not know is left out: canary logins, sizes of tables,
invalid, unused and double indexes, foreign keys without one."""


def shipped_checks() -> dict[str, dict[str, object]]:
    """Every PostgreSQL check of the shipped configuration, by name."""
    tables = tomllib.loads(SHIPPED.read_text())["checks"]
    return {name: table for name, table in tables.items() if name.startswith("pg_")}


def write_settings(folder: Path, dsn_file: Path, tables: Mapping[str, Mapping[str, object]]) -> Path:
    """A configuration of a monitor that watches one database with these checks."""
    step = '[{after = "0s", who = "on-call", channels = ["mail"]}]'
    lines = [
        f'[monitor]\nstate = "{folder}/monitor.db"',
        f'[services.postgres]\ndsn = {{file = "{dsn_file}"}}',
        *(
            f"[checks.{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
            for name, table in tables.items()
        ),
        '[channels.mail]\nnotifier = "email"\nhost = "127.0.0.1"\nsender = "monitor@example.com"\nto = ["ops@example.com"]',
        "[escalation]",
        *(f"{severity} = {step}" for severity in ("P1", "P2", "P3", "P4")),
    ]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class _Ahead(SystemClock):
    """A wall clock that the schedule moves: what was planned for ten minutes is done in a moment."""

    ahead_s = 0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)


async def main(folder: Path, dsn_file: Path, way: str) -> None:
    configure_logging()
    clock, memory = _Ahead() if way == "shipped" else SystemClock(), Memory()
    usual = {"services": ["postgres"], "every": "15s", "timeout": "9s"}
    tables = shipped_checks() if way == "shipped" else {name: usual | dict(table) for name, table in FACTS.items()}
    settings = config.load(
        write_settings(folder, dsn_file, tables),
        checks={check.name: check for check in checks.BUILTINS},
        notifiers={notifier.name: notifier for notifier in alerts.BUILTINS},
    )
    store, thread, outside, exposition = Store(settings.state_url), StoreThread(), Outside(clock), Exposition("bench")
    runner = Runner(
        clock,
        lambda instance, kept: outside.check_context(instance.service, name=instance.name, kept=kept, timeout_s=instance.timeout_s),
        memory,
    )
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

    async def collect(command: dict[str, Any]) -> dict[str, Any]:
        """All checks ``count`` times, or what is due in each of ``seconds``."""
        before, flushed = _logins(outside), clock.monotonic()
        for _ in range(command["count"] if "count" in command else command["seconds"]):
            due = settings.instances
            if isinstance(clock, _Ahead):
                due = tuple(one for one in due if clock.ahead_s % one.every_s == 0)
                clock.ahead_s += 1
            async with asyncio.TaskGroup() as runs:  # as the scheduler starts them
                for instance in due:
                    runs.create_task(engine.run(instance))
            if due:
                exposition.render()
            if clock.monotonic() - flushed >= TICK_S:
                await engine.flush()
                flushed = clock.monotonic()
        await engine.flush()
        series = exposition.render().count(b"\nmonitor_pg_")
        blind = {result.check: result.error for result in engine.latest.values() if result.outcome is Outcome.BLIND}
        return {"blind": blind, "series": series, "logins": _logins(outside) - before}

    try:
        await answer_commands(collect)
    finally:
        await outside.close()
        thread.close()
        store.close()


def _logins(outside: Outside) -> int:
    return sum(cost.logins for cost in outside.postgres_costs().values())


if __name__ == "__main__":
    tune_process()
    uvloop.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
