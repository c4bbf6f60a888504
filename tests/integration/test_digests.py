"""Many incidents at once, on SQLite and PostgreSQL: few notifications, nothing lost, the order kept, and the end where the begin was."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from alerts.digesting import Manner, Spoken
from alerts.escalation import acknowledge
from monitor.clock import SystemClock
from monitor.digested import acknowledge_digest
from monitor.domain import (
    Decision,
    Digest,
    EscalationStep,
    Incident,
    IncidentState,
    Intent,
    Notification,
    Outcome,
    Receipt,
    Severity,
    Transition,
)
from monitor.errors import UsageError
from monitor.store import Store
from monitor.store.claims import Claim, Claimant, Voice
from services.cluster import Cluster
from tests.conftest import fresh_database
from tests.integration.test_store import T0, put, result

MANNER = Manner(digest_from=3, gather_s=10, most=1000)
SERVICES = [f"service{number:02}" for number in range(12)]
LATER = T0 + timedelta(seconds=10)


@pytest.fixture(params=["sqlite", "pg18"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'monitor.db'}"
        return
    cluster: Cluster = request.getfixturevalue(request.param)
    for dsn in fresh_database(cluster):
        parts = conninfo_to_dict(dsn)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{parts['port']}/{parts['dbname']}"


class World:
    """A store in which the channel ``chat`` tells three incidents a minute one by one; ``page`` tells all alone and is not looked at."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.spoken: dict[str, Spoken] = {}

    def claim(self, now=T0, owner: str = "me", room: int = 10) -> Claim:  # type: ignore[no-untyped-def]
        voices = {"chat": Voice(room, MANNER, self.spoken.get("chat", Spoken())), "page": Voice(0)}
        claimed = self.store.outbox.claim(Claimant(owner, now, 60, "http://monitor"), voices, Voice(10))
        self.spoken |= claimed.spoken
        return claimed

    def digest(self, now=LATER, owner: str = "me") -> Digest:  # type: ignore[no-untyped-def]
        (found,) = self.claim(now, owner).sends
        assert isinstance(found, Digest)
        return found

    def fail(self, *services: str, at=T0) -> None:  # type: ignore[no-untyped-def]
        for service in services:
            put(self.store, result(Outcome.FOUND, service), at)

    def recover(self, *services: str, at=T0) -> None:  # type: ignore[no-untyped-def]
        for service in services:
            put(self.store, result(Outcome.OK, service), at)

    def history(self, incident_id: str) -> list[str]:
        return [entry.text for entry in self.store.incidents.timeline(incident_id)]

    def begun(self) -> Digest:
        """Twelve incidents open; three were told alone, nine are in the digest that is returned."""
        self.fail(*SERVICES)
        for sending in self.claim().sends:
            assert self.store.outbox.sent(sending, "me", Receipt("alone"), T0)
        return self.digest()

    def told(self) -> Digest:
        """The same, and it arrived."""
        digest = self.begun()
        assert self.store.outbox.sent(digest, "me", Receipt("card", (("ts", "7"),)), LATER)
        return digest


@pytest.fixture
def world(url: str) -> Iterator[World]:
    opened = World(url)
    yield opened
    opened.store.close()


def test_many_at_once_are_a_few_alone_and_one_digest_and_each_timeline_says_so(world: World) -> None:
    world.fail(*SERVICES)
    first = world.claim()
    assert [sending.incident.service for sending in first.sends if isinstance(sending, Notification)] == SERVICES[:3]
    assert world.claim().sends == ()  # the others gather
    assert world.store.outbox.untried_s(T0 + timedelta(seconds=5)) == 5  # of the page's rows, which nobody sends here
    assert world.store.outbox.next_due(frozenset({"page"})) == LATER
    for sending in first.sends:
        assert world.store.outbox.sent(sending, "me", Receipt("alone"), T0)
    digest = world.digest()
    assert [item.service for item in digest.items] == SERVICES[3:]
    assert (digest.tally.total, digest.tally.open, digest.first_receipt, digest.attempts) == (9, 9, None, 1)
    assert digest.tally.services[0] == ("service03", 1)
    assert world.store.outbox.sent(digest, "me", Receipt("card"), LATER)
    assert "triggered delivered to chat in a digest of 9" in world.history(digest.items[0].id)
    assert world.store.outbox.digests_of(digest.items[0].id) == (("chat", digest.key, 9),)
    assert world.claim(LATER + timedelta(hours=1)).sends == ()


