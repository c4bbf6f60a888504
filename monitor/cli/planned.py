"""``monitor maintenance`` and ``monitor inhibition``: what the configuration mutes, now and later, and what that would cover."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape

from alerts.matchers import matches, show_matcher
from alerts.muting import Inhibition, Muting, Window, match_labels
from monitor.cli.effects import Present, alerts_as_json, covered, present, print_effect
from monitor.cli.listing import group
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, open_settings, out, plain_table, print_json
from monitor.clock import SystemClock
from monitor.config.document import nearest
from monitor.domain import Matcher
from monitor.errors import UsageError

_HELP = "List the maintenance windows, or preview them: when they open, what they cover."


def register(app: typer.Typer) -> None:
    maintenance = group(app, "maintenance", _HELP)

    @maintenance.command("list")
    def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
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

    @maintenance.command("preview")
    def preview(
        names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Windows; all when none.")] = None,
        days: Annotated[int, typer.Option(help="How far to look ahead.", min=1, max=731)] = 60,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Show every opening of the coming days, by the window's own clock, and what it would mute if it were open now."""
        settings, _ = open_settings(config)
        now = SystemClock().now()
        stands = present(config, now)
        windows = _choose(settings.windows, names or [])
        if as_json:
            print_json([_preview_row(window, stands, now, days) for window in windows])
            return
        for window in windows:
            _print_preview(window, stands, now, days)
        if not windows:
            out.print("no maintenance windows")

    _register_inhibition(app)


def _register_inhibition(app: typer.Typer) -> None:
    @app.command()
    def inhibition(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        """Show the inhibition rules, which of their sources fire, and what each rule mutes now; also for a file that is not in use yet."""
        settings, _ = open_settings(config)
        now = SystemClock().now()
        stands = present(config, now)
        if as_json:
            print_json([_rule_row(rule, stands, now) for rule in settings.inhibitions])
            return
        for rule in settings.inhibitions:
            _print_rule(rule, stands, now)
        if not settings.inhibitions:
            out.print("no inhibition rules")


def _choose(windows: tuple[Window, ...], names: list[str]) -> tuple[Window, ...]:
    known = [window.name for window in windows]
    for name in names:
        if name not in known:
            raise UsageError(f"no maintenance window {name!r}: {nearest(name, known, noun='there are')}")
    return tuple(window for window in windows if not names or window.name in names)


def _window_row(window: Window, now: datetime) -> dict[str, Any]:
    return {
        "name": window.name,
        "matchers": _shown(window.matchers),
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


def _if_open(window: Window, now: datetime) -> Muting:
    """The window alone, as if it were open now."""
    return Muting(windows=(replace(window, schedule="", starts_at=None, ends_at=now + timedelta(minutes=1)),))


def _preview_row(window: Window, stands: Present | None, now: datetime, days: int) -> dict[str, Any]:
    openings = [{"begins": begin, "ends": end} for begin, end in window.openings(now, now + timedelta(days=days))]
    would = None if stands is None else alerts_as_json(covered(stands, _if_open(window, now), now))
    return {**_window_row(window, now), "openings": openings, "would_mute": would}


def _print_preview(window: Window, stands: Present | None, now: datetime, days: int) -> None:
    out.print(f"[bold]{escape(window.name)}[/]  [dim]{escape(' '.join(_shown(window.matchers)))}[/]")
    openings = window.openings(now, now + timedelta(days=days))
    for begin, end in openings:
        local = (begin.astimezone(window.timezone), end.astimezone(window.timezone))
        out.print(f"  {local[0]:%a %Y-%m-%d %H:%M %Z} – {local[1]:%a %H:%M %Z}  [dim]{begin:%H:%M}–{end:%H:%M} UTC[/]")
    if not openings:
        out.print(f"  does not open within {days} days")
    if stands is None:
        out.print("  [dim]what it would mute now is not known: the monitor has not run with this configuration's state[/]")
        return
    out.print("  [dim]if it were open now:[/]")
    alone = _if_open(window, now)
    print_effect(stands, alone, Muting(stands.silences, alone.windows), now)


def _rule_row(rule: Inhibition, stands: Present | None, now: datetime) -> dict[str, Any]:
    sources = [alert for alert in stands.firing if matches(rule.source, match_labels(alert))] if stands else []
    muting = Muting(inhibitions=(rule,), firing=stands.firing if stands else ())
    return {
        "source": _shown(rule.source),
        "target": _shown(rule.target),
        "equal": list(rule.equal),
        "sources": None if stands is None else alerts_as_json(sources),
        "mutes": None if stands is None else alerts_as_json(covered(stands, muting, now)),
    }


def _print_rule(rule: Inhibition, stands: Present | None, now: datetime) -> None:
    equal = f" with the same {', '.join(rule.equal)}" if rule.equal else ""
    out.print(f"[bold]{escape(' '.join(_shown(rule.source)))}[/] mutes [bold]{escape(' '.join(_shown(rule.target)))}[/]{escape(equal)}")
    if stands is None:
        out.print("  [dim]what it mutes now is not known: the monitor has not run with this configuration's state[/]")
        return
    sources = sum(matches(rule.source, match_labels(alert)) for alert in stands.firing)
    out.print(f"  [dim]{sources} of its sources fire{'s' if sources == 1 else ''} now; it mutes:[/]")
    muting = Muting(inhibitions=(rule,), firing=stands.firing)
    print_effect(stands, muting, replace(muting, silences=stands.silences), now)


def _shown(matchers: tuple[Matcher, ...]) -> list[str]:
    return [show_matcher(matcher) for matcher in matchers]
