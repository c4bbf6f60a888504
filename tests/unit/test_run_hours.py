"""Runs counted by hour, whatever the store and the clock do."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from monitor.domain import CheckResult, Outcome
from monitor.runhours import RunHours
from monitor.store import RunHour

T0 = datetime(2026, 3, 1, 11, 59, 59, tzinfo=UTC)
STEPS = st.tuples(st.integers(-4000, 4000), st.sampled_from(Outcome), st.sampled_from(["a", "b"]), st.sampled_from(["", "take", "fail"]))


def result(instance: str, outcome: Outcome, at: datetime) -> CheckResult:
    return CheckResult(f"look/{instance}", "look", instance, outcome, at, 0.5)


def test_an_instance_has_one_row_an_hour() -> None:
    hours = RunHours()
    for second in range(3):
        hours.see(result("a", Outcome.OK, T0 + timedelta(seconds=second)))
    hours.see(result("a", Outcome.BLIND, T0))
    first, second = sorted(hours.take(), key=lambda one: one.hour)
    assert first == RunHour("look/a", T0.replace(hour=11, minute=0, second=0), "look", "a", 1, 0, 1, 1.0, 0.5)
    assert second == RunHour("look/a", T0.replace(hour=12, minute=0, second=0), "look", "a", 2, 0, 0, 1.0, 0.5)
    assert hours.take() == ()


@given(st.lists(STEPS, max_size=40))
def test_no_run_is_lost_or_counted_twice(steps: list[tuple[int, Outcome, str, str]]) -> None:
    hours, at = RunHours(), T0
    stored: Counter[tuple[str, Outcome]] = Counter()
    expected: Counter[tuple[str, Outcome]] = Counter()

    def store(rows: tuple[RunHour, ...]) -> None:
        assert len({(one.instance, one.hour) for one in rows}) == len(rows)
        for one in rows:
            counts = {Outcome.OK: one.ok, Outcome.FOUND: one.found, Outcome.BLIND: one.blind}
            stored.update({(one.instance, outcome): count for outcome, count in counts.items()})

    for step_s, outcome, instance, then in steps:
        at += timedelta(seconds=step_s)  # backwards, too, as when the clock is set
        hours.see(result(instance, outcome, at))
        expected[f"look/{instance}", outcome] += 1
        if then == "take":
            store(hours.take())
        elif then == "fail":
            hours.give_back(hours.take())
    store(hours.take())
    assert +stored == expected
