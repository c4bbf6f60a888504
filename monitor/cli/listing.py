"""Command groups that list when they are called alone, and what the shell completes from the state."""

from collections.abc import Callable, Iterable
from pathlib import Path

import typer
from typer import Context
from typer import _click as click
from typer.core import TyperGroup

from monitor.cli.opening import DEFAULT_CONFIG, open_store
from monitor.errors import MonitorError, UsageError
from monitor.store import Store

MOST_COMPLETED = 100


class Listing(TyperGroup):
    """A group whose ``list`` is what it does when no subcommand is named: ``incidents --all`` is ``incidents list --all``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = bool(args) and args[0] in ctx.help_option_names
        if not ctx.resilient_parsing and not asks_for_help and (not args or args[0].startswith("-")):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and "show" in self.commands and not ctx.resilient_parsing:
            raise UsageError(f"no command {cmd_name!r}: to see one of them, write `{ctx.command_path} show {cmd_name}`")
        return found


def group(app: typer.Typer, name: str, help_: str) -> typer.Typer:
    """A group of commands in ``app`` that lists when it is called alone."""
    made = typer.Typer(help=help_, cls=Listing)
    app.add_typer(made, name=name)
    return made


def complete_incident(context: Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of incidents, the open ones first, each with what it is."""
    return _complete(
        context,
        incomplete,
        lambda store: (
            (one.id, f"{one.severity.name} {one.service}: {one.title}, {one.state.value}")
            for one in store.incidents.list(unresolved=False, limit=MOST_COMPLETED)
        ),
    )


def complete_silence(context: Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of silences, each with why."""
    return _complete(context, incomplete, lambda store: ((one.id, f"{one.comment} ({one.created_by})") for one in store.silences.list()))


def complete_undelivered(context: Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of notifications that have not been delivered."""
    return _complete(
        context,
        incomplete,
        lambda store: ((str(row.id), f"{row.transition.value} by {row.channel}, {row.state}") for row in store.outbox.undelivered()),
    )


def _complete(context: Context, incomplete: str, ask: Callable[[Store], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Nothing when the state cannot be read: somebody is typing."""
    try:
        store = open_store(Path(context.params.get("config") or DEFAULT_CONFIG))
        try:
            return [(id_, text) for id_, text in ask(store) if id_.startswith(incomplete)]
        finally:
            store.close()
    except MonitorError:
        return []