def test_killed_between_send_and_mark_the_same_digest_is_sent_under_the_same_key(world: World) -> None:
    before = world.begun()
    world.fail("another", at=LATER)
    world.spoken.clear()  # the process is gone, and its memory; its lease is over
    after = LATER + timedelta(seconds=61)
    again = next(sending for sending in world.claim(after, "two").sends if isinstance(sending, Digest))
    assert (again.key, [item.id for item in again.items]) == (before.key, [item.id for item in before.items])
    assert again.attempts == 2
    assert not world.store.outbox.sent(before, "me", Receipt(), after)
    assert world.store.outbox.sent(again, "two", Receipt(), after)
    assert not world.store.outbox.sent(again, "two", Receipt(), after)


def test_a_failed_digest_is_tried_again_whole_and_in_order(world: World) -> None:
    digest = world.begun()
    world.recover(*SERVICES[3:], at=LATER)
    at = LATER + timedelta(seconds=30)
    world.store.outbox.retry(digest, "me", "429", at)
    assert world.claim(LATER + timedelta(seconds=20)).sends == ()  # no end before its begin
    again = world.digest(at)
    assert (again.key, again.attempts, len(again.items)) == (digest.key, 2, 9)
    assert {item.transition for item in again.items} == {Transition.TRIGGERED}
    assert world.store.outbox.sent(again, "me", Receipt("card"), at)
    ends = world.digest(at + timedelta(seconds=10))
    assert {item.transition for item in ends.items} == {Transition.RESOLVED}


def test_given_up_on_it_is_visible_and_is_tried_again_whole(world: World) -> None:
    digest = world.begun()
    world.store.outbox.bury(digest, "me", "401: wrong token", LATER)
    assert "triggered could not be delivered to chat: 401: wrong token" in world.history(digest.items[0].id)
    (dead,) = [queue for queue in world.store.outbox.queues() if queue.channel == "chat"]
    assert (dead.dead, dead.last_error) == (9, "401: wrong token")
    rows = [row for row in world.store.outbox.undelivered() if row.digest == digest.key]
    assert len(rows) == len(world.store.outbox.to_reroute("chat", T0)) == 9
    assert world.store.outbox.revive("digest-none", LATER) == 0
    assert world.store.outbox.revive(rows[4].id, LATER) == 9
    again = world.digest()
    assert (again.key, len(again.items)) == (digest.key, 9)


def test_what_follows_goes_where_it_was_told_and_knows_how_all_of_it_stands(world: World) -> None:
    digest = world.told()
    home, services = digest.key, [item.service for item in digest.items]
    at = LATER + timedelta(minutes=1)
    world.store.incidents.change(digest.items[0].id, lambda found: acknowledge(found, "ada", at), at)
    world.recover(*services[4:], at=at)
    follow = world.digest(at + timedelta(seconds=10))
    assert follow.home == home
    assert follow.key.startswith(f"{home}/")
    assert sorted(item.transition.value for item in follow.items) == ["acked", *["resolved"] * 5]
    assert (follow.tally.total, follow.tally.open, follow.tally.acked, follow.tally.over) == (9, 3, 1, 5)
    assert [item.service for item in follow.tally.worst] == services[:4]
    assert follow.first_receipt == Receipt("card", (("ts", "7"),))
    world.recover(*services[:4], at=at)
    assert world.claim(at + timedelta(seconds=20)).sends == ()  # one at a time in a conversation
    assert world.store.outbox.sent(follow, "me", Receipt("line"), at + timedelta(seconds=20))
    last = world.digest(at + timedelta(seconds=40))
    assert (last.home, last.tally.unresolved, last.tally.over) == (home, 0, 9)
    assert last.first_receipt == Receipt("card", (("ts", "7"),))
    assert len(last.tally.worst) == 9  # of what is over, all are shown


