"""``monitor check``: run checks once, now, with Nagios exit codes."""

import asyncio
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from alerts.explain import rule
from monitor.cli.opening import (
    DEFAULT_CONFIG,
    EXIT_CRITICAL,
    EXIT_OK,
    EXIT_UNKNOWN,
    EXIT_WARNING,
    ConfigOption,
    JsonOption,
    err,
    open_settings,
    open_store,
    out,
    plain_table,
    print_json,
)
from monitor.clock import SystemClock
from monitor.config.settings import CheckInstance, Settings
from monitor.domain import CheckResult, Outcome, Severity
from monitor.errors import MonitorError, UsageError
from monitor.memory import Memory
from monitor.probes.heartbeats import KnownHeartbeats
from monitor.probes.outside import Outside
from monitor.runner import Runner

WORDS = {EXIT_OK: "OK", EXIT_WARNING: "WARNING", EXIT_CRITICAL: "CRITICAL", EXIT_UNKNOWN: "UNKNOWN"}
_COLOURS = {EXIT_OK: "green", EXIT_WARNING: "yellow", EXIT_CRITICAL: "red", EXIT_UNKNOWN: "magenta"}
_ORDER = (EXIT_OK, EXIT_WARNING, EXIT_UNKNOWN, EXIT_CRITICAL)
"""From best to worst: something known to be critical outweighs something unknown."""


def register(app: typer.Typer) -> None:
    @app.command()
    def check(
        names: Annotated[
            list[str] | None, typer.Argument(help="Checks (http_health) or instances (http_health/auth); all when none.")
        ] = None,
        listed: Annotated[bool, typer.Option("--list", help="Only list them; nothing is looked at.")] = False,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Run checks once and print what they see. Exit code 0 OK, 1 WARNING (P3, P4), 2 CRITICAL (P1, P2), 3 UNKNOWN."""
        settings, _ = open_settings(config)
        chosen = choose(settings, names or [])
        if listed:
            _list(chosen, as_json=as_json)
            return
        with err.status(f"looking: {len(chosen)} checks"):
            results = asyncio.run(run_once(settings, chosen, remembered(config)))
        code = max((exit_code(result) for result in results), key=_ORDER.index, default=EXIT_OK)
        if as_json:
            print_json({"status": WORDS[code], "code": code, "results": [_as_json(result) for result in results]})
        else:
            _print(results, code)
        raise typer.Exit(code)


def choose(settings: Settings, names: list[str]) -> list[CheckInstance]:
    """The instances that names mean. Raises ``UsageError`` with the nearest valid name."""
    valid = {instance.key for instance in settings.instances} | {instance.name for instance in settings.instances}
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(valid))}"
            raise UsageError(f"no check {name!r}: {hint}")
    return [i for i in settings.instances if not names or i.key in names or i.name in names]


def _list(chosen: list[CheckInstance], *, as_json: bool) -> None:
    if as_json:
        print_json([{"instance": one.key, "check": one.check.name, "every_s": one.every_s} for one in chosen])
        return
    table = plain_table("instance", "check", "every", "an alert")
    for one in chosen:
        table.add_row(escape(one.key), one.check.name, f"{one.every_s:g} s", rule(one.policy).removeprefix("an alert "))
    out.print(table)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the running monitor knows from before; a run by hand leaves no trace in it."""

    memory: Memory
    heartbeats: KnownHeartbeats


def remembered(config: Path) -> Remembered:
    """What is in the monitor's state to compare with; nothing where it cannot be read."""
    try:
        store = open_store(config)
    except MonitorError:
        return Remembered(Memory(), KnownHeartbeats())
    try:
        return Remembered(Memory(store.kept.all()), KnownHeartbeats(store.heartbeats.all()))
    except MonitorError:
        return Remembered(Memory(), KnownHeartbeats())
    finally:
        store.close()


async def run_once(settings: Settings, chosen: list[CheckInstance], known: Remembered) -> list[CheckResult]:
    """Run instances at the same time, once each."""
    clock = SystemClock()
    outside = Outside(clock, known.heartbeats)
    runner = Runner(
        clock,
        lambda instance, kept: outside.check_context(instance.service, name=instance.name, kept=kept, timeout_s=instance.timeout_s),
        known.memory,
    )
    try:
        return list(await asyncio.gather(*(runner.run(instance) for instance in chosen)))
    finally:
        await outside.close()


def exit_code(result: CheckResult) -> int:
    """What one result means to Nagios and its kin."""
    if result.outcome is Outcome.BLIND:
        return EXIT_UNKNOWN
    severities = [finding.severity or finding.kind.severity for finding in result.observed.findings]
    if not severities:
        return EXIT_OK
    return EXIT_CRITICAL if min(severities) <= Severity.P2 else EXIT_WARNING


@dataclass(frozen=True, slots=True)
class _Told:
    headline: str
    details: tuple[str, ...]


def _tell(result: CheckResult) -> _Told:
    if result.error is not None:
        return _Told(f"could not look: {result.error}", ())
    findings = result.observed.findings
    if not findings:
        return _Told("nothing wrong", ())
    details = [f"{name}: {value}" for finding in findings for name, value in finding.facts]
    return _Told("; ".join(finding.summary for finding in findings), tuple(details))


def _print(results: list[CheckResult], code: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "check", "service", "what it saw"):
        table.add_column(column)
    table.add_column("took", justify="right")
    for result in results:
        told, own = _tell(result), exit_code(result)
        seen = escape(told.headline) + "".join(f"\n[dim]{escape(line)}[/]" for line in told.details)
        colour = _COLOURS[own]
        table.add_row(f"[bold {colour}]{WORDS[own]}[/]", escape(result.check), escape(result.service), seen, f"{result.duration_s:.3f} s")
    out.print(table)
    counts = ", ".join(
        f"{sum(exit_code(result) == kind for result in results)} {WORDS[kind].lower()}"
        for kind in reversed(_ORDER)
        if any(exit_code(result) == kind for result in results)
    )
    out.print(f"[bold {_COLOURS[code]}]{WORDS[code]}[/] {counts or 'no checks configured'}")


def _as_json(result: CheckResult) -> dict[str, object]:
    return {
        "instance": result.instance,
        "check": result.check,
        "service": result.service,
        "status": WORDS[exit_code(result)],
        "outcome": result.outcome.value,
        "error": result.error,
        "started_at": result.started_at,
        "duration_s": round(result.duration_s, 6),
        "findings": [
            {
                "name": finding.kind.name,
                "severity": (finding.severity or finding.kind.severity).name,
                "incident": finding.kind.incident,
                "summary": finding.summary,
                "facts": dict(finding.facts),
            }
            for finding in result.observed.findings
        ],
        "samples": [
            {"metric": sample.metric.name, "labels": dict(zip(sample.metric.labels, sample.labels, strict=True)), "value": sample.value}
            for sample in result.observed.samples
        ],
    }
