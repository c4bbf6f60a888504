"""kill -9 between decision and delivery, anywhere, again and again: everybody is paged, under one key, and hears the end.

Every trial is a seed: which services fail, what people do, and at which commits and sends the monitor dies. More of them than the
suite's run with ``MONITOR_KILL_TRIALS=2000``.
"""

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.cluster import Cluster
from services.externals import pagerduty, tickets
from tests.conftest import fresh_database
from tests.notify_parts import Authority, Fake, serve
from tests.support.life_script import Step, outages, write_script
from tests.support.lives import HOOK_SECRET, HOOK_TOKEN, POINTS, Place, command

TRIALS = int(os.environ.get("MONITOR_KILL_TRIALS", "200"))
REPLICA_TRIALS = max(1, TRIALS // 5)
WORKERS = 2
ANSWER_WITHIN_S = 120.0
OPENERS = {"triggered", "escalated", "raised", "reminded"}

Trial = dict[str, Any]


@pytest.mark.timeout(1800)
async def test_kill_nine_anywhere_on_sqlite(memory: Path) -> None:
    died = await see_through(memory, [f"sqlite:///{memory}/{number}/trial.db" for number in range(WORKERS)], TRIALS)
    assert TRIALS < 200 or min(died[point] for point in POINTS) >= 40, died


@pytest.mark.timeout(1800)
async def test_kill_nine_anywhere_on_postgresql(memory: Path, pg18: Cluster) -> None:
    with databases(pg18) as states:
        died = await see_through(memory, states, TRIALS)
    assert TRIALS < 200 or min(died[point] for point in POINTS) >= 40, died


@pytest.mark.timeout(1800)
async def test_two_replicas_share_the_work_and_neither_repeats_what_the_other_sent(memory: Path, pg18: Cluster) -> None:
    with databases(pg18) as states:
        died = await see_through(memory, states, REPLICA_TRIALS, replicas=2)
    assert TRIALS < 200 or min(died[point] for point in POINTS) >= 10, died


@contextmanager
def databases(cluster: Cluster) -> Iterator[list[str]]:
    """A fresh database for every worker, as the URL of a state."""
    with ExitStack() as stack:
        names = [stack.enter_context(contextmanager(fresh_database)(cluster)).split("dbname=")[1].split()[0] for _ in range(WORKERS)]
        yield [f"postgresql+psycopg://postgres@127.0.0.1:{cluster.port}/{name}" for name in names]


async def see_through(folder: Path, states: list[str], trials: int, *, replicas: int = 1) -> Counter[str]:
    """Run trials in one warm process for each state. Returns how often the monitor died at each point."""
    authority = Authority.create(folder)
    async with asyncio.TaskGroup() as workers:
        tasks = [
            workers.create_task(_work(folder / str(number), state, range(number, trials, len(states)), authority, replicas))
            for number, state in enumerate(states)
        ]
    return sum((task.result() for task in tasks), Counter())


async def _work(folder: Path, state: str, seeds: Iterable[int], authority: Authority, replicas: int) -> Counter[str]:
    folder.mkdir()
    died: Counter[str] = Counter()
    async with (
        serve(pagerduty.create_app(rate_per_min=10**9), authority) as pager,
        serve(tickets.create_app(token=HOOK_TOKEN, secret=HOOK_SECRET), authority) as hook,
        warm(Place(str(folder), state, pager.url, hook.url, authority.ca_file, replicas)) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        seen = 0
        for seed in seeds:
            await script_bad_moments(seed, pager, hook)
            process.stdin.write(f"{seed}\n".encode())
            async with asyncio.timeout(ANSWER_WITHIN_S):
                line = await process.stdout.readline()
            assert line, f"trial {seed}: the monitor failed:\n{(folder / 'errors').read_text()}"
            trial = json.loads(line)
            hooks = (await hook.received())["hooks"][seen:]
            try:
                judge(trial, await pager.received(), hooks)
            except AssertionError as exc:
                raise AssertionError(f"trial {seed}: {exc}\n{describe(trial)}") from exc
            seen += len(hooks)
            await pager.client.post("/_clear")
            died += Counter(point for _, point in trial["died"])
    return died


@asynccontextmanager
async def warm(place: Place) -> AsyncIterator[asyncio.subprocess.Process]:
    """The warm process that forks lives; its errors are in the file ``errors``."""
    with (Path(place.folder) / "errors").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command(place), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, limit=2**24
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def script_bad_moments(seed: int, *fakes: Fake) -> None:
    """In every third trial the providers are not well either."""
    rng = random.Random(f"providers {seed}")
    bad = ({"status": 503}, {"status": 429, "retry_after": 30}, {"reset": True}, {"reset": True, "accept": True}, {})
    for fake in fakes:
        steps = [rng.choice(bad) for _ in range(rng.randint(1, 5))] if seed % 3 == 0 else []
        await fake.script(*[step for step in steps if step])


# --- what was promised ---------------------------------------------------------------------------------------------------


def judge(trial: Trial, pager: dict[str, Any], hooks: list[dict[str, Any]]) -> None:
    """Hold a trial's facts and what the providers received against the promises."""
    script = write_script(random.Random(trial["seed"]))
    opened = Counter(incident["service"] for incident in trial["incidents"])
    assert opened == {f"{service}{trial['seed']}": count for service, count in outages(script).items()}, "one incident an outage"
    for incident in trial["incidents"]:
        told = json.loads(incident["told"]) if isinstance(incident["told"], str) else incident["told"]
        rows = [row for row in trial["rows"] if row["incident_id"] == incident["id"]]
        assert incident["state"] == "resolved"
        assert told or silenced(script), f"{incident['id']} was told to nobody"
        assert {row["channel"] for row in rows if row["transition"] in OPENERS} == set(told)
        assert {row["channel"] for row in rows if row["transition"] == "resolved"} == set(told)
        assert {row["state"] for row in rows} <= {"sent", "superseded"}
        if "pager" in told:
            judge_pager(incident["id"], pager)
        if "hook" in told:
            said = [hook["status"] for hook in hooks if hook["groupLabels"]["incident_id"] == incident["id"]]
            assert (said[0], said[-1]) == ("firing", "resolved"), f"the hook heard {said}"
            assert "firing" not in said[said.index("resolved") :], f"the hook heard {said}"
    assert [call for call in pager["refused"] if call["outcome"] != "as scripted"] == []
    judge_repeats(trial)


def judge_pager(incident_id: str, pager: dict[str, Any]) -> None:
    """One incident a key; the later askings of one incident have keys of their own."""
    keys = Counter(one["dedup_key"] for one in pager["incidents"] if one["dedup_key"].partition(".")[0] == incident_id)
    assert set(keys.values()) == {1}, f"PagerDuty saw {dict(keys)}"
    states = {one["state"] for one in pager["incidents"] if one["dedup_key"] in keys}
    assert states == {"resolved"}, f"PagerDuty's are {states}"


def judge_repeats(trial: Trial) -> None:
    """A row is accepted a second time only when who sent it before died before recording that."""
    dead = {pid for pid, _ in trial["died"]}
    senders: dict[int, list[int]] = defaultdict(list)
    for pid, row, _ in trial["sends"]:
        senders[row].append(pid)
    for row, pids in senders.items():
        assert set(pids[:-1]) <= dead, f"row {row} was sent by {pids}; dead are {dead}"
        assert len(set(pids)) == len(pids), f"row {row} was sent by {pids}"
    sent = {row["id"] for row in trial["rows"] if row["state"] == "sent"}
    assert sent <= senders.keys(), "what is marked sent was sent"


def silenced(script: Iterable[Step]) -> bool:
    return any(step.what == "silence" for step in script)


def describe(trial: Trial) -> str:
    script = write_script(random.Random(trial["seed"]))
    steps = " ".join(f"{step.what}:{step.service or step.seconds}" for step in script)
    rows = "\n".join(" ".join(str(value) for value in row.values()) for row in trial["rows"])
    return f"script: {steps}\ndied: {trial['died']}\nsends: {trial['sends']}\nincidents: {trial['incidents']}\nrows:\n{rows}"