def test_what_was_told_alone_is_followed_up_alone(world: World) -> None:
    world.told()
    at = LATER + timedelta(minutes=5)
    world.recover(*SERVICES[:3], at=at)
    ends = world.claim(at).sends
    assert [type(sending) for sending in ends] == [Notification] * 3
    assert all(sending.first_receipt == Receipt("alone") for sending in ends)


def test_the_follow_ups_of_a_digest_that_never_arrived_are_put_aside(world: World) -> None:
    digest = world.begun()
    world.store.outbox.bury(digest, "me", "401", LATER)
    world.recover(*[item.service for item in digest.items], at=LATER)
    assert world.claim(LATER + timedelta(minutes=1)).sends == ()


def test_taking_a_digest_takes_every_incident_in_it_once(world: World) -> None:
    digest = world.told()
    world.recover(digest.items[0].service, at=LATER)
    assert acknowledge_digest(world.store, digest.key, "Ben (PagerDuty)", SystemClock(), note="from the pager") == 8
    assert acknowledge_digest(world.store, digest.key, "Ben (PagerDuty)", SystemClock()) == 0
    states = {item.id: world.store.incidents.find(item.id) for item in digest.items}
    assert [found.state for found in states.values()] == [IncidentState.RESOLVED, *[IncidentState.ACKED] * 8]
    assert {found.acked_by for found in states.values()} == {None, "Ben (PagerDuty)"}
    assert "from the pager" in world.history(digest.items[1].id)
    with pytest.raises(UsageError, match="no digest"):
        acknowledge_digest(world.store, "digest-none", "Ben", SystemClock())


def test_a_storm_that_no_statistics_know_of_yet_is_told_in_time(world: World) -> None:
    """PostgreSQL ends a statement after 15 seconds: a plan that joins all with all would not get there."""
    chain = (EscalationStep(0, "on-call", ("chat",)),)
    storm = [
        Incident(
            id=f"{number:012x}", group=f"g{number}", code=None, service=f"s{number % 50}", severity=Severity.P2, state=IncidentState.OPEN,
            title="Down", summary="gone", evidence=(), first_step="", opened_at=T0, chain=chain, chain_since=T0, told=("chat",),
        )
        for number in range(10_000)
    ]  # fmt: skip
    over = [incident._replace(state=IncidentState.RESOLVED, resolved_at=LATER) for incident in storm]
    told = 0
    for kind, incidents, at in ((Transition.TRIGGERED, storm, T0), (Transition.RESOLVED, over, LATER)):
        intents = tuple(Intent(incident.id, kind, "chat", "why") for incident in incidents)
        decided = Decision(incidents=tuple(incidents), intents=intents)
        world.store.incidents.decide("", (), lambda known, decided=decided: decided, at)  # type: ignore[misc]
        for now in (at + timedelta(seconds=10 * step) for step in range(12)):
            while claimed := world.claim(now):
                for sending in claimed.sends:
                    told += len(sending.items) if isinstance(sending, Digest) else 1
                    assert world.store.outbox.sent(sending, "me", Receipt("x"), now)
            assert world.store.outbox.untried_s(now) == 0
            if world.store.outbox.next_due() is None:
                break
    assert told == 2 * len(storm)
    assert world.store.outbox.queues() == ()


def test_two_replicas_never_send_the_same_digest(world: World, url: str) -> None:
    world.fail(*SERVICES)
    world.claim()
    other = World(url)
    mine, theirs = world.claim(LATER, "one").sends, other.claim(LATER, "two").sends
    assert len(mine) == 1
    assert theirs == ()
    other.store.close()
