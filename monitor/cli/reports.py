"""``monitor report``: the checklist reports, on paper or by mail."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from monitor.cli.opening import DEFAULT_CONFIG, EXIT_WARNING, ConfigOption, err, open_settings, out, say_error
from monitor.errors import DeliveryError, UsageError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Checklist reports.", no_args_is_help=True)
    app.add_typer(group, name="report")

    @group.command("daily")
    def daily(
        config: ConfigOption = DEFAULT_CONFIG,
        send: Annotated[bool, typer.Option("--send", help="Mail it through the channel of [reports.daily].")] = False,
        to: Annotated[Path | None, typer.Option("--out", help="Write it to a file: HTML when the name ends in .html, else text.")] = None,
    ) -> None:
        """The runbook's five daily checks with true values of this moment; what nobody can answer says so."""
        from dashboards.daily import render_html, render_text  # noqa: PLC0415
        from monitor.cli.checks import remembered, run_once  # noqa: PLC0415
        from monitor.clock import SystemClock  # noqa: PLC0415
        from monitor.reports import build_daily, mail_report  # noqa: PLC0415
        from monitor.store import Store  # noqa: PLC0415

        settings, _ = open_settings(config)
        clock = SystemClock()
        with err.status("looking"):
            results = asyncio.run(run_once(settings, list(settings.instances), remembered(config)))
        store = Store(settings.state_url)
        try:
            now = clock.now()
            report = build_daily(settings, store, {result.instance: result for result in results}, now, now)
        finally:
            store.close()
        if to is not None:
            text = render_html(report) if to.suffix == ".html" else render_text(report)
            try:
                to.write_text(text)
            except OSError as exc:
                raise UsageError(f"cannot write {to}: {exc.strerror}: choose another file") from exc
            out.print(f"[green]wrote[/] {escape(str(to))}", soft_wrap=True)
        if send:
            if settings.daily_report is None:
                raise UsageError("there is no [reports.daily] in the configuration: it names the channel to mail through")
            try:
                asyncio.run(mail_report(settings, settings.daily_report.channel, report, clock, extra=f".{clock.now():%H%M%S%f}"))
            except DeliveryError as exc:
                say_error(f"the report was not delivered: {exc}")
                raise typer.Exit(EXIT_WARNING) from exc
            out.print(f"[green]sent[/] through {escape(settings.daily_report.channel)}: {escape(report.title)}", soft_wrap=True)
        if to is None and not send:
            out.print(render_text(report), markup=False)
