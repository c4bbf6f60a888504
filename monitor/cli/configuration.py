"""``monitor config check``."""

import typer
from rich.markup import escape

from monitor.cli.opening import DEFAULT_CONFIG, EXIT_UNKNOWN, ConfigOption, err, open_settings, out
from monitor.errors import ConfigError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
    app.add_typer(group, name="config")

    @group.command("check")
    def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Read the configuration and say everything that is wrong with it, at once."""
        try:
            settings, _ = open_settings(config)
        except ConfigError as exc:
            for problem in exc.problems:
                place = f"{problem.file}:{problem.line}" if problem.line else problem.file
                hint = f" [dim]({escape(problem.hint)})[/]" if problem.hint else ""
                err.print(f"[bold]{escape(place)}[/]: [red]{escape(problem.key)}[/]: {escape(problem.message)}{hint}", soft_wrap=True)
            count = len(exc.problems)
            err.print(f"[bold red]{count} problem{'s' if count != 1 else ''}[/] in {escape(str(config))}", soft_wrap=True)
            raise typer.Exit(EXIT_UNKNOWN) from exc
        out.print(
            f"[green]good[/] {escape(str(config))} (services: {len(settings.services)}, checks: {len(settings.instances)}, "
            f"channels: {len(settings.channels)})",
            soft_wrap=True,
        )
