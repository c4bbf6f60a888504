"""``monitor silence``: for a while, some alerts tell nobody."""

from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from alerts.matchers import matches, show_matcher
from alerts.muting import EXPIRED_KEPT, Muting, describe, match_labels, state_of
from alerts.silences import expire, make
from monitor.cli.effects import Present, print_effect
from monitor.cli.listing import complete_silence, group
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, ago, open_store, out, plain_table, print_json, whoami
from monitor.clock import SystemClock
from monitor.domain import Alert, Silence, bounded
from monitor.errors import UsageError
from monitor.plugins import parse_duration_s

EveryOption = Annotated[bool, typer.Option("--all", help="Also those that have expired, for five days.")]
_COLOURS = {"active": "green", "pending": "yellow", "expired": "dim"}


def register(app: typer.Typer) -> None:
    silence = group(app, "silence", "Tell nobody of some alerts for a while. Their incidents stay visible.")

    @silence.command("add")
    def add(
        matchers: Annotated[list[str], typer.Argument(help="Conditions that must all hold: service=auth 'alertname=~\"Disk.*\"'.")],
        comment: Annotated[str, typer.Option("--comment", "-m", help="Why; everybody sees it. Required, unless it is a dry run.")] = "",
        lasts: Annotated[str, typer.Option("--for", help="How long, such as 30m or 2h.")] = "1h",
        starts: Annotated[datetime | None, typer.Option("--from", help="When it begins, in UTC; at once when not given.")] = None,
        who: Annotated[str | None, typer.Option(help="Who asks for it; your account's name when not given.")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would silence now.")] = False,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Silence alerts that match, and show which ones fire now that it covers."""
        if not comment and not dry_run:
            raise UsageError("say why with --comment: everybody who wonders about the silence sees it")
        now = SystemClock().now()
        begin = bounded(starts.replace(tzinfo=now.tzinfo)) if starts else now
        fresh = make(matchers, begin, _end(begin, lasts), who or whoami(), comment or "dry run", now)
        store = open_store(config)
        try:
            unresolved = store.incidents.list(unresolved=True, limit=100_000)
            stands = Present(store.incidents.firing(), unresolved, store.silences.list(since=now))
            if not dry_run:
                store.silences.save(fresh)
        finally:
            store.close()
        what = f"[bold]{escape(describe(fresh))}[/] until {fresh.ends_at:%Y-%m-%d %H:%M} UTC"
        out.print(f"would silence {what}" if dry_run else f"[green]silenced[/] {what}\n[dim]{fresh.id}[/]")
        print_effect(stands, Muting(silences=(fresh,)), Muting(silences=(*stands.silences, fresh)), begin)

    @silence.command("list")
    def list_(
        every: EveryOption = False,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Show silences, and what each of them covers now."""
        now = SystemClock().now()
        store = open_store(config)
        try:
            found = store.silences.list(since=now - EXPIRED_KEPT if every else now)
            firing = store.incidents.firing()
        finally:
            store.close()
        if as_json:
            print_json([_as_json(one, firing, now) for one in found])
        elif found:
            out.print(_table(found, firing, now))
        else:
            out.print("no silences")

    @silence.command("expire")
    def expire_(
        silence_id: Annotated[
            str, typer.Argument(metavar="ID", help="The silence's id, or the beginning of it.", autocompletion=complete_silence)
        ],
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """End a silence now: what it covers and still fires asks people again."""
        store = open_store(config)
        try:
            found = store.silences.find(silence_id)
            ended = expire(found, SystemClock().now())
            store.silences.save(ended)
        finally:
            store.close()
        already = found == ended
        out.print(f"{'had expired already' if already else '[green]expired[/]'}: {escape(describe(found))} [dim]{found.id}[/]")


def _end(begin: datetime, lasts: str) -> datetime:
    try:
        return bounded(begin + timedelta(seconds=_duration(lasts)))
    except OverflowError:
        raise UsageError(f"--for {lasts!r}: ends after the year 9999") from None


def _duration(text: str) -> float:
    try:
        seconds = parse_duration_s(text)
    except ValueError as exc:
        raise UsageError(f"--for {text!r}: {exc}") from exc
    if seconds <= 0:
        raise UsageError(f"--for {text!r}: must be longer than nothing")
    return seconds


def _table(found: tuple[Silence, ...], firing: tuple[Alert, ...], now: datetime) -> Table:
    table = plain_table("id", "covers", "state", "ends", "firing", "why")
    for one in found:
        state = state_of(one, now)
        ends = f"{ago(one.ends_at, now)} ago" if state == "expired" else f"in {ago(now, one.ends_at)}"
        count = sum(matches(one.matchers, match_labels(alert)) for alert in firing)
        table.add_row(
            one.id[:8],
            escape(describe(one)),
            f"[{_COLOURS[state]}]{state}[/]",
            ends,
            str(count),
            f"{escape(one.comment)} [dim]({escape(one.created_by)})[/]",
        )
    return table


def _as_json(one: Silence, firing: tuple[Alert, ...], now: datetime) -> dict[str, object]:
    return {
        "id": one.id,
        "matchers": [show_matcher(matcher) for matcher in one.matchers],
        "state": state_of(one, now),
        "starts_at": one.starts_at,
        "ends_at": one.ends_at,
        "created_by": one.created_by,
        "comment": one.comment,
        "firing": sum(matches(one.matchers, match_labels(alert)) for alert in firing),
    }
