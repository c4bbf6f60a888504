"""One ``/metrics`` page of our exposition or of prometheus_client's, in a process of its own, over the same series."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bench.processes import answer_commands
from checks.http_health import judge
from monitor.domain import CheckResult, Outcome
from monitor.metrics.exposition import Exposition
from monitor.probes_contract import HttpAnswer, HttpPhases

SERIES_PER_INSTANCE = 16
CHANGED_SHARE = 0.1
BODY = b'{"status": "healthy"}'
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Change = Callable[[int], None]
Render = Callable[[], bytes]


def result(number: int, turn: int) -> CheckResult:
    """What ``http_health`` says of one service; the times differ at every turn."""
    from checks.http_health import Config  # noqa: PLC0415

    spent_s = (number * 7 + turn * 13) % 1009 / 100_003
    phases = HttpPhases(spent_s / 5, spent_s / 7, 0.0, spent_s / 3, spent_s / 9, spent_s)
    observed = judge(HttpAnswer(200, (), BODY, phases), Config(), service=f"svc{number:04}", url="http://127.0.0.1/health")
    service = f"svc{number:04}"
    return CheckResult(f"http_health/{service}", "http_health", service, Outcome.OK, NOW, spent_s, observed)


def ours(instances: int) -> tuple[Change, Render]:
    """An exposition that shows the results; a change records a tenth of the instances anew."""
    exposition = Exposition("bench", series_per_family=10 * instances)
    for number in range(instances):
        exposition.record(result(number, 0))

    def change(turn: int) -> None:
        for number in changed(instances, turn):
            exposition.record(result(number, turn))

    return change, exposition.render


def theirs(instances: int) -> tuple[Change, Render]:
    """Gauges and counters of prometheus_client with the very same names and labels; a change sets a tenth of the services' series."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    children: dict[str, list[Any]] = {}
    page = ours(instances)[1]().decode()
    for family in text_string_to_metric_families(page):
        labels = tuple(family.samples[0].labels)
        kind: Any = Counter if family.type == "counter" else Gauge
        metric = kind(family.name, family.documentation, labels, registry=registry)
        for sample in family.samples:
            child = metric.labels(*sample.labels.values()) if labels else metric
            advance = child.inc if kind is Counter else child.set
            advance(sample.value)
            children.setdefault(sample.labels.get("service", ""), []).append(advance)

    def change(turn: int) -> None:
        for number in changed(instances, turn):
            for place, advance in enumerate(children[f"svc{number:04}"]):
                advance((number * 7 + turn * 13 + place) % 1009 / 100_003)

    return change, lambda: generate_latest(registry)


def changed(instances: int, turn: int) -> Iterable[int]:
    """The tenth of the instances whose turn it is."""
    step = round(1 / CHANGED_SHARE)
    return range(turn % step, instances, step)


async def main(side: str, series: int) -> None:
    change, render = {"ours": ours, "theirs": theirs}[side](series // SERIES_PER_INSTANCE)
    turn = 0

    async def handle(command: dict[str, Any]) -> dict[str, Any]:
        """Change and render so often; only the rendering is counted."""
        nonlocal turn
        cpu_s, page = 0.0, b""
        for _ in range(command["count"]):
            turn += 1
            change(turn)
            before_s = time.process_time()
            page = render()
            cpu_s += time.process_time() - before_s
        return {"cpu_s": cpu_s, "series": sum(not line.startswith(b"#") for line in page.splitlines())}

    await answer_commands(handle)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
