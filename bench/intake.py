"""Foreign alerts through the whole service, beside Alertmanager: CPU of the intake, and memory with everything active.

The same posts over the same kept connections. The monitor has stored every alert, durably, when it answers; Alertmanager
keeps them in memory. Each side is started for its cells and stopped after them.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.http_probe import issue, version_of
from bench.measure import BenchError, Cell, Figure, Side, cost
from bench.plan import Plan
from bench.processes import Program, Worker, free_port
from monitor.store import Store

ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
TOKEN = "bench"
CONNECTIONS = 10
GROUP_WAIT_S = 1
UNITS = ("CPU-s / 1,000 POSTs", "CPU-s / 1,000 alerts")


@dataclass(frozen=True, slots=True)
class _Sizes:
    active: int
    groups: int
    singles: int
    repeats: int
    """How often everything active is sent again, 100 a POST."""
    settled_after_s: float


FULL = _Sizes(active=50_000, groups=100, singles=10_000, repeats=5, settled_after_s=3.0)
QUICK = _Sizes(active=300, groups=10, singles=50, repeats=2, settled_after_s=0.1)


@dataclass(frozen=True, slots=True)
class _Posts:
    """What one cell posts."""

    name: str
    unit: str
    count: int
    per_post: int
    label: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Contender:
    """One side: how it is started for a hook's address, and how long it waits before it tells."""

    start: Callable[[str], AbstractContextManager[tuple[Program, Worker]]]
    wait_s: float


def run(plan: Plan) -> list[Figure]:
    sizes = QUICK if plan.quick else FULL
    sides, certificate, peer_name = contenders(plan, "intake")
    cells: dict[tuple[str, str], list[Cell]] = {}
    rss: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(plan.pairs):
        for name, side in sides.items():
            plan.say(f"intake: pair {number + 1} of {plan.pairs}, {name}")
            with Worker("bench.hook", certificate) as hook:
                _take_in(side, hook, sizes, cells, name, rss[name])
    return _figures(plan, sizes, cells, rss, peer_name)


def contenders(plan: Plan, name: str) -> tuple[dict[str, Contender], Path, str]:
    """Both sides by name, the hook's certificate with its key, and what the peer is called. ``name`` is of the bench's folder."""
    peer = next(filter(None, map(shutil.which, ALERTMANAGER)), None)
    folder = plan.folder / name
    folder.mkdir()
    starting = _Starting(folder, issue(folder))
    sides = {"monitor": Contender(starting.monitor, 0)}
    if peer:
        sides["alertmanager"] = Contender(lambda hook: starting.alertmanager(peer, hook), GROUP_WAIT_S)
    return sides, folder / "server.pem", f"Alertmanager {version_of(peer)}" if peer else "Alertmanager is not installed"


def _plan_posts(sizes: _Sizes) -> tuple[_Posts, ...]:
    """In this order, in one process: everything that is sent again was sent before."""
    return (
        _Posts("intake, 100 a POST, new", UNITS[1], sizes.active, 100, "group"),
        _Posts("intake, 100 a POST, repeated", UNITS[1], sizes.active, 100, "group", sizes.repeats),
        _Posts("intake, 1 a POST, repeated", UNITS[0], sizes.singles, 1, "group"),
        _Posts("intake, 1 a POST, new", UNITS[0], sizes.singles, 1, "single"),
    )


def _take_in(side: Contender, hook: Worker, sizes: _Sizes, cells: dict[tuple[str, str], list[Cell]], name: str, rss: list[float]) -> None:
    with side.start(address(side, hook)) as (program, driver):
        warm = _Posts("warm", "", 100, 1, "warm")
        _post(program, driver, warm, sizes)
        for posts in _plan_posts(sizes):
            cell = _post(program, driver, posts, sizes)
            cells.setdefault((posts.name, name), []).append(cell)
            if posts.times > 1:
                rss.append(program.rss_bytes() / 2**20)


