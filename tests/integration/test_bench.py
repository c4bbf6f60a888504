"""The bench runs and says what it promises; times are never asserted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHES
from bench.http_probe import BLACKBOX
from bench.intake import ALERTMANAGER
from bench.measure import Cell, Figure, Side, cost, speed

KEYS = {"name", "unit", "ours", "peer", "ratio"}


def run_bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, cwd=Path(__file__).parents[2])


def test_quick_run_prints_the_table_and_writes_the_figures(tmp_path: Path) -> None:
    out = tmp_path / "build" / "bench.json"
    chosen = [name for name in BENCHES if name not in {"intake", "storm", "page"}]  # they have tests of their own: each stays short
    done = run_bench("--quick", "--pairs", "1", *(word for name in chosen for word in ("--only", name)), "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())}
    postgres = [f"pg_facts {what}, 10 tables{span}" for span in ("", ", 10 min") for what in ("client", "server")]
    fleet = ["fleet CPU", "fleet memory"]
    assert list(figures) == ["http_probe", "http_probe_tls", *fleet, *postgres, "state_store", "state_store_decisions", "exposition"]
    for name, figure in figures.items():
        assert set(figure) == KEYS
        assert figure["ours"] > 0
        assert name in done.stdout
        assert figure["unit"] in done.stdout
    assert figures["state_store"]["peer"] is None
    assert figures["state_store"]["ratio"] is None
    assert figures["exposition"]["peer"] > 0
    assert (figures["http_probe"]["peer"] is not None) is any(map(shutil.which, BLACKBOX))
    assert "http_probe: pair 1 of 1, monitor" in done.stderr
    assert "make bench ARGS=" in done.stdout
    assert "cores" in done.stdout


def test_the_intake_is_measured_beside_alertmanager(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run_bench("--quick", "--pairs", "1", "--only", "intake", "--only", "storm", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())}
    posts = [f"intake, {each} a POST, {what}" for each, what in ((100, "new"), (100, "repeated"), (1, "repeated"), (1, "new"))]
    storm = [f"storm of 50 groups, {what}" for what in ("CPU", "answered", "told", "memory")]
    assert list(figures) == [*posts, "intake memory", *storm]
    assert all(figure["ours"] > 0 for figure in figures.values())
    assert (figures["intake memory"]["peer"] is not None) is any(map(shutil.which, ALERTMANAGER))


def test_the_way_from_fault_to_page_is_measured_beside_prometheus(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run_bench("--quick", "--only", "page", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())}
    assert list(figures) == [f"page, {what}{part}" for what in ("2 bad looks", "as shipped") for part in ("", ", slowest")]
    assert all(figure["ours"] > 0 for figure in figures.values())
    assert figures["page, 2 bad looks"]["ours"] > 1  # one interval lies between the two looks
    installed = all(any(map(shutil.which, names)) for names in (BLACKBOX, ALERTMANAGER, ("prometheus",)))
    assert (figures["page, 2 bad looks"]["peer"] is not None) is installed
    assert figures["page, as shipped"]["peer"] is None


def test_only_runs_what_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run_bench("--quick", "--pairs", "1", "--only", "exposition", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [figure["name"] for figure in json.loads(out.read_text())] == ["exposition"]


def test_an_unknown_bench_is_named_with_what_there_is(tmp_path: Path) -> None:
    done = run_bench("--only", "nothing", "--out", str(tmp_path / "bench.json"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "'nothing'" in done.stderr
    assert "http_probe" in done.stderr


@pytest.mark.parametrize(
    ("cells", "median", "why_not"),
    [
        ([Cell(1.0, 1000), Cell(1.1, 1000), Cell(1.2, 1000)], 1.1, ""),
        ([Cell(1.0, 1000), Cell(1.1, 1000), Cell(1.4, 1000)], None, "spread 36%"),
        ([Cell(0.5, 1000), Cell(1.1, 1000), Cell(1.1, 1000)], None, "a cell took only 0.50 CPU-s"),
    ],
)
def test_a_median_is_given_only_where_the_rules_allow(cells: list[Cell], median: float | None, why_not: str) -> None:
    side = cost(cells, per=1000, quick=False)
    assert side.why_not == why_not
    assert side.median == (median if median is None else pytest.approx(median))


def test_a_ratio_needs_two_results() -> None:
    ours = speed([Cell(2.0, 100)], quick=False)
    assert ours.median == 50
    assert Figure("x", "u", ours, Side((100.0,)), "peer").ratio == 0.5
    assert Figure("x", "u", ours, Side((100.0,), "spread 30%"), "peer").ratio is None
    assert Figure("x", "u", ours, None, "no peer").as_json() == {"name": "x", "unit": "u", "ours": 50.0, "peer": None, "ratio": None}
