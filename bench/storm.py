"""A storm through the whole service, beside Alertmanager: very many alerts at once, each in a group of its own.

Ours has stored every alert and every incident, durably, before it tells of them. Each side is started for its storm and stopped after it.
"""

import time
from dataclasses import dataclass, replace

from bench.intake import CONNECTIONS, GROUP_WAIT_S, Contender, address, beside, contenders
from bench.measure import BenchError, Cell, Figure, Side, cost, peak_rss_bytes
from bench.plan import Plan
from bench.processes import Worker

GROUPS = 10_000
GROUPS_QUICK = 50
WARM = 20
"""Alerts before it, one a POST: connections are open, and what is loaded late is loaded."""
TOLD_WITHIN_S = 180.0


@dataclass(frozen=True, slots=True)
class _Storm:
    cell: Cell
    last_after_s: float
    """From the first POST to the last notification, without the peer's ``group_wait``."""
    stored_after_s: float
    """From the first POST to the answer to the last."""
    peak_rss_bytes: int


def run(plan: Plan) -> list[Figure]:
    groups, settled_after_s = (GROUPS_QUICK, 0.1) if plan.quick else (GROUPS, 3.0)
    sides, certificate, peer_name = contenders(plan, "storm")
    storms: dict[str, list[_Storm]] = {name: [] for name in sides}
    for number in range(plan.pairs):
        for name, side in sides.items():
            plan.say(f"storm: pair {number + 1} of {plan.pairs}, {name}")
            with Worker("bench.hook", certificate) as hook:
                storms[name].append(_provoke(side, hook, groups, settled_after_s))
    return _figures(plan, groups, storms, peer_name)


def _provoke(side: Contender, hook: Worker, groups: int, settled_after_s: float) -> _Storm:
    with side.start(address(side, hook)) as (program, driver):
        _post(driver, WARM, 1, "warm")
        time.sleep(settled_after_s)  # what the warming left behind is not the storm's
        told_before = hook.ask()["told"]
        before_s = program.cpu_s()
        sent = _post(driver, groups, 100, "storm")
        heard = hook.ask(told=told_before + groups, within_s=TOLD_WITHIN_S)
        if heard["told"] - told_before < groups:
            raise BenchError(f"storm: {heard['told'] - told_before} of {groups} groups were told of within {TOLD_WITHIN_S:g} s")
        time.sleep(settled_after_s)  # whatever follows the last notification is part of its cost
        cell = Cell(program.cpu_s() - before_s, groups)
        last_after_s = heard["last_at"] - sent["started_at"] - side.wait_s
        return _Storm(cell, last_after_s, sent["ended_at"] - sent["started_at"], peak_rss_bytes(program.pid))


def _post(driver: Worker, count: int, per_post: int, label: str) -> dict[str, float]:
    """So many alerts, each in its own group. Returns when the first POST began and the last was answered."""
    sent = driver.ask(count=count, per_post=per_post, groups=count, label=label, connections=CONNECTIONS)
    if sent["bad"]:
        raise BenchError(f"storm: {sent['bad']} POSTs were not answered with 200")
    return sent


def _figures(plan: Plan, groups: int, storms: dict[str, list[_Storm]], peer_name: str) -> list[Figure]:
    empty = Figure("", "", Side(()), None, peer_name)
    what = f"storm of {groups:,} groups"
    waits = f"from the first POST to the last notification; from Alertmanager's, its group_wait of {GROUP_WAIT_S} s is taken off"
    total = [cost([one.cell for one in taken], per=groups, quick=plan.quick) for taken in storms.values()]
    last = [Side(tuple(one.last_after_s for one in taken)) for taken in storms.values()]
    stored = [Side(tuple(one.stored_after_s for one in taken)) for taken in storms.values()]
    peak = [Side(tuple(one.peak_rss_bytes / 2**20 for one in taken)) for taken in storms.values()]
    return [
        replace(beside(empty, total), name=f"{what}, CPU", unit="CPU-s"),
        replace(beside(empty, stored), name=f"{what}, answered", unit="s", notes=("ours is on the disk then",)),
        replace(beside(empty, last), name=f"{what}, told", unit="s", notes=(waits,)),
        replace(beside(empty, peak), name=f"{what}, memory", unit="peak RSS MiB"),
    ]
