"""Results recorded and decisions committed per CPU-second: SQLite, WAL, synchronous FULL. There is no peer."""

from bench.measure import Cell, Figure, speed
from bench.plan import Plan
from bench.processes import Worker
from bench.storing import BATCH


def run(plan: Plan) -> list[Figure]:
    folder = plan.folder / "state_store"
    folder.mkdir()
    counts = {"record": BATCH, "decide": 40} if plan.quick else {"record": 150 * BATCH, "decide": 2_000}
    cells: dict[str, list[Cell]] = {what: [] for what in counts}
    with Worker("bench.storing", folder) as worker:
        for what in counts:
            worker.ask(what=what, count=40)  # warm: SQLAlchemy compiles its statements once
        for number in range(plan.pairs):
            for what, count in counts.items():
                plan.say(f"state_store: round {number + 1} of {plan.pairs}, {what}")
                cells[what].append(Cell(**worker.ask(what=what, count=count)))
    return [
        Figure(
            "state_store",
            "results / CPU-s",
            speed(cells["record"], quick=plan.quick),
            None,
            "no peer",
            (f"batches of {BATCH:,} results of {BATCH:,} instances, one durable commit each",),
        ),
        Figure(
            "state_store_decisions",
            "decisions / CPU-s",
            speed(cells["decide"], quick=plan.quick),
            None,
            "no peer",
            ("pending, firing with an incident and its notification, resolved: every decision one durable commit",),
        ),
    ]
