"""CPU of one series in a scrape of ``/metrics``, beside prometheus_client over the same series, A B A B."""

from contextlib import ExitStack
from importlib.metadata import version

from bench.measure import BenchError, Cell, Figure, cost
from bench.plan import Plan
from bench.processes import Worker


def run(plan: Plan) -> list[Figure]:
    series = 320 if plan.quick else 10_000
    scrapes = {"ours": 3, "theirs": 3} if plan.quick else {"ours": 300, "theirs": 25}
    cells: dict[str, list[Cell]] = {side: [] for side in scrapes}
    shown: set[int] = set()
    with ExitStack() as stack:
        workers = {side: stack.enter_context(Worker("bench.rendering", side, series)) for side in scrapes}
        for worker in workers.values():
            worker.ask(count=2)
        for number in range(plan.pairs):
            for side, worker in workers.items():
                plan.say(f"exposition: pair {number + 1} of {plan.pairs}, {side}")
                answer = worker.ask(count=scrapes[side])
                shown.add(answer["series"])
                cells[side].append(Cell(answer["cpu_s"], scrapes[side] * answer["series"]))
    if len(shown) != 1:
        raise BenchError(f"exposition: the two sides show different numbers of series: {sorted(shown)}")
    return [
        Figure(
            "exposition",
            "CPU-µs / series",
            cost(cells["ours"], per=1, scale=1e6, quick=plan.quick),
            cost(cells["theirs"], per=1, scale=1e6, quick=plan.quick),
            f"prometheus_client {version('prometheus-client')}",
            (f"{shown.pop():,} series, a tenth of the instances changed between two scrapes; setting values is not counted",),
        )
    ]
