"""The intake over a real store, SQLite and PostgreSQL: what is sent again is written shortly, and nothing is lost by it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from alerts.decide import Policy
from alerts.muting import Muting
from alerts.posted import PostedPolicy
from monitor.clock import SystemClock
from monitor.domain import Alert, AlertPolicy, Decision, EscalationStep, Incident, Severity
from monitor.errors import UsageError
from monitor.intake import MOST_WAITING, Intake, IntakeFull, IntakeStopped
from monitor.store import Store, StoreThread
from services.cluster import Cluster
from tests.support.databases import state_url

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
POLICY = Policy(alert=AlertPolicy(), chains=dict.fromkeys(Severity, (EscalationStep(0, "on-call", ("page",)),)))


class SetClock(SystemClock):
    """The wall clock stands where it is put; the monotonic one runs, and is put forward."""

    def __init__(self, at: datetime) -> None:
        self._at = at
        self._ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_s

    def now(self) -> datetime:
        return self._at

    def advance(self, seconds: float) -> None:
        self._at += timedelta(seconds=seconds)

    def pass_by(self, seconds: float) -> None:
        """Time goes by, on both clocks."""
        self.advance(seconds)
        self._ahead_s += seconds


@dataclass
class Judging:
    """What the intake asks of the engine."""

    posted: PostedPolicy = field(default_factory=PostedPolicy)
    decided: list[Decision] = field(default_factory=list)
    forward: int = 0

    @property
    def settings(self) -> "Judging":
        return self

    @property
    def steps(self) -> "Judging":
        return self

    async def notice(self) -> bool:
        return False

    def policy(self, _: AlertPolicy) -> Policy:
        return POLICY

    def muting(self, _: datetime) -> Muting:
        return Muting()

    def announce(self, decided: Decision) -> None:
        self.decided.append(decided)


@pytest.fixture(params=["sqlite", "pg18"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    cluster: Cluster | None = None if request.param == "sqlite" else request.getfixturevalue(request.param)
    for url in state_url(cluster, tmp_path):
        opened = Store(url)
        yield opened
        opened.close()


@pytest.fixture
def clock() -> SetClock:
    return SetClock(T0)


@asynccontextmanager
async def taking(store: Store, clock: SetClock) -> AsyncIterator[tuple[Intake, Judging]]:
    thread, engine = StoreThread(), Judging()
    intake = Intake(engine, store=store, thread=thread, clock=clock, guides={})  # type: ignore[arg-type]
    serving = asyncio.create_task(intake.serve())
    try:
        yield intake, engine
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        thread.close()


def body(*names: str, ends: datetime | None = None, words: str = "full", group: str = "files", **more: Any) -> bytes:
    said = {"endsAt": ends.isoformat()} if ends else {}
    labels = [{"alertname": "DiskFull", "service": group, "instance": name, "severity": "warning"} for name in names]
    return json.dumps(
        [{"labels": one, "annotations": {"summary": words}, "startsAt": T0.isoformat(), **said, **more} for one in labels]
    ).encode()


def stored(store: Store) -> dict[str, Alert]:
    return {dict(alert.labels)["instance"]: alert for alert in store.incidents.firing()}


def open_incidents(store: Store) -> tuple[Incident, ...]:
    return store.incidents.list(unresolved=True)


async def test_what_is_sent_again_gets_its_new_end_and_decides_nothing(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, engine):
        await intake.post(body("a", "b", ends=T0 + 4 * MINUTE))
        clock.advance(60)
        again = body("a", "b", ends=T0 + 5 * MINUTE, generatorURL="http://other/graph")
        before = [decided for decided in engine.decided if decided]
        assert await intake.post(again) == ()
        assert [decided for decided in engine.decided if decided] == before
        for alert in stored(store).values():
            assert (alert.ends_at, alert.updated_at, alert.ends_unsaid) == (T0 + 5 * MINUTE, T0 + MINUTE, False)
            assert alert.generator_url == "http://other/graph"
        await intake.post(body("a", ends=T0 + 3 * MINUTE))
        assert stored(store)["a"].ends_at == T0 + 5 * MINUTE
        await intake.post(body("a", words="fuller", ends=T0 + 6 * MINUTE))
        assert (stored(store)["a"].summary, stored(store)["a"].ends_at) == ("fuller", T0 + 6 * MINUTE)


async def test_an_end_and_a_new_begin_count_in_the_order_they_came(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        await intake.post(body("a", ends=T0 + 4 * MINUTE))
        clock.advance(60)
        over, again = body("a", ends=T0 + MINUTE / 2), body("a", ends=T0 + 5 * MINUTE)
        await asyncio.gather(intake.post(again), intake.post(over), intake.post(again))
        assert stored(store)["a"].ends_at == T0 + 5 * MINUTE
        (incident,) = open_incidents(store)
        await asyncio.gather(intake.post(again), intake.post(over))
        assert stored(store) == {}
        assert open_incidents(store) == ()
        await intake.post(again)
        (second,) = open_incidents(store)
        assert second.id != incident.id


async def test_two_that_write_the_same_state_never_lose_each_others_word(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (here, _), taking(store, clock) as (there, _):
        await here.post(body("a", ends=T0 + 9 * MINUTE))
        clock.advance(60)
        await there.post(body("a", words="fuller", ends=T0 + 5 * MINUTE))  # an earlier end, but the later one was named
        assert (stored(store)["a"].summary, stored(store)["a"].ends_at) == ("fuller", T0 + 9 * MINUTE)
        clock.advance(60)
        await here.post(body("a", ends=T0 + 10 * MINUTE))
        assert (stored(store)["a"].summary, stored(store)["a"].ends_at) == ("full", T0 + 10 * MINUTE)
        await there.post(body("a", ends=T0 + MINUTE))
        assert stored(store) == {}
        await here.post(body("a", ends=T0 + 11 * MINUTE))
        assert stored(store)["a"].ends_at == T0 + 11 * MINUTE
        assert len(open_incidents(store)) == 1


async def test_a_group_goes_on_while_one_of_its_alerts_fires(store: Store, clock: SetClock) -> None:
    many = [f"host{number}" for number in range(30)]
    async with taking(store, clock) as (intake, _):
        await intake.post(body(*many, ends=T0 + 9 * MINUTE))
        clock.advance(60)
        (incident,) = open_incidents(store)
        await intake.post(body(*many[:-1], ends=T0 + MINUTE))
        assert [one.id for one in open_incidents(store)] == [incident.id]
        assert set(stored(store)) == {many[-1]}
        await intake.post(body(many[-1], ends=T0 + MINUTE))
        assert open_incidents(store) == ()


async def test_a_storm_is_stored_whole_and_each_group_has_its_own_incident(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        posts = [body("a", group=f"g{number}", ends=T0 + 9 * MINUTE) for number in range(300)]
        await asyncio.gather(*map(intake.post, posts))
        incidents = store.incidents.list(unresolved=True, limit=1000)
        assert {incident.service for incident in incidents} == {f"g{number}" for number in range(300)}
        assert sum(queue.pending for queue in store.outbox.queues()) == 300


async def test_a_body_that_is_no_list_of_alerts_stores_nothing(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        for wrong in (b"", b"{}", b'[{"labels":{"alertname":1}}]', b'[{"labels":{"a":"b"}},{"labels":null}]', body("a")[:-3]):
            with pytest.raises(UsageError, match="bad request body"):
                await intake.post(wrong)
        assert stored(store) == {}
        assert await intake.post(b'[{"labels":{}},{"labels":{"alertname":"A","instance":"x"}}]') == ("at least one label pair required",)
        assert set(stored(store)) == {"x"}


async def test_what_goes_on_over_an_outage_longer_than_its_end_is_not_over(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        await intake.post(body("a", "b", ends=T0 + 4 * MINUTE))
        (incident,) = open_incidents(store)
    clock.pass_by(600)
    async with taking(store, clock) as (intake, engine):
        await intake.lapse_due()
        assert set(stored(store)) == {"a", "b"}
        clock.pass_by(60)
        await intake.post(body("a", ends=clock.now() + 4 * MINUTE))
        clock.pass_by(200)
        await intake.lapse_due()
        assert set(stored(store)) == {"a", "b"}
        assert [one.id for one in open_incidents(store)] == [incident.id]
        clock.pass_by(41)  # resolve_after since the start: who sent "b" had its time to send it again, and "a" was named an end
        await intake.lapse_due()
        assert set(stored(store)) == set()
        assert [decided.incidents[-1].id for decided in engine.decided if decided.incidents] == [incident.id]


async def test_an_end_that_was_named_while_senders_are_heard_needs_no_more_time(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        await intake.post(body("a", ends=T0 + MINUTE / 20))
        clock.pass_by(3)
        await intake.lapse_due()
        assert stored(store) == {}


async def test_nothing_lapses_because_the_machine_slept_or_the_store_refused(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, engine):
        await intake.post(body("a", ends=T0 + 4 * MINUTE))
        clock.pass_by(600)
        engine.forward += 1
        await intake.lapse_due()
        assert set(stored(store)) == {"a"}
        await intake.post(body("a", ends=clock.now() + 4 * MINUTE))
        clock.pass_by(300)
        with pytest.raises(IntakeFull):
            intake.take(body(*map(str, range(MOST_WAITING + 1))), lambda *_: None)
        await intake.lapse_due()
        assert set(stored(store)) == {"a"}
        clock.pass_by(300)
        await intake.lapse_due()
        assert stored(store) == {}


async def test_those_that_were_answered_together_are_waited_for_and_committed_together(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, engine):
        await asyncio.gather(*(intake.post(body(f"n{number}")) for number in range(5)))

        async def late() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            await intake.post(body("n4", words="other"))

        await asyncio.gather(*(intake.post(body(f"n{number}", words="other")) for number in range(4)), late())
        assert [len(decided.alerts) for decided in engine.decided if decided.alerts] == [5, 5]


async def test_who_is_not_answered_when_the_monitor_stops_hears_that(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        waits = asyncio.create_task(intake.post(body("a")))
        await asyncio.sleep(0)
    with pytest.raises(IntakeStopped):
        await waits


async def test_many_alerts_that_join_at_once_are_one_line_of_the_history(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        await intake.post(body("first"))
        await intake.post(body(*(f"n{number}" for number in range(40)), words="full"))
        await intake.post(body("x", "y", words="nearly full"))
    (incident,) = open_incidents(store)
    texts = [entry.text for entry in store.incidents.timeline(incident.id) if entry.kind == "alert"]
    assert texts == [f"also: {'; '.join(['full'] * 10)}; and 30 more", "also: nearly full", "also: nearly full"]


async def test_only_the_sources_of_rules_are_read_of_what_fires(store: Store, clock: SetClock) -> None:
    async with taking(store, clock) as (intake, _):
        await intake.post(body("a", "b", group="HostDown"))
        await intake.post(body("c", group="files"))

    def names(*words: tuple[str, ...]) -> list[str]:
        return sorted(dict(alert.labels)["instance"] for alert in store.incidents.firing_among(words))

    assert names(("HostDown",)) == ["a", "b"]
    assert names(("HostDown", "DiskFull"), ("nobody",)) == ["a", "b"]
    assert names(("files",), ("HostDown",)) == names(()) == ["a", "b", "c"]
    assert names() == names(("Host",)) == []
    with store.incidents.each_firing() as firing:
        assert len(list(firing)) == 3
