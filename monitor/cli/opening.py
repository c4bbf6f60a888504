"""What every command begins with: the console, the configuration, the state."""

import getpass
import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import make_url

from monitor import config
from monitor.config.settings import Settings
from monitor.registry import Registry, load_registry
from monitor.store import Store, open_readable

EXIT_OK, EXIT_WARNING, EXIT_CRITICAL, EXIT_UNKNOWN = 0, 1, 2, 3

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The configuration file.", envvar="MONITOR_CONFIG", show_default="config.toml")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DEFAULT_CONFIG = Path("config.toml")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def open_settings(path: Path) -> tuple[Settings, Registry]:
    """The configuration and the plugins it may use; third-party plugins that cannot be used are said and left out."""
    registry = load_registry()
    for error in registry.errors:
        err.print(f"[yellow]warning:[/] {escape(str(error))}")
    return config.load(path, checks=registry.checks, notifiers=registry.notifiers), registry


def open_store(path: Path) -> Store:
    """The state of the monitor that runs with this configuration; needs no other secret than the state's own. Raises ``StoreError``."""
    state_url = config.load_state_url(path)
    url = make_url(state_url)
    if url.get_backend_name() == "sqlite" and url.database:
        open_readable(Path(url.database))
    return Store(state_url)


def say_error(text: str) -> None:
    """One error for a person, on standard error."""
    first, *rest = text.splitlines() or [""]
    err.print(f"[bold red]error:[/] {escape(first)}", soft_wrap=True)
    for line in rest:
        err.print(f"       {escape(line)}", soft_wrap=True)


def print_json(value: Any) -> None:
    """Machine output: one JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, default=_jsonable)
    sys.stdout.write("\n")


def plain_table(*columns: str) -> Table:
    """A table without lines, the columns' names dimmed."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def whoami() -> str:
    """The account's name, for timelines and audits."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def ago(moment: datetime, now: datetime) -> str:
    """``12 s``, ``5 min``, ``3 h``, ``2 d``: the time between two moments, roughly."""
    seconds = max(timedelta(0), now - moment).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _jsonable(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)
