"""The seal of a plan changes exactly when something that will happen changes."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.domain import Plan, Step
from monitor.errors import PluginError
from runbook.digest import digest_of, sealed

# Small alphabets, so that equal plans are drawn often; values that look alike, so that a careless encoding is caught.
NAMES = st.sampled_from(["a", "b"])
MOMENT = datetime(2025, 12, 1, 2, 10, tzinfo=UTC)
SCALARS = st.sampled_from(
    [
        *(None, True, False, 0, 1, 1.0, "1", "None", "true", "", "a"),
        *(MOMENT, MOMENT.isoformat(), str(MOMENT), MOMENT.date(), "2025-12-01", timedelta(seconds=1), "0:00:01"),
        *(Decimal("1"), Decimal("1.0"), UUID(int=1), str(UUID(int=1)), b"1", "31"),
    ]
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.lists(SCALARS, max_size=2).map(tuple),
    st.dictionaries(st.sampled_from(["datetime", "bytes", "tuple", "map", "a"]), SCALARS, max_size=1),
)
STEPS = st.builds(
    Step,
    title=NAMES,
    sql=st.sampled_from(["UPDATE a", "UPDATE b"]),
    params=st.lists(st.tuples(NAMES, VALUES), max_size=2, unique_by=lambda pair: pair[0]).map(tuple),
    expect_rows=st.sampled_from([None, 0, 1]),
)
PLANS = st.builds(
    Plan,
    name=NAMES,
    service=NAMES,
    summary=NAMES,
    steps=st.lists(STEPS, max_size=2).map(tuple),
    params=st.lists(st.tuples(NAMES, NAMES), max_size=1).map(tuple),
    lock=NAMES,
)


def effect(plan: Plan) -> object:
    """What will happen, spelt out independently: types matter, the order of named parameters does not."""
    return (
        plan.name,
        plan.service,
        plan.lock,
        [(step.sql, {name: typed(value) for name, value in step.params}, step.expect_rows) for step in plan.steps],
    )


def typed(value: object) -> object:
    if isinstance(value, list | tuple):
        return (type(value), [typed(item) for item in value])
    if isinstance(value, dict):
        return (dict, {name: typed(item) for name, item in value.items()})
    return (type(value), str(value))


@given(PLANS, PLANS)
def test_two_plans_have_one_digest_exactly_when_they_do_the_same(one: Plan, other: Plan) -> None:
    assert (digest_of(one) == digest_of(other)) is (effect(one) == effect(other))


@given(PLANS, st.data())
def test_any_change_of_what_happens_changes_the_digest(plan: Plan, data: st.DataObject) -> None:
    changes = [
        {"name": plan.name + "x"},
        {"service": plan.service + "x"},
        {"lock": plan.lock + "x"},
        {"steps": (*plan.steps, Step("t", "UPDATE c"))},
    ]
    for index, step in enumerate(plan.steps):
        value = data.draw(VALUES)
        changed = [replace(step, sql=step.sql + " "), replace(step, expect_rows=7), replace(step, params=(*step.params, ("new", value)))]
        changes += [{"steps": (*plan.steps[:index], new, *plan.steps[index + 1 :])} for new in changed]
        changes.append({"steps": (*plan.steps[:index], *plan.steps[index + 1 :])})
    assert all(digest_of(replace(plan, **change)) != digest_of(plan) for change in changes)  # type: ignore[arg-type]


@given(PLANS, st.text(), st.text())
def test_words_for_people_change_nothing(plan: Plan, words: str, echoed: str) -> None:
    reworded = replace(
        plan, summary=words, params=(("limit", echoed),), digest="old", steps=tuple(replace(step, title=words) for step in plan.steps)
    )
    assert digest_of(reworded) == digest_of(plan)


@given(PLANS)
def test_sealing_twice_is_sealing_once(plan: Plan) -> None:
    assert sealed(sealed(plan)) == sealed(plan)
    assert sealed(replace(plan, lock="")).lock == f"{plan.name}/{plan.service}"


def test_a_date_is_not_a_time_and_an_hour_in_tokyo_is_another_text() -> None:
    tokyo = timezone(timedelta(hours=9))
    values: list[object] = [date(2025, 12, 1), datetime(2025, 12, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=tokyo)]
    assert len({digest_of(Plan("p", "s", "", (Step("t", "UPDATE a", (("v", value),)),))) for value in values}) == 3


def test_what_cannot_be_sealed_is_refused_with_its_type() -> None:
    with pytest.raises(PluginError, match=r"plan p: a parameter of type set cannot be sealed"):
        digest_of(Plan("p", "s", "", (Step("t", "UPDATE a", (("v", {1}),)),)))
