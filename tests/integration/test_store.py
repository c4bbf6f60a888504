"""One suite over SQLite and PostgreSQL: the store keeps decisions whole, and the outbox in order."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from alerts.decide import Known, Policy, decide, groups_of
from alerts.escalation import acknowledge, mute
from alerts.silences import expire, make
from monitor.domain import (
    AlertPolicy,
    AuditEntry,
    CheckResult,
    Decision,
    EscalationStep,
    FindingKind,
    Intent,
    Notification,
    Observed,
    Outcome,
    Receipt,
    ResponsePolicy,
    Severity,
    Transition,
)
from monitor.errors import StoreError, UsageError
from monitor.store import Causes, Database, Recorded, RunHour, Store, StretchStore, hour_of
from monitor.store.claims import Claimant, Voice
from monitor.store.database import MIGRATIONS, read_revisions
from monitor.stretches import Seen, Stretch
from services.cluster import Cluster
from tests.support.databases import state_url

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DOWN = FindingKind("ServiceDown", Severity.P1, "INC-001", "down")
CHAIN = (EscalationStep(0, "on-call", ("page", "chat")), EscalationStep(900, "lead", ("lead",)))
POLICY = Policy(alert=AlertPolicy(fail_after=1, recover_after=1), chains=dict.fromkeys(Severity, CHAIN))


@pytest.fixture(params=["sqlite", "pg18", "pg15"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from state_url(None if request.param == "sqlite" else request.getfixturevalue(request.param), tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


def result(outcome: Outcome, service: str = "auth", at: datetime = T0) -> CheckResult:
    findings = (DOWN("gone", facts={"seen": "refused"}),) if outcome is Outcome.FOUND else ()
    return CheckResult(f"http/{service}", "http", service, outcome, at, 0.25, Observed(findings=findings))


def put(store: Store, seen: CheckResult, now: datetime = T0) -> None:
    store.incidents.decide(seen.instance, groups_of(seen), lambda known: decide(known, seen, POLICY, now), now)


def claim(store: Store, now: datetime = T0, owner: str = "me", skip: frozenset[str] = frozenset()) -> list[Notification]:
    voices = dict.fromkeys(skip, Voice(0))
    sends = store.outbox.claim(Claimant(owner, now, 60, "http://monitor"), voices, Voice(10)).sends
    assert all(isinstance(sending, Notification) for sending in sends)
    return [sending for sending in sends if isinstance(sending, Notification)]


def test_a_decision_survives_closing_and_opening(url: str) -> None:
    first = Store(url)
    put(first, result(Outcome.FOUND))
    before = first.incidents.list(unresolved=True)
    first.close()
    second = Store(url)
    assert second.incidents.list(unresolved=True) == before
    assert second.incidents.live_instances() == {"http/auth"}
    assert [entry.kind for entry in second.incidents.timeline(before[0].id)] == ["opened", "triggered"]
    second.close()


def test_a_decision_that_fails_leaves_nothing(store: Store) -> None:
    def raises(known: Known) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        store.incidents.decide("http/auth", (), raises, T0)  # type: ignore[arg-type]
    put(store, result(Outcome.FOUND))
    (incident,) = store.incidents.list(unresolved=True)
    decided = decide(Known(), result(Outcome.FOUND, at=T0 + timedelta(hours=1)), POLICY, T0 + timedelta(hours=1))
    with pytest.raises(StoreError):  # a second open incident of the group: refused by the database, whole
        store.incidents.decide("http/auth", (), lambda known: decided, T0)
    assert store.incidents.list(unresolved=True) == (incident,)
    assert len(claim(store)) == 2


@pytest.mark.parametrize(("looks_back", "seen"), [(None, ["data"]), (timedelta(minutes=5), ["auth", "data"]), (timedelta(0), ["data"])])
def test_a_cause_that_is_just_over_is_a_suspect_for_who_looks_back(store: Store, looks_back: timedelta | None, seen: list[str]) -> None:
    for service in ("auth", "data"):
        put(store, result(Outcome.FOUND, service))
    put(store, result(Outcome.OK), T0 + timedelta(minutes=1))
    now, found = T0 + timedelta(minutes=4), []
    causes = Causes(instances=frozenset({"http/auth", "http/data"}), since=None if looks_back is None else now - looks_back)

    def look(known: Known) -> Decision:
        found.extend(sorted(cause.service for cause in known.causes))
        return Decision()

    store.incidents.decide("log/nginx", (), look, now, causes)
    assert found == seen


def test_rows_of_one_channel_come_in_order_and_only_after_the_one_before(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    put(store, result(Outcome.OK))
    first = claim(store)
    assert {(row.channel, row.transition) for row in first} == {("page", Transition.TRIGGERED), ("chat", Transition.TRIGGERED)}
    assert claim(store) == []
    page = next(row for row in first if row.channel == "page")
    assert store.outbox.sent(page, "me", Receipt("id-1", (("ts", "1"),)), T0)
    (resolve,) = claim(store)
    assert (resolve.channel, resolve.transition, resolve.first_receipt) == ("page", Transition.RESOLVED, Receipt("id-1", (("ts", "1"),)))


def test_a_lease_that_ran_out_is_claimed_again_and_the_late_owner_finishes_nothing(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    mine = claim(store, owner="one")
    later = T0 + timedelta(seconds=61)
    theirs = claim(store, later, owner="two")
    assert {row.id for row in mine} == {row.id for row in theirs}
    assert not store.outbox.sent(mine[0], "one", Receipt(), later)
    assert store.outbox.sent(theirs[0], "two", Receipt(), later)


def test_a_released_row_is_free_at_once_and_a_retried_one_waits(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    claim(store, owner="one")
    store.outbox.release("one")
    rows = claim(store, owner="two")
    assert len(rows) == 2
    assert store.outbox.next_due() == T0 + timedelta(seconds=60)
    store.outbox.retry(rows[0], "two", "429", T0 + timedelta(seconds=30))
    assert claim(store) == []
    assert store.outbox.next_due() == T0 + timedelta(seconds=30)
    (again,) = claim(store, T0 + timedelta(seconds=30))
    assert again.attempts == 3
    queue = next(q for q in store.outbox.queues() if q.channel == rows[0].channel)
    assert (queue.pending, queue.dead, queue.oldest, queue.last_error) == (1, 0, T0, "429")


def test_a_row_that_waits_for_the_one_before_is_not_due(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    put(store, result(Outcome.OK))
    for row in claim(store):
        store.outbox.retry(row, "me", "429", T0 + timedelta(hours=1))
    assert store.outbox.next_due() == T0 + timedelta(hours=1)


def test_a_period_is_taken_once(store: Store) -> None:
    store.reports.want("daily/2026-03-01", T0)
    later = T0 + timedelta(minutes=5)
    assert store.reports.take("daily/2026-03-01", T0, later)
    assert not store.reports.take("daily/2026-03-01", T0, later)
    assert store.reports.take("daily/2026-03-01", later, later + timedelta(minutes=5))


def test_the_resolve_of_a_trigger_that_never_arrived_is_not_sent(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    for row in claim(store):
        store.outbox.bury(row, "me", "401", T0)
    put(store, result(Outcome.OK))
    assert claim(store) == []
    assert {queue.dead for queue in store.outbox.queues()} == {1}
    (incident,) = store.incidents.list(unresolved=False)
    assert "could not be delivered to page: 401" in " ".join(entry.text for entry in store.incidents.timeline(incident.id))


def test_full_channels_are_skipped_and_the_worst_comes_first(store: Store) -> None:
    put(store, result(Outcome.FOUND, "auth"))
    put(store, result(Outcome.FOUND, "data"))
    assert {row.channel for row in claim(store, skip=frozenset({"page"}))} == {"chat"}


def test_escalation_is_due_when_its_time_comes_and_not_after_an_acknowledgement(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    due = T0 + timedelta(minutes=15)
    assert store.incidents.due(due - timedelta(seconds=1)) == ()
    (incident_id,) = store.incidents.due(due)
    incident, decided = store.incidents.change(incident_id[:5], lambda found: acknowledge(found, "ada", due), due)
    assert decided
    assert incident.acked_by == "ada"
    assert store.incidents.due(due) == ()


@pytest.mark.parametrize("wrong", ["", "zzzz", "a b", "%", "'; DROP TABLE incidents"])
def test_an_unknown_incident_is_one_clear_error(store: Store, wrong: str) -> None:
    with pytest.raises(UsageError, match="no incident"):
        store.incidents.find(wrong)


def test_history_adds_up_and_is_pruned(store: Store) -> None:
    for minute in range(90):
        outcome = Outcome.BLIND if minute % 30 == 0 else Outcome.OK
        one = RunHour("look/auth", hour_of(T0 + timedelta(minutes=minute)), "look", "auth")
        one.add(outcome, 0.25)
        store.history.record([one])
    store.history.record([])
    (count,) = store.history.counts(T0, T0 + timedelta(hours=2))
    assert (count.ok, count.blind, count.found, count.mean_s, count.max_s) == (87, 3, 0, 0.25, 0.25)
    store.history.prune(T0 + timedelta(hours=1))
    (count,) = store.history.counts(T0, T0 + timedelta(hours=2))
    assert count.ok + count.blind == 30


def test_a_stretch_grows_in_place_and_is_pruned_by_its_end(store: Store) -> None:
    seen = (Seen("Down", (("port", "1"),), Severity.P1, None, None, "down"), Seen("Full", (), Severity.P3, Severity.P2, 91.5, "full"))
    bad = Stretch("http/auth", T0, T0, 1, Outcome.FOUND, seen, "", (), "abc", starts=True)
    blind = Stretch("http/auth", T0 + timedelta(hours=2), T0 + timedelta(hours=2), 1, Outcome.BLIND, (), "refused", (), "abc", starts=False)
    store.stretches.save([bad, blind])
    longer = replace(bad, last_at=T0 + timedelta(hours=1), runs=3, early=(2_000_000, 3_600_000_000))
    store.stretches.save([bad, longer])
    assert list(store.stretches.all()) == [longer, blind]
    store.stretches.prune(T0 + timedelta(hours=1, seconds=1))
    assert list(store.stretches.all()) == [blind]


def test_what_is_recorded_is_read_and_never_written(store: Store, url: str) -> None:
    stretch = Stretch("http/auth", T0, T0, 1, Outcome.OK, (), "", (), "abc", starts=True)
    store.stretches.save([stretch])
    recorded = Recorded(url)
    try:
        assert (list(recorded.stretches()), recorded.sent(), recorded.incidents(), recorded.timeline()) == ([stretch], (), (), ())
    finally:
        recorded.close()
    database = Database(url, read_only=True)
    with pytest.raises(StoreError, match=r"read-only|readonly"):
        StretchStore(database).prune(T0 + timedelta(hours=1))
    database.close()
    assert list(store.stretches.all()) == [stretch]


def test_a_report_period_is_wanted_once_and_sent_once(store: Store) -> None:
    store.reports.want("daily/2026-03-01", T0)
    store.reports.want("daily/2026-03-01", T0)
    assert store.reports.due(T0) == ("daily/2026-03-01",)
    store.reports.failed("daily/2026-03-01", "refused", T0 + timedelta(minutes=5))
    assert store.reports.due(T0) == ()
    store.reports.sent("daily/2026-03-01", T0)
    assert store.reports.due(T0 + timedelta(days=1)) == ()
    store.reports.want("daily/2026-03-01", T0)
    assert store.reports.due(T0 + timedelta(days=1)) == ()
    assert store.reports.last("daily/") == "daily/2026-03-01"


def test_the_journal_keeps_what_was_appended(store: Store) -> None:
    entries = [AuditEntry(T0, "cancel-stuck-jobs", "d", phase, "ada", "stuck") for phase in ("intent", "applied")]
    for entry in entries:
        store.journal.append(entry)
    assert store.journal.entries("cancel-stuck-jobs", T0) == tuple(entries)
    assert store.journal.entries("other", T0) == ()


def test_pruning_forgets_only_what_ended(store: Store) -> None:
    put(store, result(Outcome.FOUND, "auth"))
    put(store, result(Outcome.FOUND, "data"))
    put(store, result(Outcome.OK, "data"))
    for row in claim(store):
        store.outbox.sent(row, "me", Receipt(), T0)
    for row in claim(store):
        store.outbox.sent(row, "me", Receipt(), T0)
    store.incidents.prune(T0 + timedelta(days=1))
    assert [incident.service for incident in store.incidents.list(unresolved=False)] == ["auth"]


# --- bad days --------------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(store: Store, url: str) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer version"):
        Store(url)


def test_the_newest_revision_is_read_as_alembic_reads_it() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert read_revisions(MIGRATIONS) == ({script.revision for script in scripts.walk_revisions()}, set(scripts.get_heads()))
    assert len(scripts.get_heads()) == 1


def test_a_state_of_today_is_opened_without_what_migrates(store: Store, url: str) -> None:
    opens = (
        "import sys; from monitor.store import Store; Store(sys.argv[1]).close(); print(sorted({'alembic', 'mako'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", opens, url], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_locked_file_is_one_clear_error(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'monitor.db'}", busy_timeout_s=0.05)
    holder = sqlite3.connect(tmp_path / "monitor.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="another process holds the file locked"):
        put(store, result(Outcome.FOUND))
    holder.execute("ROLLBACK")
    holder.close()
    put(store, result(Outcome.FOUND))
    assert len(store.incidents.list(unresolved=True)) == 1
    store.close()


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "monitor.db").write_bytes(b"this is not a database, by any means" * 100)
    with pytest.raises(StoreError, match="not a state database"):
        Store(f"sqlite:///{tmp_path / 'monitor.db'}")


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="its folder cannot be made"):
        Store(f"sqlite:///{tmp_path / 'file' / 'monitor.db'}")


def test_an_unreachable_server_is_one_clear_error_without_its_password() -> None:
    with pytest.raises(StoreError) as caught:
        Store("postgresql+psycopg://someone:s3cret@127.0.0.1:1/state")
    assert "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_two_replicas_decide_one_incident(pg18: Cluster, tmp_path: Path) -> None:
    for address in state_url(pg18, tmp_path):
        one, two = Store(address), Store(address)
        put(one, result(Outcome.FOUND))
        put(two, result(Outcome.FOUND)._replace(started_at=T0 + timedelta(seconds=1)), T0 + timedelta(seconds=1))
        assert len(two.incidents.list(unresolved=False)) == 1
        assert len(claim(one)) == 2
        assert claim(two, owner="other") == []
        one.close()
        two.close()


def test_silences_are_kept_whole_found_by_a_beginning_and_forgotten_in_time(store: Store) -> None:
    first = make(['service="auth"', "x!~y"], T0, T0 + timedelta(hours=1), "anna", "why", T0)
    second = make(["a=b"], T0, T0 + timedelta(hours=2), "ben", "why not", T0)
    store.silences.save(first, second)
    assert store.silences.list() == (first, second)
    assert store.silences.list(since=T0 + timedelta(hours=1)) == (second,)
    store.silences.save(expire(second, T0 + timedelta(minutes=1)))
    assert store.silences.find(second.id[:13]).ends_at == T0 + timedelta(minutes=1)
    with pytest.raises(UsageError, match="no silence"):
        store.silences.find("zzz")
    store.silences.prune(T0 + timedelta(hours=1))
    assert store.silences.list() == (first,)


def test_everything_an_incident_knows_of_time_is_kept(store: Store) -> None:
    response = ResponsePolicy(within_s=60, ack_expires_s=120, remind_s=30)
    chain = (EscalationStep(0, "on-call", ("page",), ("anna",), business_hours=True),)
    policy = replace(POLICY, chains=dict.fromkeys(Severity, chain), responses=dict.fromkeys(Severity, response))
    look = result(Outcome.FOUND)
    decided = store.incidents.decide(look.instance, groups_of(look), lambda known: decide(known, look, policy, T0), T0)
    (opened,) = decided.incidents
    assert store.incidents.find(opened.id) == opened
    assert (opened.response, opened.chain) == (response, chain)
    assert store.incidents.due(T0 + timedelta(seconds=30)) == (opened.id,)
    muted, _ = store.incidents.change(opened.id, lambda known: mute(known, ("silence",), T0), T0)
    assert store.incidents.find(opened.id) == muted
    assert store.incidents.due(T0 + timedelta(days=1)) == ()


def test_what_waits_is_overtaken_by_what_says_more(store: Store) -> None:
    put(store, result(Outcome.FOUND))
    (incident,) = store.incidents.list(unresolved=True)
    remind = Decision(intents=(Intent(incident.id, Transition.REMINDED, "page", "still open"),), incidents=(incident,))
    store.incidents.change(incident.id, lambda _: remind, T0)
    rows = claim(store)
    assert sorted((row.channel, row.transition) for row in rows) == [("chat", Transition.TRIGGERED), ("page", Transition.TRIGGERED)]
    store.incidents.change(incident.id, lambda _: remind, T0)  # while the first is being sent: it may show what was before
    page = next(row for row in rows if row.channel == "page")
    assert store.outbox.sent(page, "me", Receipt("1"), T0)
    (reminder,) = claim(store)
    assert reminder.transition is Transition.REMINDED
    assert store.outbox.sent(reminder, "me", Receipt("2"), T0)
    store.incidents.change(incident.id, lambda known: acknowledge(known, "anna", T0), T0)
    put(store, result(Outcome.OK))
    assert [row.transition for row in claim(store)] == [Transition.RESOLVED]


def test_what_was_obeyed_is_known_until_its_time_has_come(store: Store) -> None:
    assert not store.obeyed.knows("slack v0=1")
    for _ in range(2):
        store.obeyed.add("slack v0=1", T0, T0 + timedelta(minutes=10))
    assert store.obeyed.knows("slack v0=1")
    assert not store.obeyed.knows("slack v0=2")
    store.obeyed.add("slack v0=2", T0 + timedelta(minutes=10), T0 + timedelta(minutes=20))
    assert (store.obeyed.knows("slack v0=1"), store.obeyed.knows("slack v0=2")) == (False, True)
