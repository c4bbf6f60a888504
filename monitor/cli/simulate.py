"""``monitor simulate``: what another configuration would have sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from alerts.message import duration_words
from monitor import config as configuration
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, err, open_settings, out, plain_table, print_json
from monitor.clock import SystemClock
from monitor.errors import StoreError, UsageError
from monitor.plugins import parse_duration_s
from monitor.simulation import Line, Past, Replay, Replayed, Status, compare, past_of, remarks, weeks
from monitor.store import Recorded

MOVED_S = 60.0
"""A notification that comes so much sooner or later is worth a line."""
_COLOURS = {Status.NEW: "green", Status.OLD: "yellow", Status.BOTH: "dim"}


def register(app: typer.Typer) -> None:
    @app.command()
    def simulate(
        since: Annotated[str, typer.Option(help="How far to look back, such as 7d or 12h.")] = "7d",
        state_of: Annotated[
            Path | None,
            typer.Option("--state-of", help="The configuration that runs, if it has another state than --config."),
        ] = None,
        unacknowledged: Annotated[bool, typer.Option("--unacknowledged", help="Suppose that nobody acknowledged anything.")] = False,
        every: Annotated[bool, typer.Option("--all", help="Also what both send, acknowledgements and ends.")] = False,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Replay what the checks saw with another configuration: what it would have sent, to whom and when, beside what was sent."""
        settings, registry = open_settings(config)
        now = SystemClock().now()
        begin = now - timedelta(seconds=_duration(since))
        past = _past(configuration.load_state_url(state_of or config), now)
        with _bar() as progress:
            replayed = Replay(past, settings, registry.guides, unacknowledged=unacknowledged, progress=progress).run()
        lines = compare(past, replayed, begin)
        said = remarks(past, replayed, begin, unacknowledged=unacknowledged)
        if as_json:
            print_json(_as_json(lines, replayed, said, begin, now))
            return
        size = f"{len(settings.instances)} checks, {replayed.runs:,} runs"
        out.print(f"[bold]{begin:%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC[/]  [dim]{size}[/]")
        _print_weeks(lines)
        _print_lines([line for line in lines if every or (line.asks and _differs(line))], settings.timezone, every=every)
        for remark in said:
            out.print(f"[yellow]·[/] {escape(remark)}")


def _duration(text: str) -> float:
    try:
        seconds = parse_duration_s(text)
    except ValueError as exc:
        raise UsageError(f"--since {text!r}: {exc}") from exc
    if seconds <= 0:
        raise UsageError(f"--since {text!r}: must be longer than nothing")
    return seconds


def _past(url: str, now: datetime) -> Past:
    try:
        recorded = Recorded(url)
    except StoreError as exc:
        raise StoreError(f"{exc}; --state-of names the configuration of the monitor that runs") from exc
    try:
        return past_of(recorded, now)
    finally:
        recorded.close()


@contextmanager
def _bar() -> Iterator[Any]:
    columns = (TextColumn("replaying"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total) if done % 256 == 0 else None


def _differs(line: Line) -> bool:
    return line.status is not Status.BOTH or abs(line.later_s) >= MOVED_S


def _print_weeks(lines: tuple[Line, ...]) -> None:
    counts = weeks(lines)
    if not counts:
        out.print("nobody was asked anything, and nobody would have been")
        return
    table = plain_table("week", "", "channel", "was asked", "would be", "")
    for (week, severity, channel), (was, would) in counts.items():
        change = f"[green]{would - was:+}[/]" if would < was else f"[yellow]{would - was:+}[/]" if would > was else ""
        table.add_row(week, severity.name, escape(channel), str(was), str(would), change)
    total = [sum(count[place] for count in counts.values()) for place in (0, 1)]
    table.add_row("[bold]all[/]", "", "", *(f"[bold]{count}[/]" for count in total), "")
    out.print(table)


def _print_lines(lines: list[Line], timezone: ZoneInfo, *, every: bool) -> None:
    if not lines:
        out.print("[green]no difference[/]" if not every else "nothing was sent")
        return
    table = plain_table("", "when", "", "what", "whom, and why")
    for line in lines:
        local = line.at.astimezone(timezone)
        moved = ""
        if line.status is Status.BOTH and abs(line.later_s) >= MOVED_S:
            moved = f"{duration_words(abs(line.later_s))} {'later' if line.later_s > 0 else 'sooner'}"
        status = f"[{_COLOURS[line.status]}]{line.status.value}[/]" if not moved else f"[cyan]{moved}[/]"
        table.add_row(
            status,
            f"{local:%a %m-%d %H:%M:%S}",
            line.severity.name,
            f"{escape(line.service)}: {escape(line.title)}",
            f"{line.transition.value} by [bold]{escape(line.channel)}[/]: {escape(line.reason)}",
        )
    out.print(table)


def _as_json(lines: tuple[Line, ...], replayed: Replayed, said: tuple[str, ...], begin: datetime, now: datetime) -> dict[str, Any]:
    return {
        "since": begin,
        "until": now,
        "runs": replayed.runs,
        "counts": [
            {"week": week, "severity": severity.name, "channel": channel, "was": was, "would_be": would}
            for (week, severity, channel), (was, would) in weeks(lines).items()
        ],
        "notifications": [
            asdict(line) | {"status": line.status.value, "severity": line.severity.name, "transition": line.transition.value}
            for line in lines
        ],
        "remarks": list(said),
    }
