"""``monitor oncall``: who is told now and later."""

from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape

from alerts.message import duration_words
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, open_settings, out, print_json
from monitor.clock import SystemClock
from monitor.config.settings import Settings
from monitor.domain import EscalationStep

AHEAD = timedelta(days=14)
_NOBODY = "[red]nobody[/]"


def register(app: typer.Typer) -> None:
    @app.command()
    def oncall(
        at: Annotated[datetime | None, typer.Option("--at", help="A moment, in the rotation's time zone; now when not given.")] = None,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Show who is on call in each rotation, with the changes of the 14 days after, and whom each severity tells."""
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
            return
        _print_rotations(found)
        moment = at.replace(tzinfo=settings.timezone) if at else now
        for severity, chain in settings.escalation.items():
            out.print(f"[bold]{severity.name}[/]")
            for step in chain:
                after = f"after {duration_words(step.after_s)}" if step.after_s else "at once"
                out.print(f"  [dim]{after:<18}[/]", _step(settings, step, moment))


def _step(settings: Settings, step: EscalationStep, moment: datetime) -> str:
    """Who a step that fires at that moment tells, and by what."""
    reached = settings.people.reach(step, moment)
    who = f"{step.who} ({', '.join(reached.people)})" if reached.people else step.who
    hours = " [dim]in business hours[/]" if step.business_hours else ""
    return f"{escape(who)} [dim]by[/] {escape(', '.join(reached.channels)) if reached.channels else _NOBODY}{hours}"


def _print_rotations(found: list[dict[str, Any]]) -> None:
    for rotation in found:
        who = rotation["on_call"]
        out.print(f"[bold]{escape(rotation['rotation'])}[/]  {escape(who) if who else _NOBODY}")
        for change in rotation["changes"]:
            contact = escape(change["contact"]) if change["contact"] else _NOBODY
            out.print(f"  [dim]{change['at']:%a %Y-%m-%d %H:%M %Z}[/]  {contact}")
