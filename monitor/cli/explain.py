"""``monitor explain``: why somebody was told, or nobody was, and what happens next and when. ``monitor stats``: how fast people are."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape

from alerts.explain import Explanation, describe, explain, rule
from alerts.message import duration_words
from alerts.muting import Muting
from monitor.cli.checks import choose
from monitor.cli.listing import complete_incident
from monitor.cli.opening import DEFAULT_CONFIG, ConfigOption, JsonOption, ago, open_settings, open_store, out, plain_table, print_json
from monitor.clock import SystemClock
from monitor.config.settings import Settings
from monitor.domain import Incident, Severity
from monitor.store import Store


def register(app: typer.Typer) -> None:
    @app.command("explain")
    def explain_(
        what: Annotated[str, typer.Argument(help="An incident's id, or a check as NAME/SERVICE.", autocompletion=complete_incident)],
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Say why people were told, or were not, which rule or silence decided, and what happens next and when."""
        settings, _ = open_settings(config)
        now = SystemClock().now()
        store = open_store(config)
        try:
            if "/" in what:
                lines = _check_lines(settings, store, what)
                if as_json:
                    print_json({"check": what, "alerts": lines})
                else:
                    out.print("\n".join(map(escape, lines)))
                return
            incident = store.incidents.find(what)
            muting = Muting(store.silences.list(since=now), settings.windows, settings.inhibitions, store.incidents.firing())
            found = explain(incident, store.incidents.alerts_of(incident), muting, settings.people, now)
            rows = store.outbox.undelivered(incident_id=incident.id)
            digests = store.outbox.digests_of(incident.id)
        finally:
            store.close()
        if as_json:
            waiting = [asdict(row) for row in rows]
            print_json(
                {"incident": incident.id, "state": incident.state.value, **asdict(found), "digests": digests, "undelivered": waiting}
            )
            return
        _print(incident, found, now)
        for channel, key, count in digests:
            out.print(
                f"[bold]digest[/] {escape(channel)} told it together with {count - 1} others: more opened at once than digest_from ({key})"
            )
        for row in rows:
            out.print(f"[red]not delivered[/] {row.transition.value} by {escape(row.channel)}: {escape(row.last_error or 'not tried yet')}")

    @app.command()
    def stats(
        days: Annotated[int, typer.Option(help="How far to look back.", min=1, max=366)] = 7,
        config: ConfigOption = DEFAULT_CONFIG,
        as_json: JsonOption = False,
    ) -> None:
        """Show incidents by severity: how many, how often people were asked, how soon taken (MTTA), how soon over (MTTR), breaches."""
        since = SystemClock().now() - timedelta(days=days)
        store = open_store(config)
        try:
            listed = store.incidents.list(unresolved=False, since=since, limit=100_000)
            asked = store.outbox.asked(since)
        finally:
            store.close()
        rows = [_row(severity, [one for one in listed if one.severity is severity], asked, days) for severity in Severity]
        if as_json:
            print_json(rows)
            return
        table = plain_table(
            "", "incidents", "pages a week", "by channel", "taken after (MTTA)", "over after (MTTR)", "response time passed"
        )
        for row in rows:
            spans = [duration_words(row[key]) if row[key] is not None else "–" for key in ("mtta_s", "mttr_s")]
            channels = ", ".join(f"{escape(name)} {count}" for name, count in row["by_channel"].items()) or "–"
            table.add_row(row["severity"], str(row["incidents"]), f"{row['pages_per_week']:.1f}", channels, *spans, str(row["breaches"]))
        out.print(table)


def _check_lines(settings: Settings, store: Store, key: str) -> list[str]:
    (instance,) = choose(settings, [key])
    live = [alert for alert in store.incidents.live_alerts() if alert.instance == key]
    policy = instance.policy
    if not live:
        return [f"{key} has found nothing that stands: {rule(policy)}"]
    return [rule(policy), *(describe(alert, policy=policy) for alert in live)]


def _print(incident: Incident, found: Explanation, now: datetime) -> None:
    out.print(f"[bold]{incident.severity.name} {escape(incident.title)}[/]  [dim]{incident.id}, {incident.state.value}[/]")
    for title, lines in (("why", found.because), ("who knows", found.told)):
        out.print(f"[bold]{title}[/]")
        for line in lines:
            out.print(f"  [dim]·[/] {escape(line)}")
    if found.coming:
        out.print("[bold]next[/]")
        for coming in found.coming:
            when = "now" if coming.at <= now else f"in {ago(now, coming.at)}"
            out.print(f"  [dim]{coming.at:%H:%M:%S} UTC, {when}[/]  {escape(coming.what)}")
    out.print(f"[bold]end[/]\n  [dim]·[/] {escape(found.ends)}")


def _row(severity: Severity, listed: list[Incident], asked: Mapping[tuple[Severity, str], int], days: int) -> dict[str, Any]:
    taken = [(one.acked_at - one.opened_at).total_seconds() for one in listed if one.acked_at is not None]
    over = [(one.resolved_at - one.opened_at).total_seconds() for one in listed if one.resolved_at is not None]
    by_channel = {channel: count for (of, channel), count in sorted(asked.items()) if of is severity}
    return {
        "severity": severity.name,
        "incidents": len(listed),
        "pages_per_week": sum(by_channel.values()) * 7 / days,
        "by_channel": by_channel,
        "mtta_s": statistics.mean(taken) if taken else None,
        "mttr_s": statistics.mean(over) if over else None,
        "breaches": sum(one.breached_at is not None for one in listed),
    }
