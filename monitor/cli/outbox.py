"""``monitor outbox``: what has not reached anybody, why, and another attempt."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from monitor.cli.listing import complete_undelivered, group
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, ago, open_store, out, plain_table, print_json
from monitor.clock import SystemClock
from monitor.domain import is_digest_key
from monitor.engine import UPKEEP
from monitor.errors import UsageError
from monitor.store.outbox import Undelivered

MOST_ROWS = 50_000
"""Most notifications listed; those of a digest are one line."""


def register(app: typer.Typer) -> None:
    outbox = group(app, "outbox", "List notifications that wait, or were given up on, or try again.")

    @outbox.command("list")
    def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
        """Show every notification that has not been delivered, with the last reason."""
        now = SystemClock().now()
        store = open_store(config)
        try:
            rows = store.outbox.undelivered(limit=MOST_ROWS)
            unkept = [alert.summary for alert in store.incidents.live_alerts() if alert.instance == UPKEEP]
        finally:
            store.close()
        if as_json:
            print_json([asdict(row) for row in rows])
            return
        for summary in unkept:
            out.print(f"[red]{escape(summary)}[/]")
        if not rows:
            out.print("[green]everything is delivered[/]")
            return
        table = plain_table("id", "incident", "what", "channel", "waits", "attempts", "state", "why")
        for row, count in _by_digest(rows):
            state = "[red]given up[/]" if row.state == "dead" else f"next in {ago(now, row.next_attempt_at)}"
            table.add_row(
                str(row.id), f"{count} in {row.digest}" if row.digest else row.incident_id, row.transition.value, escape(row.channel),
                ago(row.created_at, now), str(row.attempts),
                state, escape(row.last_error or ""),
            )  # fmt: skip
        out.print(table)

    @outbox.command("retry")
    def retry(
        which: Annotated[
            str | None,
            typer.Argument(metavar="[ID]", help="The notification's id, or a digest's key.", autocompletion=complete_undelivered),
        ] = None,
        every: Annotated[bool, typer.Option("--all", help="All that wait or were given up on.")] = False,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Try again now; what was given up on too. Of a digest, all of it."""
        if (which is None) is not every:
            raise UsageError("name one notification, or say --all")
        if which is not None and not (which.isdecimal() or is_digest_key(which)):
            raise UsageError(f"no notification {which!r}: `monitor outbox list` shows their ids, and the keys of digests")
        chosen = int(which) if which is not None and which.isdecimal() else which
        store = open_store(config)
        try:
            count = store.outbox.revive(chosen, SystemClock().now())
        finally:
            store.close()
        if count == 0 and which is not None:
            raise UsageError(f"no notification {which} that could be tried again: not there, being sent now, or the begin of what is over")
        out.print(f"{count} will be tried again now")


def _by_digest(rows: Iterable[Undelivered]) -> list[tuple[Undelivered, int]]:
    """The oldest row of each digest with how many it stands for, and every other row alone."""
    found: dict[tuple[object, ...], list[Undelivered]] = {}
    for row in rows:
        found.setdefault((row.digest, row.state) if row.digest else (row.id,), []).append(row)
    return [(together[0], len(together)) for together in found.values()]
