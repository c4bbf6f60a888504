"""The command line. Exit codes: 0 good, 1 warning or refused, 2 critical, 3 could not look or could not run (usage, configuration)."""

import sys
import traceback

import typer
from typer.exceptions import TyperException

from monitor.cli import (
    checks,
    configuration,
    dashboards,
    explain,
    incidents,
    notify,
    outbox,
    planned,
    reports,
    rota,
    runbook,
    running,
    silences,
    simulate,
)
from monitor.cli.opening import EXIT_UNKNOWN, say_error
from monitor.errors import MonitorError

app = typer.Typer(
    name="monitor",
    help="Watches a platform, pages the right person, hands them the evidence and the fix.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
running.register(app)
checks.register(app)
incidents.register(app)
explain.register(app)
runbook.register(app)
reports.register(app)
dashboards.register(app)
notify.register(app)
outbox.register(app)
silences.register(app)
planned.register(app)
rota.register(app)
simulate.register(app)
configuration.register(app)


def main() -> None:
    """Entry point: every error is one clear message and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        say_error("stopped")
        code = EXIT_UNKNOWN
    except TyperException as exc:
        exc.show(sys.stderr)  # type: ignore[attr-defined] # every usage error of typer has it
        code = EXIT_UNKNOWN
    except MonitorError as exc:
        say_error(str(exc))
        code = EXIT_UNKNOWN
    except KeyboardInterrupt:
        code = EXIT_UNKNOWN
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        code = 0
    except Exception:  # noqa: BLE001 - a bug: shown whole, and never read as WARNING by who asked
        traceback.print_exc()
        code = EXIT_UNKNOWN
    sys.exit(code if isinstance(code, int) else 0)
