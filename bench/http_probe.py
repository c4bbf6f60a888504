"""CPU of 1,000 HTTP probes through the whole check path, beside blackbox_exporter, same target, A B A B."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trustme

from bench.measure import BenchError, Cell, Figure, Side, cost
from bench.plan import Plan
from bench.processes import Program, Worker, free_port

CONCURRENCY = 50
UNIT = "CPU-s / 1,000 probes"
BLACKBOX = ("prometheus-blackbox-exporter", "blackbox_exporter")
MODULE: dict[str, Any] = {
    "modules": {
        "http_2xx": {
            "prober": "http",
            "timeout": "5s",
            "http": {
                "valid_status_codes": [200],
                "fail_if_body_not_matches_regexp": ['"status": *"healthy"'],
                "follow_redirects": False,
                "preferred_ip_protocol": "ip4",
            },
        }
    }
}


@dataclass(frozen=True, slots=True)
class _Contender:
    """One side: who is counted, and how it is made to probe."""

    name: str
    cpu_s: Callable[[], float]
    driver: Worker


def run(plan: Plan) -> list[Figure]:
    return [_compare(plan, "http_probe", tls=False), _compare(plan, "http_probe_tls", tls=True)]


def _compare(plan: Plan, name: str, *, tls: bool) -> Figure:
    count = 300 if plan.quick else 4_000 if tls else 12_000
    with ExitStack() as stack:
        folder = plan.folder / name
        folder.mkdir()
        authority = issue(folder) if tls else None
        target = stack.enter_context(Worker("bench.target", "127.0.0.1", *([folder / "server.pem"] if tls else [])))
        url = f"{'https' if tls else 'http'}://127.0.0.1:{target.ready['port']}"
        monitor = stack.enter_context(Worker("bench.probing", folder, url, *(["--ca-file", authority] if authority else [])))
        sides = [_Contender("monitor", monitor.cpu_s, monitor)]
        program = next(filter(None, map(shutil.which, BLACKBOX)), None)
        if program:
            sides.append(_start_blackbox(stack, program, folder, f"{url}/health", authority))
        for side in sides:
            _probe(side, target, min(count, 500))  # warm: imports, caches, the heap's size
        cells: dict[str, list[Cell]] = {side.name: [] for side in sides}
        for number in range(plan.pairs):
            for side in sides:
                plan.say(f"{name}: pair {number + 1} of {plan.pairs}, {side.name}")
                cells[side.name].append(_probe(side, target, count))
    peer: Side | None = cost(cells["blackbox"], per=1_000, quick=plan.quick) if program else None
    handshake = " with a full TLS handshake, verified" if tls else ""
    return Figure(
        name,
        UNIT,
        cost(cells["monitor"], per=1_000, quick=plan.quick),
        peer,
        f"blackbox_exporter {version_of(program)}" if program else "blackbox_exporter is not installed",
        (f"{count:,} probes a cell, {CONCURRENCY} at once, a new connection each{handshake}, status and body asserted",),
    )


def issue(folder: Path) -> Path:
    """A certificate for loopback in ``server.pem``; returns the file of its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return folder / "ca.pem"


def _start_blackbox(stack: ExitStack, program: str, folder: Path, url: str, authority: Path | None) -> _Contender:
    settings = folder / "blackbox.yml"
    module = copy.deepcopy(MODULE)
    if authority:
        module["modules"]["http_2xx"]["http"]["tls_config"] = {"ca_file": str(authority)}
    settings.write_text(json.dumps(module))  # JSON is YAML
    port = free_port()
    command = [program, f"--config.file={settings}", f"--web.listen-address=127.0.0.1:{port}"]
    server = stack.enter_context(Program(command, url=f"http://127.0.0.1:{port}/-/healthy", log=folder / "blackbox.log"))
    path = "/probe?" + urlencode({"module": "http_2xx", "target": url})
    return _Contender("blackbox", server.cpu_s, stack.enter_context(Worker("bench.driver", port, path)))


def _probe(side: _Contender, target: Worker, count: int) -> Cell:
    """One cell; refuses to count it unless the target saw exactly this work, without an error."""
    before, cpu_before_s = target.ask(), side.cpu_s()
    bad = side.driver.ask(count=count, concurrency=CONCURRENCY)["bad"]
    cpu_s, after = side.cpu_s() - cpu_before_s, target.ask()
    seen = {name: after[name] - before[name] for name in after}
    if bad or seen != {"connections": count, "requests": count, "errors": 0}:
        raise BenchError(f"{side.name}: {bad} of {count} probes failed, and the target saw {seen}: not the work that was asked for")
    return Cell(cpu_s, count)


def version_of(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"version (\S+?),? ", said.stdout + said.stderr)
    return found[1] if found else "of unknown version"
