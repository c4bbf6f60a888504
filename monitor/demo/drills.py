"""Drills: break the platform for real, and prove with times that the page and its resolve reached the right place."""

import asyncio
import json
import ssl
import sys
import tomllib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monitor import config as configuration
from monitor.clock import SystemClock
from monitor.domain import Incident, IncidentState, Severity
from monitor.errors import MonitorError, UsageError
from monitor.store import Store
from services.faults import Fault, find_fault
from services.platform import Platform

CALM_WITHIN_S = 60.0
OPENED_WITHIN_S = 90.0
PAGED_WITHIN_S = 30.0
RESOLVED_WITHIN_S = 90.0
COMMAND_WITHIN_S = 60.0
POLL_S = 0.05
PAGER, SLACK = "the pager", "Slack"
T = TypeVar("T")


class DrillError(MonitorError):
    """A drill could not be run to its end."""


@dataclass(frozen=True, slots=True)
class Drill:
    """A fault, and who is expected to hear of it: the pager (P1) or Slack (P2)."""

    fault: Fault
    told: str
    operation: str | None = None
    """The runbook's operation that mends what the fault left behind, before the fault itself is taken back."""


DRILLS = (
    Drill(find_fault("service-down"), PAGER),
    Drill(find_fault("service-hang"), PAGER),
    Drill(find_fault("connections-exhausted"), PAGER),
    Drill(find_fault("stuck-job"), SLACK, operation="cancel-stuck-jobs"),
)


@dataclass
class Account:
    """What happened when: (what, seconds since the fault, None when it did not)."""

    clock: SystemClock
    fault_at: datetime
    rows: list[tuple[str, float | None]] = field(default_factory=list)

    def note(self, what: str, at: datetime | float | None) -> None:
        seconds = at.timestamp() if isinstance(at, datetime) else at
        self.rows.append((what, None if seconds is None else seconds - self.fault_at.timestamp()))

    @property
    def complete(self) -> bool:
        return all(seconds is not None for _, seconds in self.rows)


def find_drill(name: str) -> Drill:
    """Raises ``UsageError`` naming the drills there are."""
    for drill in DRILLS:
        if drill.fault.name == name:
            return drill
    raise UsageError(f"no drill {name!r}: there are {', '.join(drill.fault.name for drill in DRILLS)}")


def describe_drills() -> None:
    """Print the drills."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("drill", "incident", "what is broken", "who hears"):
        table.add_column(column)
    for drill in DRILLS:
        table.add_row(drill.fault.name, drill.fault.incident, drill.fault.help, drill.told)
    Console(highlight=False).print(table)


async def run_drill(drill: Drill, platform: Platform, config: Path, console: Console) -> bool:
    """Wait for calm, break, wait for the page, mend, wait for the resolve; print the times. True when all of it happened."""
    clock = SystemClock()
    store = Store(configuration.load_state_url(config))
    try:
        with console.status("waiting until every check is green"):
            await _wait(lambda: _calm(config), CALM_WITHIN_S, "not every check is green: the drill needs a healthy platform")
        console.print(f"[bold]drill {drill.fault.name}[/]: {escape(drill.fault.help)}")
        account = Account(clock, clock.now())
        await drill.fault.provoke(platform)
        account.note("the platform is broken", clock.now())
        try:
            incident = await _watch_page(drill, platform, store, account, console)
            if incident is not None:
                await _mend(drill, platform, config, incident, console)
                account.note("mended", clock.now())
                await _watch_resolve(drill, platform, store, incident, account, console)
                others = _paged_besides(store, incident, account.fault_at)
                account.note("one fault, one page: nobody was woken or called for anything else", None if others else clock.now())
                for other in others:
                    console.print(f"  [red]also told[/] {other.severity.name} {escape(other.service)}: {escape(other.summary)}")
        finally:
            await drill.fault.heal(platform)
        _print(drill, incident, account, store, console)
        return incident is not None and account.complete
    finally:
        store.close()


async def _watch_page(drill: Drill, platform: Platform, store: Store, account: Account, console: Console) -> Incident | None:
    async def opened() -> Incident | None:
        found = await asyncio.to_thread(store.incidents.list, unresolved=False)
        return next((i for i in found if i.code == drill.fault.incident and i.opened_at >= account.fault_at), None)

    with console.status("waiting for the monitor to see it"):
        incident = await _within(opened, OPENED_WITHIN_S)
    account.note("detected: the incident is open", incident.opened_at if incident else None)
    if incident is None:
        return None
    with console.status(f"waiting for the page at {drill.told}"):
        paged = await _within(lambda: _arrived(drill, platform, incident, resolve=False), PAGED_WITHIN_S)
    account.note(f"the page arrived at {drill.told}", paged)
    return incident


async def _mend(drill: Drill, platform: Platform, config: Path, incident: Incident, console: Console) -> None:
    """By the runbook's operation through the command line, as soon as it has something to do; and by taking the fault back."""
    if drill.operation is not None:
        await _operate(drill.operation, config, incident, console)
    await drill.fault.heal(platform)