def _post(program: Program, driver: Worker, posts: _Posts, sizes: _Sizes) -> Cell:
    """CPU from the first POST until the groups were told of and things are quiet again."""
    before_s = program.cpu_s()
    for _ in range(posts.times):
        bad = driver.ask(count=posts.count, per_post=posts.per_post, groups=sizes.groups, label=posts.label, connections=CONNECTIONS)["bad"]
        if bad:
            raise BenchError(f"{posts.name}: {bad} POSTs were not answered with 200")
    time.sleep(sizes.settled_after_s)  # whatever follows an answer is part of its cost
    return Cell(program.cpu_s() - before_s, posts.times * posts.count)


def address(side: Contender, hook: Worker) -> str:
    """Ours sends over TLS, as it must; Alertmanager is spared that."""
    return f"http://127.0.0.1:{hook.ready['plain']}/" if side.wait_s else f"https://127.0.0.1:{hook.ready['secure']}/"


def _figures(
    plan: Plan,
    sizes: _Sizes,
    cells: dict[tuple[str, str], list[Cell]],
    rss: dict[str, list[float]],
    peer_name: str,
) -> list[Figure]:
    kept = f"{CONNECTIONS} kept connections; {sizes.groups} groups; ours answers when it is on the disk, Alertmanager from memory"
    empty = Figure("", "", Side(()), None, peer_name)
    found = []
    for posts in _plan_posts(sizes):
        both = [cost(cells[posts.name, name], per=1_000, quick=plan.quick) for name in rss]
        found.append(replace(beside(empty, both), name=posts.name, unit=posts.unit, notes=(kept,)))
    memory = [Side(tuple(one)) for one in rss.values()]
    found.append(replace(beside(empty, memory), name="intake memory", unit=f"RSS MiB, {sizes.active:,} active"))
    return found


def beside(figure: Figure, sides: list[Side]) -> Figure:
    return replace(figure, ours=sides[0], peer=sides[1] if len(sides) > 1 else None)


@dataclass(frozen=True, slots=True)
class _Starting:
    """Writes what each side is configured with, and starts it with its driver."""

    folder: Path
    authority: Path

    @contextmanager
    def monitor(self, hook: str) -> Iterator[tuple[Program, Worker]]:
        state = self.folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        (state / "token").touch(mode=0o600)
        (state / "token").write_text(TOKEN)
        port = free_port()
        step = '[{after = "0s", who = "on-call", channels = ["hook"]}]'
        lines = [
            f'[monitor]\nlisten = "127.0.0.1:{port}"\nstate = "monitor.db"\ntoken = {{file = "token"}}',
            f'[services.hook]\nurl = "{hook}"\n[checks.http_health]\nservices = ["hook"]\nevery = "1h"\nca_file = "{self.authority}"',
            f'[channels.hook]\nnotifier = "webhook"\nurl = "{hook}"\nca_file = "{self.authority}"',
            "[escalation]",
            *(f"{severity} = {step}" for severity in ("P1", "P2", "P3", "P4")),
        ]
        config = state / "config.toml"
        config.write_text("\n".join(lines) + "\n")
        Store(f"sqlite:///{state / 'monitor.db'}").close()  # as at every start but the first: there is nothing to migrate
        command = [sys.executable, "-m", "monitor", "run", "--config", str(config)]
        yield from _start(command, port, "/-/ready", self.folder / "monitor.log")

    @contextmanager
    def alertmanager(self, program: str, hook: str) -> Iterator[tuple[Program, Worker]]:
        state = self.folder / "alertmanager"
        shutil.rmtree(state, ignore_errors=True)
        config = self.folder / "alertmanager.yml"
        route = {"receiver": "hook", "group_by": ["alertname", "service"], "group_wait": f"{GROUP_WAIT_S}s", "group_interval": "5m"}
        receiver = {"name": "hook", "webhook_configs": [{"url": hook}]}
        config.write_text(json.dumps({"route": route, "receivers": [receiver]}))  # JSON is YAML
        port = free_port()
        command = [
            *(program, f"--config.file={config}", f"--storage.path={state}", f"--web.listen-address=127.0.0.1:{port}"),
            "--cluster.listen-address=",
        ]
        yield from _start(command, port, "/-/ready", self.folder / "alertmanager.log")


def _start(command: list[str], port: int, ready: str, log: Path) -> Iterator[tuple[Program, Worker]]:
    with Program(command, url=f"http://127.0.0.1:{port}{ready}", log=log) as program, Worker("bench.posting", port, TOKEN) as driver:
        yield program, driver
