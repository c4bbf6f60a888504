"""The whole service watching 10,000 HTTP targets every 30 s, beside blackbox_exporter with Prometheus: CPU and memory, at a steady rate.

Each side is started for its cell, left to settle, measured over two, and stopped.
"""

import json
import shutil
import sys
import time
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
TOLERATED = 0.05
"""A cell counts when the target saw the expected number of probes, give or take this share."""


Parts = tuple[Program, ...]
"""The processes of one side, all counted."""


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
        sides: dict[str, Callable[[], AbstractContextManager[Parts]]] = {"monitor": fleet.monitor}
        if all(programs):
            sides["peers"] = lambda: fleet.peers(*[str(program) for program in programs])
        taken: dict[str, list[_Taken]] = {name: [] for name in sides}
        for number in range(plan.pairs):
            for name, start in sides.items():
                plan.say(f"fleet: pair {number + 1} of {plan.pairs}, {name}: {3 * every_s} s")
                taken[name].append(_cell(start, target, count, every_s))
    return _figures(plan, taken, programs, count, every_s)


def _cell(start: Callable[[], AbstractContextManager[Parts]], target: Worker, count: int, every_s: int) -> _Taken:
    with start() as counted:
        _wait(max(every_s, SETTLED_AFTER_S))
        before, cpu_s = target.ask(), sum(part.cpu_s() for part in counted)
        _wait(2 * every_s)
        after, cpu_s = target.ask(), sum(part.cpu_s() for part in counted) - cpu_s
        rss = sum(part.rss_bytes() for part in counted)
    done = after["requests"] - before["requests"]
    if after["errors"] != before["errors"] or abs(done - 2 * count) > TOLERATED * 2 * count:
        raise BenchError(f"the targets saw {done} probes where {2 * count} were due: not the work that was asked for")
    return _Taken(Cell(cpu_s, done), rss)


def _wait(seconds: float) -> None:
    time.sleep(seconds)  # a rate is measured over time


def _figures(plan: Plan, taken: dict[str, list[_Taken]], programs: list[str | None], count: int, every_s: int) -> list[Figure]:
    name = "peers are not installed"
    blackbox, prometheus = programs
    if blackbox and prometheus:
        name = f"blackbox_exporter {version_of(blackbox)} + Prometheus {version_of(prometheus)}"
    notes = (f"{count:,} targets every {every_s} s, each a new connection; status and body asserted; history and metrics kept",)
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
    def monitor(self) -> Iterator[Parts]:
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
            yield (program,)

    @contextmanager
    def peers(self, blackbox: str, prometheus: str) -> Iterator[Parts]:
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
            yield (first, second)

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
