"""``monitor oncall`` and ``monitor maintenance``: who is told now and later, and when nobody is."""

from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape

from alerts.matchers import show_matcher
from alerts.muting import Window
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, open_settings, out, plain_table, print_json
from monitor.clock import SystemClock

AHEAD = timedelta(days=14)
_NOBODY = "[red]nobody[/]"


def register(app: typer.Typer) -> None:
    @app.command()
    def oncall(
        at: Annotated[datetime | None, typer.Option("--at", help="A moment, in the rotation's time zone; now when not given.")] = None,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Show who is on call in each rotation, and the changes of the 14 days after."""
        settings, _ = open_settings(config)
        now = SystemClock().now()
        found: list[dict[str, Any]] = []
        for name, rotation in settings.people.rotations.items():
            start = at.replace(tzinfo=rotation.timezone) if at else now
            (_, who), *later = rotation.changes(start, start + AHEAD)
            changes = [{"at": when.astimezone(rotation.timezone), "contact": contact} for when, contact in later]
            found.append({"rotation": name, "on_call": who, "changes": changes})
        if as_json:
            print_json(found)
        elif found:
            _print_rotations(found)
        else:
            out.print("no rotations: escalation steps name their channels themselves")

    @app.command()
    def maintenance(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        """Show the maintenance windows: which is open, and when each opens next."""
        settings, _ = open_settings(config)
        now = SystemClock().now()
        rows = [_window_row(window, now) for window in settings.windows]
        if as_json:
            print_json(rows)
        elif rows:
            _print_windows(rows)
        else:
            out.print("no maintenance windows")


def _print_rotations(found: list[dict[str, Any]]) -> None:
    for rotation in found:
        who = rotation["on_call"]
        out.print(f"[bold]{escape(rotation['rotation'])}[/]  {escape(who) if who else _NOBODY}")
        for change in rotation["changes"]:
            contact = escape(change["contact"]) if change["contact"] else _NOBODY
            out.print(f"  [dim]{change['at']:%a %Y-%m-%d %H:%M %Z}[/]  {contact}")


def _window_row(window: Window, now: datetime) -> dict[str, Any]:
    return {
        "name": window.name,
        "matchers": [show_matcher(matcher) for matcher in window.matchers],
        "open_until": window.active_until(now),
        "next_opening": window.next_opening(now),
    }


def _print_windows(rows: list[dict[str, Any]]) -> None:
    table = plain_table("window", "covers", "state", "opens next")
    for row in rows:
        until, opens = row["open_until"], row["next_opening"]
        state = f"[green]open until {until:%Y-%m-%d %H:%M} UTC[/]" if until else "closed"
        following = f"{opens:%Y-%m-%d %H:%M} UTC" if opens else "never"
        table.add_row(escape(row["name"]), escape(" ".join(row["matchers"])), state, following)
    out.print(table)
