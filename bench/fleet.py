"""The whole service watching 10,000 HTTP targets every 30 s, beside blackbox_exporter with Prometheus: CPU and memory, at a steady rate.

Each side is started for its cell, left to settle, measured over two intervals, and stopped. What ours exports is scraped once in each.
"""

import gzip
import json
import math
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.http_probe import BLACKBOX, MODULE, version_of
from bench.measure import BenchError, Cell, Figure, Side, cost
from bench.plan import Plan
from bench.processes import Program, Worker, free_port
from monitor.store import Store

EVERY_S = 30
SETTLED_AFTER_S = 9
"""Prometheus waits five seconds before it looks at its targets for the first time."""
UP = b"\nmonitor_http_up{"
"""How a target begins on the page."""
TOLERATED = 0.05
"""A cell counts when the target saw the expected number of probes, give or take this share."""


@dataclass(frozen=True, slots=True)
class _Running:
    """One side: its processes, all counted, and the page that is scraped; None where scraping is the side's own work."""

    parts: tuple[Program, ...]
    metrics: str | None = None

    def cpu_s(self) -> float:
        return sum(part.cpu_s() for part in self.parts)

    def rss_bytes(self) -> int:
        return sum(part.rss_bytes() for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Taken:
    cell: Cell
    rss_bytes: int


def run(plan: Plan) -> list[Figure]:
    count = 60 if plan.quick else 10_000
    every_s = 3 if plan.quick else EVERY_S
    programs = [next(filter(None, map(shutil.which, BLACKBOX)), None), shutil.which("prometheus")]
    with ExitStack() as stack:
        target = stack.enter_context(Worker("bench.target", "0.0.0.0"))
        fleet = _Fleet(plan.folder / "fleet", int(target.ready["port"]), count, every_s)
        sides: dict[str, Callable[[], AbstractContextManager[_Running]]] = {"monitor": fleet.monitor}
        if all(programs):
            sides["peers"] = lambda: fleet.peers(*[str(program) for program in programs])
        taken: dict[str, list[_Taken]] = {name: [] for name in sides}
        for number in range(plan.pairs):
            for name, start in sides.items():
                plan.say(f"fleet: pair {number + 1} of {plan.pairs}, {name}: {3 * every_s} s")
                taken[name].append(_cell(start, target, count, every_s))
    return _figures(plan, taken, programs, count, every_s)


def _cell(start: Callable[[], AbstractContextManager[_Running]], target: Worker, count: int, every_s: int) -> _Taken:
    with start() as side:
        _live(side, math.ceil(SETTLED_AFTER_S / every_s), every_s)
        before, cpu_s = target.ask(), side.cpu_s()
        page = _live(side, 2, every_s)
        after, cpu_s = target.ask(), side.cpu_s() - cpu_s
        rss = side.rss_bytes()
    done = after["requests"] - before["requests"]
    errors = after["errors"] - before["errors"]
    if errors or abs(done - 2 * count) > TOLERATED * 2 * count:
        raise BenchError(f"the targets saw {done} probes where {2 * count} were due, and {errors} errors: not the work that was asked for")
    if side.metrics and page.count(UP) != count:
        raise BenchError(f"{page.count(UP)} of {count} targets are on the page that is scraped")
    return _Taken(Cell(cpu_s, done), rss)


def _live(side: _Running, intervals: int, every_s: int) -> bytes:
    """Let intervals pass; each begins with a scrape, packed as Prometheus asks for it. Returns the page of the last one."""
    page = b""
    for _ in range(intervals):
        due = time.monotonic() + every_s
        if side.metrics:
            request = urllib.request.Request(side.metrics, headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(request, timeout=every_s) as answer:
                page = gzip.decompress(answer.read())
        time.sleep(max(0.0, due - time.monotonic()))  # a rate is measured over time
    return page


def _figures(plan: Plan, taken: dict[str, list[_Taken]], programs: list[str | None], count: int, every_s: int) -> list[Figure]:
    name = "peers are not installed"
    blackbox, prometheus = programs
    if blackbox and prometheus:
        name = f"blackbox_exporter {version_of(blackbox)} + Prometheus {version_of(prometheus)}"
    notes = (f"{count:,} targets every {every_s} s, each a new connection; status and body asserted; history kept, metrics scraped",)
    cpu = {side: cost([one.cell for one in cells], per=1_000, quick=plan.quick) for side, cells in taken.items()}
    memory = {side: Side(tuple(one.rss_bytes / 2**20 for one in cells)) for side, cells in taken.items()}
    return [
        Figure("fleet CPU", "CPU-s / 1,000 probes", cpu["monitor"], cpu.get("peers"), name, notes),
        Figure("fleet memory", "RSS MiB", memory["monitor"], memory.get("peers"), name),
    ]


@dataclass(frozen=True, slots=True)
class _Fleet:
    """Writes what each side is configured with, and starts it."""

    folder: Path
    port: int
    count: int
    every_s: int

    def _hosts(self) -> Iterator[str]:
        for number in range(self.count):
            yield f"127.0.{number // 250}.{number % 250 + 1}:{self.port}"

    @contextmanager
    def monitor(self) -> Iterator[_Running]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        names = [f"s{number}" for number in range(self.count)]
        step = '[{after = "0s", who = "on-call", channels = ["mail"]}]'
        port = free_port()
        lines = [
            f'[monitor]\nlisten = "127.0.0.1:{port}"\nstate = "monitor.db"',
            *(f'[services.{name}]\nurl = "http://{host}"' for name, host in zip(names, self._hosts(), strict=True)),
            f'[checks.http_health]\nservices = {json.dumps(names)}\nevery = "{self.every_s}s"\nexpect_json = {{status = "healthy"}}',
            '[channels.mail]\nnotifier = "email"\nhost = "127.0.0.1"\nsender = "monitor@example.com"\nto = ["ops@example.com"]',
            "[escalation]",
            *(f"{severity} = {step}" for severity in ("P1", "P2", "P3", "P4")),
        ]
        config = self.folder / "config.toml"
        config.write_text("\n".join(lines) + "\n")
        Store(f"sqlite:///{self.folder / 'monitor.db'}").close()  # as at every start but the first: there is nothing to migrate
        command = [sys.executable, "-m", "monitor", "run", "--config", str(config)]
        with Program(command, url=f"http://127.0.0.1:{port}/-/ready", log=self.folder / "monitor.log") as program:
            yield _Running((program,), f"http://127.0.0.1:{port}/metrics")

    @contextmanager
    def peers(self, blackbox: str, prometheus: str) -> Iterator[_Running]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        ports = [free_port(), free_port()]
        settings = self.folder / "blackbox.yml"
        settings.write_text(json.dumps(MODULE))  # JSON is YAML
        scrape = self.folder / "prometheus.yml"
        scrape.write_text(json.dumps(self._scrape(ports[0])))
        prober = [blackbox, f"--config.file={settings}", f"--web.listen-address=127.0.0.1:{ports[0]}"]
        server = [
            *(prometheus, f"--config.file={scrape}", f"--storage.tsdb.path={self.folder}/data"),
            f"--web.listen-address=127.0.0.1:{ports[1]}",
        ]
        with (
            Program(prober, url=f"http://127.0.0.1:{ports[0]}/-/healthy", log=self.folder / "blackbox.log") as first,
            Program(server, url=f"http://127.0.0.1:{ports[1]}/-/ready", log=self.folder / "prometheus.log") as second,
        ):
            yield _Running((first, second))

    def _scrape(self, blackbox_port: int) -> dict[str, object]:
        relabel = [
            {"source_labels": ["__address__"], "target_label": "__param_target"},
            {"source_labels": ["__param_target"], "target_label": "instance"},
            {"target_label": "__address__", "replacement": f"127.0.0.1:{blackbox_port}"},
        ]
        job = {
            "job_name": "fleet",
            "scrape_interval": f"{self.every_s}s",
            "scrape_timeout": f"{min(5, self.every_s)}s",
            "metrics_path": "/probe",
            "params": {"module": ["http_2xx"]},
            "static_configs": [{"targets": [f"http://{host}/health" for host in self._hosts()]}],
            "relabel_configs": relabel,
        }
        return {"global": {"scrape_interval": f"{self.every_s}s"}, "scrape_configs": [job]}
