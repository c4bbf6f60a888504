"""Provokes the symptoms of the runbook's incidents for real, and heals them again. Every function may be repeated.

By hand, against a running platform: ``python -m services.faults [--root DIR] list | provoke NAME | heal NAME``.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import psycopg

from services.control import ControlError, Handler, ask

if TYPE_CHECKING:
    from services.platform import Platform

DEFAULT_ROOT = Path(".demo/platform")
"""Where `monitor demo` keeps its platform."""
HELD_MAX = 1000
LEAK_EVERY_S = 0.2
STUCK_WITHIN_S = 15.0


class FaultError(Exception):
    """The fault could not be provoked or healed; the message says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """``help`` is one sentence; ``service`` is what the symptom shows at; ``incident`` is the runbook's code."""

    name: str
    incident: str
    service: str
    help: str
    provoke: "Callable[[Platform], Awaitable[None]]"
    heal: "Callable[[Platform], Awaitable[None]]"


# --- a service is gone, or hangs -------------------------------------------------------------------------------------


async def _kill_analytics(platform: "Platform") -> None:
    await asyncio.to_thread(platform.child("analytics").kill)


async def _restart_analytics(platform: "Platform") -> None:
    await platform.start_service("analytics")


async def _stop_data(platform: "Platform") -> None:
    child = platform.child("data")
    if child.pid is None:
        raise FaultError("the data service does not run: there is nothing to hang")
    child.send(signal.SIGSTOP)


async def _continue_data(platform: "Platform") -> None:
    platform.child("data").send(signal.SIGCONT)
    await platform.start_service("data")


# --- the database has no connection left -----------------------------------------------------------------------------


class Leak:
    """Connections that are opened and never given back. It goes on leaking: a slot that others free is taken at once."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connections: list[psycopg.AsyncConnection] = []
        self._leaking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take connections until the server refuses. Raises ``FaultError``."""
        refusal = await self._fill()
        if refusal is None or not self._connections:
            await self.close()
            raise FaultError(str(refusal).strip() if refusal else f"the server gives more than {HELD_MAX} connections")
        self._leaking = asyncio.create_task(self._leak())

    async def close(self) -> None:
        if self._leaking is not None:
            self._leaking.cancel()
            await asyncio.wait({self._leaking})
        for connection in self._connections:
            await connection.close()
        self._connections.clear()

    async def _fill(self) -> psycopg.OperationalError | None:
        while len(self._connections) < HELD_MAX:
            try:
                self._connections.append(await psycopg.AsyncConnection.connect(self._dsn, autocommit=True))
            except psycopg.OperationalError as exc:
                return exc
        return None

    async def _leak(self) -> None:
        while True:
            await asyncio.sleep(LEAK_EVERY_S)
            await self._fill()


async def _take_connections(platform: "Platform") -> None:
    if "connections-exhausted" in platform.held:
        return
    leak = Leak(platform.services_dsn("report-export"))
    await leak.start()
    platform.held["connections-exhausted"] = leak.close


async def _return_connections(platform: "Platform") -> None:
    give_back = platform.held.pop("connections-exhausted", None)
    if give_back is not None:
        await give_back()


# --- a job makes no progress -----------------------------------------------------------------------------------------


async def _hang_a_job(platform: "Platform") -> None:
    try:
        headers = await platform.log_in()
        if platform.stuck_job and await _status(platform, platform.stuck_job, headers) == "processing":
            return
        await _set_bigquery(platform, "hang")
        yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
        order = {"start_date": yesterday, "end_date": yesterday, "data_types": ["events"]}
        answer = await platform.http.post(f"{platform.urls['data']}/api/v1/ingest/start", json=order, headers=headers)
        answer.raise_for_status()
        platform.stuck_job = str(answer.json()["job_id"])
        deadline = time.monotonic() + STUCK_WITHIN_S
        while await _status(platform, platform.stuck_job, headers) != "processing":
            if time.monotonic() > deadline:
                raise FaultError(f"the job {platform.stuck_job} was not taken up within {STUCK_WITHIN_S:g} s: another one is in hand")
            await asyncio.sleep(0.1)
    except httpx2.HTTPError as exc:
        raise FaultError(f"the ingestion cannot be started: {str(exc) or type(exc).__name__}") from exc


async def _answer_bigquery(platform: "Platform") -> None:
    try:
        await _set_bigquery(platform, "ok")
    except httpx2.HTTPError as exc:
        raise FaultError(f"the BigQuery endpoint cannot be reached: {str(exc) or type(exc).__name__}") from exc


async def _set_bigquery(platform: "Platform", mode: str) -> None:
    (await platform.http.post(f"{platform.urls['bigquery']}/_control", json={"mode": mode})).raise_for_status()


async def _status(platform: "Platform", job_id: str, headers: dict[str, str]) -> str:
    answer = await platform.http.get(f"{platform.urls['data']}/api/v1/jobs/{job_id}", headers=headers)
    answer.raise_for_status()
    return str(answer.json()["status"])


FAULTS: tuple[Fault, ...] = (
    Fault("service-down", "INC-001", "analytics", "The analytics service's process is killed.", _kill_analytics, _restart_analytics),
    Fault(
        "service-hang", "INC-001", "data", "The data service's process is frozen: it accepts and never answers.", _stop_data, _continue_data
    ),
    Fault(
        "connections-exhausted",
        "INC-002",
        "postgres",
        "A leak takes every connection that PostgreSQL gives to the services.",
        _take_connections,
        _return_connections,
    ),
    Fault(
        "stuck-job",
        "INC-003",
        "data",
        "BigQuery stops answering while an ingestion job is in hand, and the job sits in processing.",
        _hang_a_job,
        _answer_bigquery,
    ),
)


def find_fault(name: str) -> Fault:
    """Raises ``FaultError`` that names the faults there are."""
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise FaultError(f"there is no fault {name!r}; expected one of {', '.join(fault.name for fault in FAULTS)}")


def requests(platform: "Platform") -> dict[str, Handler]:
    """What another process may ask of a running platform, for :class:`services.control.Control`."""

    async def provoke(name: str) -> str:
        fault = find_fault(name)
        await fault.provoke(platform)
        return f"provoked {name}: {fault.help}"

    async def heal(name: str) -> str:
        await find_fault(name).heal(platform)
        return f"healed {name}"

    return {"provoke": provoke, "heal": heal}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.faults", description="Break the running platform for real, and heal it.")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="the running platform's folder (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="say which faults there are")
    for verb, text in (("provoke", "break it"), ("heal", "mend it")):
        verbs.add_parser(verb, help=text).add_argument("name", metavar="NAME")
    options = parser.parse_args()
    if options.verb == "list":
        print("\n".join(f"{fault.name:24}{fault.incident}  {fault.help}" for fault in FAULTS))
        return
    try:
        find_fault(options.name)
        print(asyncio.run(ask(options.root, options.verb, options.name)))
    except (FaultError, ControlError) as exc:
        sys.exit(f"faults: {exc}")


if __name__ == "__main__":
    main()
