"""``monitor incidents`` and ``monitor ack``."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from monitor.cli.listing import complete_incident, group
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, ago, open_store, out, print_json, whoami
from monitor.clock import SystemClock
from monitor.digested import acknowledge_digest
from monitor.domain import Incident, IncidentState, Severity, TimelineEntry, is_digest_key
from monitor.engine import acknowledge

IncidentArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The incident's id, or the beginning of it.", autocompletion=complete_incident)
]
TakenArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The incident's id, or the beginning of it; or the key of a digest, for all in it.",
        autocompletion=complete_incident,
    ),
]
EveryOption = Annotated[bool, typer.Option("--all", help="Also those that are resolved.")]
_COLOURS = {Severity.P1: "bold red", Severity.P2: "red", Severity.P3: "yellow", Severity.P4: "cyan"}


def register(app: typer.Typer) -> None:
    incidents = group(app, "incidents", "List incidents, the worst first, or show one.")

    @incidents.command("list")
    def list_(every: EveryOption = False, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        """List incidents, the worst first."""
        now = SystemClock().now()
        store = open_store(config)
        try:
            listed = store.incidents.list(unresolved=not every)
        finally:
            store.close()
        if as_json:
            print_json([_as_json(found) for found in listed])
        elif listed:
            out.print(_table(listed, now))
        else:
            out.print("[green]no open incidents[/]" if not every else "no incidents")

    @incidents.command("show")
    def show(incident: IncidentArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        """Show one incident with its timeline."""
        store = open_store(config)
        try:
            found = store.incidents.find(incident)
            timeline = store.incidents.timeline(found.id)
        finally:
            store.close()
        if as_json:
            print_json({**_as_json(found), "timeline": [entry._asdict() for entry in timeline]})
        else:
            _show(found, timeline, SystemClock().now())

    @app.command()
    def ack(
        incident: TakenArgument,
        who: Annotated[str | None, typer.Option(help="Who takes it; your account's name when not given.")] = None,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Take an incident: its escalation stops, and everybody who was told hears that you have it."""
        store = open_store(config)
        try:
            if is_digest_key(incident):
                count = acknowledge_digest(store, incident, who or whoami(), SystemClock())
                out.print(f"[green]acknowledged[/] {count} incidents" if count else "nobody is needed: all of them are taken or over")
                return
            found, changed = acknowledge(store, incident, who or whoami(), SystemClock())
        finally:
            store.close()
        what = f"[bold]{found.id}[/] {escape(found.title)}: {escape(found.summary)}"
        if changed:
            out.print(f"[green]acknowledged[/] by {escape(found.acked_by or '')}: {what}")
        elif found.state is IncidentState.ACKED:
            out.print(f"already acknowledged by {escape(found.acked_by or '')}: {what}")
        else:
            out.print(f"already resolved: {what}")


def _table(listed: tuple[Incident, ...], now: datetime) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "id", "since", "what"):
        table.add_column(column, no_wrap=column != "what")
    for found in listed:
        colour = _COLOURS[found.severity] if found.state is not IncidentState.RESOLVED else "dim"
        state = _state(found)
        following = _next(found, now)
        table.add_row(
            f"[{colour}]{found.severity.name}[/]",
            found.id,
            ago(found.opened_at, now),
            f"[bold]{escape(found.service)}: {escape(found.title)}[/]{f' ({found.code})' if found.code else ''}\n"
            f"{escape(found.summary)}\n[dim]{escape(state)}{f'; next: {escape(following)}' if following else ''}[/]",
        )
    return table


def _state(found: Incident) -> str:
    """In words: who has it, or why nobody is told."""
    if found.state is IncidentState.ACKED:
        return f"acknowledged by {found.acked_by}"
    if found.muted:
        return f"{found.state.value}, muted: {'; '.join(found.muted)}"
    return f"{found.state.value}, response time passed" if found.breached_at and found.state is IncidentState.OPEN else found.state.value


def _next(found: Incident, now: datetime) -> str:
    if found.next_escalation_at is None or found.step >= len(found.chain):
        return ""
    who = found.chain[found.step].who
    if found.next_escalation_at <= now:
        return f"{who} now"
    return f"{who} in {ago(now, found.next_escalation_at)}"


def _show(found: Incident, timeline: tuple[TimelineEntry, ...], now: datetime) -> None:
    colour = _COLOURS[found.severity]
    out.print(
        f"[{colour}]{found.severity.name}[/] [bold]{escape(found.title)}[/]{f' ({found.code})' if found.code else ''}  [dim]{found.id}[/]"
    )
    out.print(escape(found.summary))
    ended = f", resolved {ago(found.resolved_at, now)} ago" if found.resolved_at else ""
    out.print(f"{escape(_state(found))}, opened {ago(found.opened_at, now)} ago{ended}")
    for line in found.evidence:
        out.print(f"  [dim]·[/] {escape(line)}")
    if found.first_step:
        out.print(f"[bold]first step[/] {escape(found.first_step)}")
    if following := _next(found, now):
        out.print(f"[bold]next[/] {escape(following)}")
    out.print()
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column()
    for entry in timeline:
        table.add_row(f"[dim]{entry.at:%Y-%m-%d %H:%M:%S}Z[/]", escape(entry.kind), escape(entry.text))
    out.print(table)


def _as_json(found: Incident) -> dict[str, object]:
    chain, response = [asdict(step) for step in found.chain], asdict(found.response)
    return {**found._asdict(), "chain": chain, "response": response, "severity": found.severity.name, "state": found.state.value}
