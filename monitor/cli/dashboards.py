"""``monitor dashboards build``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from monitor.cli.opening import out
from monitor.errors import UsageError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="What people look at in Grafana.", no_args_is_help=True)
    app.add_typer(group, name="dashboards")

    @group.command("build")
    def build(to: Annotated[Path, typer.Option("--out", help="Folder to write to; made when it is not there.")]) -> None:
        """Write the Grafana dashboards and their provisioning files."""
        from dashboards import grafana  # noqa: PLC0415 - the Grafana SDK is slow to import

        try:
            written = grafana.build(to)
        except OSError as exc:
            raise UsageError(f"cannot write to {to}: {exc.strerror}: choose another folder") from exc
        for path in written:
            out.print(f"[green]wrote[/] {escape(str(path))}", soft_wrap=True)
