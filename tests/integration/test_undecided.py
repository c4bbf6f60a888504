"""What a check keeps is not written before its finding is committed: a kill -9 while a cause is waited for would lose the finding."""

import asyncio
from dataclasses import replace
from pathlib import Path

from monitor.domain import AlertPolicy, Observed
from monitor.engine import Engine
from monitor.memory import Memory
from monitor.plugins import CheckContext
from monitor.runner import Runner
from monitor.store import Store, StoreThread
from tests.support.looking import with_parts
from tests.support.world import DOWN, ManualClock, instance, settings, until


async def finds_once(_: CheckContext) -> Observed:
    return Observed(findings=(DOWN("one more than before"),), keep={"seen": 1})


async def fine(_: CheckContext) -> Observed:
    return Observed()


async def test_kept_and_finding_are_durable_in_that_order(tmp_path: Path) -> None:
    cause = instance(fine, name="cause", service="base")
    policy = AlertPolicy(fail_after=1)
    symptom = replace(instance(finds_once, name="symptom"), depends_on=frozenset({cause.key}), policy=policy)
    chosen, clock, memory = settings(tmp_path, symptom, cause), ManualClock(), Memory()
    store, thread = Store(chosen.state_url), StoreThread()
    engine = Engine(
        chosen,
        store=store,
        thread=thread,
        runner=Runner(clock, lambda inst, _: with_parts(inst.service, clock=clock), memory),
        clock=clock,
        guides={},
        on_result=lambda _: None,
        wake_delivery=lambda: None,
        memory=memory,
        look_soon=set,
    )
    running = asyncio.create_task(engine.run(symptom))
    await until(lambda: symptom.key in engine.latest)
    await engine.flush()
    assert [entry.instance for entry in store.kept.all() if entry.instance == symptom.key] == []
    assert store.incidents.list(unresolved=False) == ()
    await engine.run(cause)
    await running
    await engine.flush()
    assert [entry.instance for entry in store.kept.all() if entry.instance == symptom.key] == [symptom.key]
    assert len(store.incidents.list(unresolved=False)) == 1
    thread.close()
    store.close()
