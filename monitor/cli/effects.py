"""What muting does to what fires now, shown before it acts: silences, maintenance windows, inhibition rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from alerts.muting import Muting, muted_by
from monitor.cli.opening import open_store, out
from monitor.domain import Alert, Incident, Silence
from monitor.errors import StoreError


@dataclass(frozen=True, slots=True)
class Present:
    """What stands at one moment."""

    firing: tuple[Alert, ...] = ()
    incidents: tuple[Incident, ...] = ()
    """The unresolved ones."""
    silences: tuple[Silence, ...] = ()


def present(config: Path, now: datetime) -> Present | None:
    """What stands now, or None when the state cannot be read: then the rules can be shown, and not what they do."""
    try:
        store = open_store(config)
    except StoreError:
        return None
    try:
        return Present(store.incidents.firing(), store.incidents.list(unresolved=True, limit=100_000), store.silences.list(since=now))
    finally:
        store.close()


def covered(stands: Present, muting: Muting, now: datetime) -> tuple[Alert, ...]:
    """The firing alerts that these rules alone mute."""
    return tuple(alert for alert in stands.firing if muting.reasons(alert, now))


def print_effect(stands: Present, alone: Muting, together: Muting, now: datetime) -> None:
    """The alerts that ``alone`` covers, and which of their incidents tell nobody under ``together``: it and what mutes besides."""
    alerts = covered(stands, alone, now)
    if not alerts:
        out.print("[dim]nothing that fires now matches[/]")
    for alert in alerts:
        out.print(f"  {alert.severity.name} {escape(alert.service)}: {escape(alert.summary)}")
    for incident in stands.incidents:
        own = [alert for alert in stands.firing if alert.group == incident.group == alert.home]
        missed = [alert for alert in own if alert not in alerts]
        if len(missed) == len(own):
            continue
        name = f"incident [bold]{incident.id}[/] ({escape(incident.service)}: {escape(incident.title)})"
        if muted_by(own, incident.group, together, now):
            out.print(f"  [dim]→[/] {name} tells nobody meanwhile")
        else:
            out.print(f"  [dim]→[/] {name} [yellow]still tells people[/]: {_not_covered(missed)}")


def alerts_as_json(alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    return [
        {"fingerprint": one.fingerprint, "labels": dict(one.labels), "severity": one.severity.name, "summary": one.summary}
        for one in alerts
    ]


def _not_covered(missed: Sequence[Alert]) -> str:
    names = sorted({dict(alert.labels).get("alertname", "alert") for alert in missed})
    return f"{escape(', '.join(names))} {'is' if len(missed) == 1 else 'are'} not covered"
