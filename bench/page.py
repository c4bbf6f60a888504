"""From a fault to the notification that names it: the whole service beside Prometheus, blackbox_exporter and Alertmanager.

Both sides watch the same targets at the same time, so each fault is one fault for both. Nothing of either side is grouped or held back.
"""

import json
import random
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.http_probe import BLACKBOX, MODULE, issue, version_of
from bench.intake import ALERTMANAGER
from bench.measure import BenchError, Figure, Side
from bench.plan import Plan
from bench.processes import Program, Worker, free_port

FAULTS = 30
"""Of the stage that has no peer."""
FAULTS_BESIDE = 120
"""When a look sees a fault is chance: the median of 30 waits varies by a sixth, and the ratio of two by a fifth."""
EVERY_S = 5.0
ROUNDS = 12
QUICK_LOOK_S = 2.0
SEED = 4
SHIPPED = Path(__file__).parents[1] / "config.toml"
FIRST_LOOKS_WITHIN_S = 6.0
"""The monitor has looked at everything within five seconds; Prometheus begins after as many."""
SHARE = 0.75
"""So much of the interval a look may take, on both sides, where the interval is short."""
SPARE_S = 15.0
"""A notification that comes this much later than it has to never comes."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """How the targets are looked at, and over how many intervals the faults are spread."""

    name: str
    check: Mapping[str, object]
    """Keys of our check."""
    every_s: float
    rounds: int
    faults: int
    looks: int | None
    """How many bad looks in a row Prometheus waits for, at our interval; None leaves it out."""
    note: str


def run(plan: Plan) -> list[Figure]:
    """One run of each stage whatever the number of pairs: its figures are over the faults, not over runs."""
    programs = tuple(next(filter(None, map(shutil.which, names)), None) for names in (BLACKBOX, ("prometheus",), ALERTMANAGER))
    peer_name = "peers are not installed"
    blackbox, prometheus, alertmanager = programs
    peers = None
    if blackbox and prometheus and alertmanager:
        peers = (blackbox, prometheus, alertmanager)
        peer_name = f"Prometheus {version_of(prometheus)} + blackbox {version_of(blackbox)} + Alertmanager {version_of(alertmanager)}"
    folder = plan.folder / "page"
    folder.mkdir()
    figures = []
    for stage in _stages(quick=plan.quick):
        plan.say(f"page: {stage.name}, {stage.faults} faults, {stage.rounds * stage.every_s:.0f} s")
        taken = _provoke(stage, folder, issue(folder), peers if stage.looks else None)
        figures += _figures(stage, taken, peer_name if stage.looks else "no peer")
    return figures


def _stages(*, quick: bool) -> Iterator[_Stage]:
    every_s, faults, rounds = (1.0, 2, 1) if quick else (EVERY_S, FAULTS_BESIDE, ROUNDS)
    again = f"ours looks again after {QUICK_LOOK_S:g} s, as shipped; Prometheus has only its interval"
    ways = (
        ("page, 1 bad look", 1, every_s, "one bad look"),
        ("page, 2 bad looks", 2, every_s, "two bad looks an interval apart; no quick look between"),
        ("page, 2 bad looks, quick", 2, QUICK_LOOK_S, f"two bad looks; {again}"),
    )
    for name, looks, recheck_s, how in ways[1:2] if quick else ways:
        yield _Stage(
            name=name,
            check={**_times(every_s), "recheck": f"{recheck_s}s", "fail_after": looks},
            every_s=every_s,
            rounds=rounds,
            faults=faults,
            looks=looks,
            note=f"{faults} faults; both look every {every_s:g} s and tell after {how}; rules are evaluated as often; group_wait 0",
        )
    shipped = tomllib.loads(SHIPPED.read_text())["checks"]["http_health"]
    check = {key: value for key, value in shipped.items() if key not in {"services", "path", "expect_json"}}
    said = ", ".join(f"{key} {check[key]}" for key in ("every", "fail_after", "recheck"))
    yield _Stage(
        name="page, as shipped",
        check=check | {**_times(2.0), "recheck": "1s"} if quick else check,
        every_s=2.0 if quick else float(check["every"].removesuffix("s")),
        rounds=1 if quick else 7,
        faults=2 if quick else FAULTS,
        looks=None,
        note=f"checks.http_health of the shipped config.toml: {said}",
    )


def _times(every_s: float) -> dict[str, object]:
    """An interval, and limits that fit into it."""
    limits = {"timeout": 0.9, "deadline": SHARE, "slow_after": 0.7}
    return {"every": f"{every_s}s", **{key: f"{share * every_s:g}s" for key, share in limits.items()}}


def _provoke(stage: _Stage, folder: Path, authority: Path, peers: tuple[str, str, str] | None) -> dict[str, list[float]]:
    """Seconds from each fault to its notification, by side."""
    with ExitStack() as stack:
        target = stack.enter_context(Worker("bench.target", "0.0.0.0"))
        hosts = {f"s{number}": f"127.0.1.{number + 1}" for number in range(stage.faults)}
        site = _Site(folder, authority, {name: f"{host}:{target.ready['port']}" for name, host in hosts.items()}, stage)
        hooks = {"monitor": stack.enter_context(Worker("bench.hook", folder / "server.pem"))}
        stack.enter_context(site.monitor(f"https://127.0.0.1:{hooks['monitor'].ready['secure']}/"))
        if peers:
            hooks["peers"] = stack.enter_context(Worker("bench.hook", folder / "server.pem"))
            stack.enter_context(site.peers(*peers, f"http://127.0.0.1:{hooks['peers'].ready['plain']}/"))
        time.sleep(FIRST_LOOKS_WITHIN_S + stage.every_s)  # everything was seen to be well
        broken_at = {}
        begun = time.monotonic()
        for name, at_s in _moments(stage, list(hosts)):
            time.sleep(max(0.0, begun + at_s - time.monotonic()))  # the moment of the fault is the experiment
            broken_at[name] = target.ask(broken=hosts[name])["at"]
        return {side: _delays(side, hook, stage, broken_at) for side, hook in hooks.items()}


def _moments(stage: _Stage, names: list[str]) -> Iterator[tuple[str, float]]:
    """When each target breaks: evenly over the interval, at seeded random, and over the rounds."""
    chance = random.Random(SEED)
    chance.shuffle(names)
    slots = list(range(stage.faults))
    chance.shuffle(slots)
    for_each = [
        (number * stage.rounds // stage.faults * stage.every_s + (slot + chance.random()) / stage.faults * stage.every_s, name)
        for number, (slot, name) in enumerate(zip(slots, names, strict=True))
    ]
    yield from ((name, at_s) for at_s, name in sorted(for_each))


def _delays(side: str, hook: Worker, stage: _Stage, broken_at: dict[str, float]) -> list[float]:
    heard = hook.ask(told=stage.faults, within_s=4 * stage.every_s + SPARE_S, each=True)["first_at"]
    missing = sorted(broken_at.keys() - heard.keys())
    if missing:
        raise BenchError(f"{stage.name}: {side} did not tell of {', '.join(missing)}")
    delays = {name: heard[name] - at for name, at in broken_at.items()}
    early = sorted(name for name, delay in delays.items() if delay < 0)
    if early:
        raise BenchError(f"{stage.name}: {side} told of {', '.join(early)} before the fault: something else was wrong")
    return list(delays.values())


def _figures(stage: _Stage, taken: dict[str, list[float]], peer_name: str) -> list[Figure]:
    ours, theirs = taken["monitor"], taken.get("peers")
    return [
        Figure(stage.name, "s, fault to page", Side(tuple(ours)), Side(tuple(theirs)) if theirs else None, peer_name, (stage.note,)),
        Figure(f"{stage.name}, slowest", "s, fault to page", Side((max(ours),)), Side((max(theirs),)) if theirs else None, peer_name),
    ]


@dataclass(frozen=True, slots=True)
class _Site:
    """Writes what each side is configured with, and starts it."""

    folder: Path
    authority: Path
    hosts: Mapping[str, str]
    """Service to host and port."""
    stage: _Stage

    @contextmanager
    def monitor(self, hook: str) -> Iterator[None]:
        state = self.folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        port = free_port()
        step = '[{after = "0s", who = "on-call", channels = ["hook"]}]'
        lines = [
            f'[monitor]\nlisten = "127.0.0.1:{port}"\nstate = "monitor.db"',
            *(f'[services.{name}]\nurl = "http://{host}"' for name, host in self.hosts.items()),
            f'[checks.http_health]\nservices = {json.dumps(list(self.hosts))}\nexpect_json = {{status = "healthy"}}',
            *(f"{key} = {json.dumps(value)}" for key, value in self.stage.check.items()),
            f'[channels.hook]\nnotifier = "webhook"\nurl = "{hook}"\nca_file = "{self.authority}"',
            "[escalation]",
            *(f"{severity} = {step}" for severity in ("P1", "P2", "P3", "P4")),
        ]
        config = state / "config.toml"
        config.write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "monitor", "run", "--config", str(config)]
        with Program(command, url=f"http://127.0.0.1:{port}/-/ready", log=self.folder / "monitor.log"):
            yield

    @contextmanager
    def peers(self, blackbox: str, prometheus: str, alertmanager: str, hook: str) -> Iterator[None]:
        state = self.folder / "peers"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        ports = [free_port() for _ in range(3)]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self._write(state, addresses, hook)
        commands = [
            [blackbox, f"--config.file={state}/blackbox.yml", f"--web.listen-address={addresses[0]}"],
            [
                *(alertmanager, f"--config.file={state}/alertmanager.yml", f"--storage.path={state}/alertmanager"),
                *(f"--web.listen-address={addresses[1]}", "--cluster.listen-address="),
            ],
            [
                *(prometheus, f"--config.file={state}/prometheus.yml", f"--storage.tsdb.path={state}/data"),
                f"--web.listen-address={addresses[2]}",
            ],
        ]
        with ExitStack() as stack:
            for command, address, ready in zip(commands, addresses, ("healthy", "ready", "ready"), strict=True):
                log = state / f"{Path(command[0]).name}.log"
                stack.enter_context(Program(command, url=f"http://{address}/-/{ready}", log=log))
            yield

    def _write(self, state: Path, addresses: list[str], hook: str) -> None:
        """JSON is YAML."""
        every, within = f"{self.stage.every_s:.0f}s", f"{SHARE * self.stage.every_s * 1000:.0f}ms"
        held = f"{((self.stage.looks or 1) - 1) * self.stage.every_s:.0f}s"
        rule = {"alert": "Down", "expr": "probe_success == 0", "for": held, "labels": {"severity": "page"}}
        route = {"receiver": "hook", "group_by": ["alertname", "service"], "group_wait": "0s", "group_interval": "5m"}
        receiver = {"name": "hook", "webhook_configs": [{"url": hook, "send_resolved": False}]}
        files: dict[str, Any] = {
            "blackbox.yml": MODULE,
            "rules.yml": {"groups": [{"name": "page", "rules": [rule]}]},
            "alertmanager.yml": {"route": route, "receivers": [receiver]},
            "prometheus.yml": {
                "global": {
                    "scrape_interval": every,
                    "evaluation_interval": every,
                    "scrape_timeout": within,
                },
                "rule_files": ["rules.yml"],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [addresses[1]]}]}]},
                "scrape_configs": [self._scrape(addresses[0])],
            },
        }
        for name, content in files.items():
            (state / name).write_text(json.dumps(content))

    def _scrape(self, blackbox: str) -> dict[str, object]:
        return {
            "job_name": "page",
            "metrics_path": "/probe",
            "params": {"module": ["http_2xx"]},
            "static_configs": [{"targets": [f"http://{host}/health"], "labels": {"service": name}} for name, host in self.hosts.items()],
            "relabel_configs": [
                {"source_labels": ["__address__"], "target_label": "__param_target"},
                {"source_labels": ["__param_target"], "target_label": "instance"},
                {"target_label": "__address__", "replacement": blackbox},
            ],
        }
