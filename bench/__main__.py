"""``python -m bench``: runs the benches, prints one table and writes it as JSON."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench import exposition, fleet, http_probe, intake, page, pg_facts, state_store, storm
from bench.measure import BenchError, Figure, Side
from bench.plan import Plan

BENCHES: dict[str, Callable[[Plan], list[Figure]]] = {
    "http_probe": http_probe.run,
    "fleet": fleet.run,
    "intake": intake.run,
    "storm": storm.run,
    "page": page.run,
    "pg_facts": pg_facts.run,
    "state_store": state_store.run,
    "exposition": exposition.run,
}

PairsOption = Annotated[int, typer.Option(min=1, help="Cells a side; fewer than five are no basis for a claim.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Tiny sizes: proves that the bench runs, its figures mean nothing.")]
OnlyOption = Annotated[list[str] | None, typer.Option(help=f"Only this bench, may be repeated: {', '.join(BENCHES)}.")]
OutOption = Annotated[Path, typer.Option(help="Where the JSON is written.")]


def main(pairs: PairsOption = 5, quick: QuickOption = False, only: OnlyOption = None, out: OutOption = Path("build/bench.json")) -> None:
    """Measure CPU beside the peers that are installed, in the same run, alternating. Run it alone on the machine."""
    names = only or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise typer.BadParameter(f"no bench {unknown[0]!r}; there are {', '.join(BENCHES)}", param_hint="--only")
    progress, figures = Console(stderr=True), []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, progress.status("starting") as status:
            for name in names:
                figures += BENCHES[name](Plan(pairs, quick, Path(folder), _say(progress, status.update)))
    except BenchError as exc:
        progress.print(f"[red]error:[/red] {exc}", highlight=False)
        raise typer.Exit(1) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n")
    _show(figures, pairs=pairs, quick=quick, out=out)


def _say(console: Console, update: Callable[[str], None]) -> Callable[[str], None]:
    """Progress as a moving line on a terminal, as plain lines elsewhere."""
    return update if console.is_terminal else lambda text: console.print(text, highlight=False)


def _show(figures: list[Figure], *, pairs: int, quick: bool, out: Path) -> None:
    table = Table(title="CPU (user + system) of the process under test: median (range)")
    for heading in ("bench", "unit", "monitor", "peer", "ratio", "beside"):
        table.add_column(heading, justify="right" if heading in {"monitor", "peer", "ratio"} else "left", overflow="fold")
    for figure in figures:
        ratio = "–" if figure.ratio is None else f"{figure.ratio:.3f}×"
        table.add_row(figure.name, figure.unit, _cell(figure.ours), _cell(figure.peer), ratio, figure.peer_name)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table, highlight=False)
    for figure in figures:
        for note in figure.notes:
            console.print(f"{figure.name}: {note}", highlight=False)
    console.print(f"{os.cpu_count()} cores, {_load()}, {platform.platform()}, Python {platform.python_version()}, {pairs} cells a side")
    console.print(f"again: make bench{_arguments()}   written to {out}", highlight=False)
    if quick:
        console.print("quick: the figures mean nothing")


def _cell(side: Side | None) -> str:
    if side is None:
        return "–"
    spread = f"({_digits(min(side.values))}–{_digits(max(side.values))})"
    return f"no result: {side.why_not} {spread}" if side.median is None else f"{_digits(side.median)} {spread}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def _arguments() -> str:
    return f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""


if __name__ == "__main__":
    program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    program.command()(main)
    program(prog_name="python -m bench")
