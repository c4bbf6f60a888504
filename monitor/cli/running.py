"""``monitor run`` and ``monitor demo``."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.opening import DEFAULT_CONFIG, EXIT_WARNING, ConfigOption, open_settings


def register(app: typer.Typer) -> None:
    @app.command()
    def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
        """Watch the platform until stopped. SIGHUP reloads the configuration."""
        from monitor.app import App  # noqa: PLC0415 - the other commands start faster without it
        from monitor.logs import configure_logging  # noqa: PLC0415

        settings, registry = open_settings(config)
        configure_logging()

        async def serve() -> None:
            await App(settings, registry).serve()

        _run(serve())

    @app.command()
    def demo(
        drill: Annotated[str | None, typer.Option(help="Provoke a fault once everything is up: see --list-drills.")] = None,
        exit_after: Annotated[bool, typer.Option("--exit", help="End after the drill; exit 0 only if every step of it happened.")] = False,
        list_drills: Annotated[bool, typer.Option("--list-drills", help="List the drills and end.")] = False,
        dsn: Annotated[str | None, typer.Option(help="Use this PostgreSQL (administrator's DSN) instead of starting one.")] = None,
        port: Annotated[int, typer.Option(help="Port of the monitor.")] = 8010,
        ports_from: Annotated[
            int | None, typer.Option(help="Take consecutive ports from this one instead of the usual ones, the monitor's included.")
        ] = None,
        folder: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path(".demo"),
    ) -> None:
        """Start the whole platform and watch it: services, database, fakes of PagerDuty and Slack, a mailbox."""
        from monitor.demo import Demo, run_demo  # noqa: PLC0415
        from monitor.demo.drills import describe_drills  # noqa: PLC0415

        if list_drills:
            describe_drills()
            return
        asked = Demo(folder=folder, dsn=dsn, monitor_port=port, ports_from=ports_from, drill=drill, exit_after=exit_after)
        if not _run(run_demo(asked)):
            raise typer.Exit(EXIT_WARNING)


def _run(main: "asyncio.Future[bool] | object") -> bool:
    """Run on uvloop; an ExceptionGroup with one error inside is that error."""
    import uvloop  # noqa: PLC0415

    try:
        return uvloop.run(main) is not False  # type: ignore[arg-type]
    except BaseExceptionGroup as group:
        only: BaseException = group
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        raise only from None