async def _operate(operation: str, config: Path, incident: Incident, console: Console) -> None:
    async def plan() -> dict[str, Any] | None:
        planned: dict[str, Any] = json.loads(await _command("runbook", "plan", operation, "--json", "--config", str(config)))
        return planned if planned["steps"] else None

    with console.status(f"waiting until {operation} has something to do"):
        planned = await _within(plan, OPENED_WITHIN_S)
    if planned is None:
        raise DrillError(f"monitor runbook plan {operation} finds nothing to do")
    console.print(f"  runbook plan: {escape(planned['summary'])}")
    said = ("--plan", planned["digest"], "--who", "drill", "--why", f"drill, incident {incident.id}")
    await _command("runbook", "apply", operation, *said, "--config", str(config))
    console.print(f"  runbook apply: done, verified and audited (steps: {len(planned['steps'])})")


async def _watch_resolve(drill: Drill, platform: Platform, store: Store, incident: Incident, account: Account, console: Console) -> None:
    async def resolved() -> Incident | None:
        found = await asyncio.to_thread(store.incidents.find, incident.id)
        return found if found.state is IncidentState.RESOLVED else None

    with console.status("waiting for the monitor to see health"):
        after = await _within(resolved, RESOLVED_WITHIN_S)
    account.note("the checks see health: resolved", after.resolved_at if after else None)
    if after is not None:
        with console.status(f"waiting for the resolve at {drill.told}"):
            at = await _within(lambda: _arrived(drill, platform, incident, resolve=True), PAGED_WITHIN_S)
        account.note(f"the resolve arrived at {drill.told}", at)


def _paged_besides(store: Store, incident: Incident, since: datetime) -> list[Incident]:
    """What else people were woken or called for since the fault; tickets call nobody."""
    opened = [other for other in store.incidents.list(unresolved=False) if other.opened_at >= since and other.id != incident.id]
    return [other for other in opened if other.told and other.severity <= Severity.P2]


# --- looking ---------------------------------------------------------------------------------------------------------


async def _arrived(drill: Drill, platform: Platform, incident: Incident, *, resolve: bool) -> float | None:
    """When the page (or its resolve) reached the far end, epoch seconds; None when it has not."""
    url = platform.pagerduty_url if drill.told == PAGER else platform.slack_url
    trust = ssl.create_default_context(cafile=str(platform.ca_file))
    async with httpx2.AsyncClient(verify=trust, trust_env=False, timeout=5) as http:
        received = (await http.get(f"{url}/_received")).json()
    return _paged_at(received, incident.id, resolve=resolve) if drill.told == PAGER else _posted_at(received, incident.id, resolve=resolve)


def _paged_at(received: dict[str, Any], key: str, *, resolve: bool) -> float | None:
    action = "resolve" if resolve else "trigger"
    calls = [call for call in received["events"] if call["dedup_key"] == key and call["event_action"] == action]
    return min((float(call["received_at"]) for call in calls), default=None)


def _posted_at(received: dict[str, Any], key: str, *, resolve: bool) -> float | None:
    for channel in received["channels"]:
        for message in channel["messages"]:
            if key in json.dumps(message) and message["thread_ts"] is None:
                if not resolve:
                    return float(message["received_at"])
                replies = [m for m in channel["messages"] if m["thread_ts"] == message["ts"] and "resolved" in json.dumps(m).lower()]
                return min((float(reply["received_at"]) for reply in replies), default=None)
    return None


async def _calm(config: Path) -> bool:
    """Whether every configured check has run, and sees nothing wrong."""
    settings = tomllib.loads(config.read_text())
    wanted = sum(len(check["services"]) for check in settings["checks"].values())
    async with httpx2.AsyncClient(trust_env=False, timeout=5) as http:
        text = (await http.get(f"http://{settings['monitor']['listen']}/metrics")).text
    outcomes = [line for line in text.splitlines() if line.startswith("monitor_check_outcome{") and 'outcome="ok"' in line]
    return len(outcomes) == wanted and all(line.endswith((" 1", " 1.0")) for line in outcomes)


async def _command(*arguments: str) -> str:
    """Run ``monitor …`` as a person would; returns what it printed. Raises ``DrillError`` with its own words when it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "monitor", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(COMMAND_WITHIN_S):
            printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = (errors or printed).decode(errors="replace").strip()
        raise DrillError(f"monitor {' '.join(arguments[:3])} failed with {process.returncode}: {said}")
    return printed.decode(errors="replace")


async def _within(look: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
    """Look until there is something, or None after that time."""
    try:
        async with asyncio.timeout(seconds):
            while (seen := await look()) is None:
                await asyncio.sleep(POLL_S)
            return seen
    except TimeoutError:
        return None


async def _wait(look: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
    async def seen() -> bool | None:
        return await look() or None

    if await _within(seen, seconds) is None:
        raise DrillError(otherwise)


def _print(drill: Drill, incident: Incident | None, account: Account, store: Store, console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for what, seconds in account.rows:
        mark, when = ("[green]✓[/]", f"{seconds:.1f} s") if seconds is not None else ("[red]✗[/]", "never")
        table.add_row(mark, when, escape(what))
    console.print(table)
    if incident is not None:
        console.print(f"[dim]incident {incident.id}, {incident.severity.name}: {escape(incident.summary)}[/]")
        for entry in store.incidents.timeline(incident.id):
            console.print(f"[dim]  {entry.at:%H:%M:%S} {entry.kind}: {escape(entry.text)}[/]")
    good = incident is not None and account.complete
    console.print(f"[bold green]drill {drill.fault.name} passed[/]" if good else f"[bold red]drill {drill.fault.name} failed[/]")
