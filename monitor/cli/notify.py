"""``monitor notify test``: a real notification through one channel, so that nobody learns at night that it does not work."""

import asyncio
import difflib
from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape

from alerts.fingerprint import incident_id
from monitor.cli.opening import DEFAULT_CONFIG, EXIT_WARNING, ConfigOption, err, open_settings, out, say_error, whoami
from monitor.clock import Clock, SystemClock
from monitor.config.settings import Channel, Settings
from monitor.delivery import send
from monitor.domain import Incident, IncidentState, Link, Notification, Receipt, Severity, Transition
from monitor.errors import DeliveryError, UsageError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Try out the ways to reach people.", no_args_is_help=True)
    app.add_typer(group, name="notify")

    @group.command("test")
    def test(
        channel: Annotated[str, typer.Argument(help="Name of the channel in the configuration.")],
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Send a test incident (P4) through a channel, and its resolve. It is not stored, and never escalates."""
        settings, _ = open_settings(config)
        chosen = _choose(settings, channel)
        clock = SystemClock()
        began = clock.now()
        for transition in (Transition.TRIGGERED, Transition.RESOLVED):
            try:
                with err.status(f"sending {transition.value} through {channel}"):
                    receipt = asyncio.run(_send(settings, chosen, transition, clock, began))
            except DeliveryError as exc:
                say_error(f"{channel}: {transition.value} was not delivered: {exc}")
                raise typer.Exit(EXIT_WARNING) from exc
            reference = f" [dim]{escape(receipt.reference)}[/]" if receipt.reference else ""
            out.print(f"[green]delivered[/] {transition.value} through {escape(channel)} ({chosen.notifier.name}){reference}")
            if receipt.note:
                out.print(f"[yellow]but[/] {escape(receipt.note)}")


def _choose(settings: Settings, name: str) -> Channel:
    if name not in settings.channels:
        near = difflib.get_close_matches(name, settings.channels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(settings.channels)}"
        raise UsageError(f"no channel {name!r}: {hint}")
    return settings.channels[name]


async def _send(settings: Settings, channel: Channel, transition: Transition, clock: Clock, now: datetime) -> Receipt:
    group = f"monitor/NotifyTest/{channel.name}"
    resolved = transition is Transition.RESOLVED
    incident = Incident(
        id=incident_id(group, now),
        group=group,
        code=None,
        service="monitor",
        severity=Severity.P4,
        state=IncidentState.RESOLVED if resolved else IncidentState.OPEN,
        title="Test notification",
        summary=f"{whoami()} tries out the channel {channel.name}",
        evidence=("what: this is a test", f"channel: {channel.name}", f"notifier: {channel.notifier.name}"),
        first_step="Nothing has to be done.",
        opened_at=now,
        chain=(),
        chain_since=now,
        resolved_at=now if resolved else None,
    )
    notification = Notification(
        id=0,
        incident=incident,
        transition=transition,
        channel=channel.name,
        dedup_key=incident.id,
        reason="a test, asked for on the command line",
        created_at=now,
        attempts=1,
        links=(Link("Status page", settings.external_url),),
    )
    return await send(channel, notification, clock)
