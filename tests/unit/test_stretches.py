"""Stretches: what is told apart, what is kept of the moments, and how seldom a quiet check is written."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.severity import SeverityRule, rate
from monitor.config.settings import CheckInstance
from monitor.domain import CheckResult, Finding, FindingKind, Observed, Outcome, Severity
from monitor.plugins import CheckContext
from monitor.stretches import EARLY, EXTEND_EVERY_S, Stretch, Stretches
from tests.support.world import instance

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DOWN, FULL = FindingKind("Down", Severity.P1, None, "down"), FindingKind("Full", Severity.P3, None, "full")


async def nothing(_: CheckContext) -> Observed:
    return Observed()


SUBJECT = instance(nothing)


class Book:
    """Collects stretches, of results so many seconds apart."""

    def __init__(self, subject: CheckInstance = SUBJECT) -> None:
        self.subject, self.now, self.stretches, self.written = subject, T0, Stretches(), dict[datetime, Stretch]()
        self.writes = 0
        self.stretches.take(0.0)

    def see(self, outcome: Outcome, *findings: Finding, after_s: float = 15, quiet: bool = False, took_s: float = 0) -> None:
        self.now += timedelta(seconds=after_s)
        observed = Observed(findings=findings)
        result = CheckResult(
            self.subject.key, "look", "auth", outcome, self.now - timedelta(seconds=took_s), took_s, observed,
            "no" if outcome is Outcome.BLIND else None,
        )  # fmt: skip
        self.stretches.see(self.subject, rate(result, self.subject.severities, self.now), quiet=quiet)

    def write(self, *, whole: bool = False) -> list[Stretch]:
        taken = self.stretches.take((self.now - T0).total_seconds(), whole=whole)
        self.written |= {one.first_at: one for one in taken}
        self.writes += len(taken)
        return list(self.written.values())


def test_the_same_is_one_stretch_and_texts_and_facts_make_no_other() -> None:
    book = Book()
    for number in range(3):
        book.see(Outcome.FOUND, DOWN(f"text {number}", facts={"n": number}))
    (one,) = book.write(whole=True)
    assert (one.runs, one.first_at, one.last_at, one.seen[0].summary) == (
        3,
        T0 + timedelta(seconds=15),
        T0 + timedelta(seconds=45),
        "text 0",
    )
    assert (one.starts, list(one.moments())) == (True, [T0 + timedelta(seconds=15 * n) for n in (1, 2, 3)])


@pytest.mark.parametrize(
    "other",
    [
        (FULL("x"),),
        (DOWN("x"), FULL("x")),
        (DOWN("x", labels={"port": 1}),),
        (DOWN("x", severity=Severity.P2),),
    ],
)
def test_another_finding_label_or_severity_begins_another(other: tuple[Finding, ...]) -> None:
    book = Book()
    book.see(Outcome.FOUND, DOWN("x"))
    book.see(Outcome.FOUND, *other)
    assert [(one.runs, one.starts) for one in book.write(whole=True)] == [(1, True), (1, False)]


def test_the_order_of_findings_begins_no_other() -> None:
    book = Book()
    book.see(Outcome.FOUND, DOWN("x"), FULL("x"))
    book.see(Outcome.FOUND, FULL("x"), DOWN("x"))
    assert [one.runs for one in book.write(whole=True)] == [2]


def test_a_value_that_moves_begins_another_but_not_with_every_run() -> None:
    book = Book()
    for value in (80.0, 99.0, 60.0, 80.0, 81.0, 99.0):  # 15 s apart
        book.see(Outcome.FOUND, FULL("x", value=value))
    assert [(one.runs, one.seen[0].value) for one in book.write(whole=True)] == [(5, 80.0), (1, 99.0)]


def test_severity_is_kept_as_it_was_said_and_as_it_was_judged() -> None:
    rules = (SeverityRule(Severity.P2, finding="Full", at_least=90),)
    book = Book(replace(SUBJECT, severities=rules))
    book.see(Outcome.FOUND, FULL("x", value=95.0))
    (one,) = book.write()
    assert (one.seen[0].severity, one.seen[0].said) == (Severity.P2, None)


def test_a_quiet_check_is_written_when_it_changes_now_and_then_and_at_the_end() -> None:
    book = Book()
    for _ in range(400):
        book.see(Outcome.OK, quiet=True)
        book.write()
    assert book.writes == 1 + int(400 * 15 / EXTEND_EVERY_S)
    (one,) = book.write(whole=True)
    assert one.runs == 400


def test_while_an_alert_waits_for_good_runs_each_of_them_is_written_soon() -> None:
    book = Book()
    book.see(Outcome.FOUND, DOWN("x"))
    book.write()
    for runs in range(1, EARLY + 1):
        book.see(Outcome.OK)
        assert [one.runs for one in book.write()] == [1, runs]


def test_a_clock_that_is_set_back_begins_another() -> None:
    book = Book()
    book.see(Outcome.OK)
    book.see(Outcome.OK, after_s=-600)
    assert [one.runs for one in book.write(whole=True)] == [1, 1]


def test_what_could_not_be_written_is_written_with_the_next() -> None:
    book = Book()
    book.see(Outcome.FOUND, DOWN("x"))
    book.stretches.give_back(book.stretches.take(15.0))
    book.see(Outcome.OK)
    assert [(one.outcome, one.runs) for one in book.write()] == [(Outcome.FOUND, 1), (Outcome.OK, 1)]


def test_a_check_that_is_configured_otherwise_or_removed_begins_another() -> None:
    book = Book()
    book.see(Outcome.OK)
    book.subject = replace(SUBJECT, check=replace(SUBJECT.check, name="other"))
    book.stretches.adopt({SUBJECT.key})
    book.see(Outcome.OK)
    book.stretches.adopt(set())
    book.see(Outcome.OK)
    assert [(one.runs, one.starts) for one in book.write(whole=True)] == [(1, True), (1, False), (1, True)]


steps = st.lists(
    st.tuples(st.sampled_from(Outcome), st.sampled_from([1, 2, 15, 60]), st.booleans(), st.booleans()), min_size=1, max_size=60
)


@given(steps)
def test_nothing_is_lost_and_beginnings_are_exact(script: list[tuple[Outcome, int, bool, bool]]) -> None:
    book, saw = Book(), list[tuple[datetime, Outcome]]()
    for outcome, after_s, quiet, writes in script:
        book.see(outcome, *((DOWN("x"),) if outcome is Outcome.FOUND else ()), after_s=after_s, quiet=quiet, took_s=0.5)
        saw.append((book.now, outcome))
        if writes:
            book.write()
    told = [(at, one.outcome) for one in book.write(whole=True) for at in one.moments()]
    assert [outcome for _, outcome in told] == [outcome for _, outcome in saw]
    place = 0
    for one in book.written.values():
        exact = saw[place : place + min(one.runs, EARLY)]
        assert [at for at, _ in told[place : place + len(exact)]] == [at for at, _ in exact]
        assert told[place + one.runs - 1][0] == one.last_at
        place += one.runs
