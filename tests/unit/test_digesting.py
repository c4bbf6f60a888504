"""Who hears many things at once: the choice of what a channel says next, as a table and as properties."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from alerts.digesting import LEAST, Batch, Due, Manner, Spoken, Turn, home_of, take_turn

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MANNER = Manner(digest_from=20, gather_s=10, most=1000)
NOBODY: frozenset[str] = frozenset()


def due(number: int, severity: int = 1, **changes: object) -> Due:
    row = Due(number, f"{number:012x}", severity, True, T0, 0, None, False, None)
    return row._replace(**changes)  # type: ignore[arg-type]


def ids(turn: Turn) -> list[int]:
    return [unit.id for unit in turn.sends if isinstance(unit, Due)]


def batches(turn: Turn) -> list[Batch]:
    return [unit for unit in turn.sends if isinstance(unit, Batch)]


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def test_few_are_told_one_by_one_the_worst_first() -> None:
    rows = [due(number, severity=1 + number // 10) for number in range(20)]
    turn = take_turn(rows, MANNER, Spoken(), 100, NOBODY, T0)
    assert ids(turn) == list(range(20))
    assert turn.held == ()


def test_what_is_too_much_gathers_and_is_then_told_together() -> None:
    rows = [due(number) for number in range(312)]
    first = take_turn(rows, MANNER, Spoken(), 4, NOBODY, T0)
    assert ids(first) == [0, 1, 2, 3]
    assert first.held == ((later(10), tuple(range(20, 312))),)
    second = take_turn(rows[4:20], MANNER, first.spoken, 100, NOBODY, later(1))
    assert ids(second) == list(range(4, 20))
    late = [due(number, created_at=later(5)) for number in range(400, 500)]
    third = take_turn(late, MANNER, second.spoken, 100, NOBODY, later(5))
    assert (third.sends, third.held) == ((), ((later(10), tuple(range(400, 500))),))  # with the others
    last = take_turn(rows[20:] + late, MANNER, third.spoken, 100, NOBODY, later(10))
    (batch,) = batches(last)
    assert [row.id for row in batch.rows] == [*range(20, 312), *range(400, 500)]
    assert batch.home == batch.key == home_of(batch.key)


def test_what_is_full_waits_for_nothing() -> None:
    turn = take_turn([due(number) for number in range(2500)], MANNER, Spoken(), 100, NOBODY, T0)
    assert [len(batch.rows) for batch in batches(turn)] == [1000, 1000]
    assert [len(rows) for _, rows in turn.held] == [480]


def test_lesser_incidents_take_no_room_from_the_worse() -> None:
    lesser = take_turn([due(number, severity=3) for number in range(50)], MANNER, Spoken(), 100, NOBODY, T0)
    assert len(ids(lesser)) == 20
    worse = take_turn([due(900, severity=1)], MANNER, lesser.spoken, 100, NOBODY, later(1))
    assert ids(worse) == [900]
    again = take_turn([due(901, severity=3)], MANNER, worse.spoken, 100, NOBODY, later(2))
    assert again.sends == ()
    assert ids(take_turn([due(901, severity=3)], MANNER, again.spoken, 100, NOBODY, later(90))) == [901]


def test_a_handful_is_no_digest() -> None:
    said = Spoken(alone=((T0, 1),) * 20)
    few = [due(number) for number in range(LEAST - 1)]
    assert ids(take_turn(few, MANNER, said, 100, NOBODY, later(10))) == list(range(LEAST - 1))


def test_after_a_restart_nothing_gathers_anew() -> None:
    old = [due(number) for number in range(100)]
    turn = take_turn(old, MANNER, Spoken(), 100, NOBODY, later(11))
    assert [len(batch.rows) for batch in batches(turn)] == [80]


def test_a_clock_set_back_holds_nobody_up() -> None:
    said = Spoken(alone=((later(600), 1),) * 20, gathering={"": later(610)})
    turn = take_turn([due(number) for number in range(50)], MANNER, said, 100, NOBODY, T0)
    assert len(ids(turn)) == 20
    assert [until for until, _ in turn.held] == [later(10)]


def test_a_way_once_chosen_is_kept() -> None:
    tried = due(1, attempts=1)
    put = [due(number, attempts=2, digest="digest-aa") for number in (2, 3)]
    told_alone = due(4, opens=False, told=True)
    told_together = [due(number, opens=False, told=True, home="digest-bb") for number in range(5, 9)]
    said = Spoken(alone=((T0, 1),) * 20)
    turn = take_turn([tried, *put, told_alone, *told_together], MANNER, said, 100, NOBODY, later(10))
    assert ids(turn) == [1, 4]
    again, news = batches(turn)
    assert (again.key, [row.id for row in again.rows]) == ("digest-aa", [2, 3])
    assert (news.home, [row.id for row in news.rows]) == ("digest-bb", [5, 6, 7, 8])
    assert news.key.startswith("digest-bb/")
    never = take_turn([tried, *put, told_alone, *told_together], replace(MANNER, digest_from=None), said, 100, NOBODY, later(10))
    assert never.sends == turn.sends  # what was begun together goes on together


def test_one_thing_at_a_time_in_a_conversation() -> None:
    news = due(5, opens=False, told=True, home="digest-bb")
    again = due(6, attempts=1, digest="digest-bb/1", opens=False, told=True, home="digest-bb")
    held = take_turn([news, again], MANNER, Spoken(), 100, frozenset({"digest-bb"}), later(60))
    assert held.sends == ()
    assert {until for until, _ in held.held} == {later(70)}
    turn = take_turn([news, again], MANNER, Spoken(), 100, NOBODY, later(60))
    assert [batch.key for batch in batches(turn)] == ["digest-bb/1"]


def test_the_end_of_what_never_began_is_void() -> None:
    assert take_turn([due(1, opens=False)], MANNER, Spoken(), 4, NOBODY, T0).void == (1,)
    assert take_turn([due(1, opens=False)], None, Spoken(), 4, NOBODY, T0).void == (1,)


def test_without_a_manner_everything_is_told_one_by_one() -> None:
    turn = take_turn([due(number) for number in range(100)], None, Spoken(), 4, NOBODY, T0)
    assert ids(turn) == [0, 1, 2, 3]
    assert turn.held == ()


ROWS = st.builds(
    Due,
    id=st.integers(1, 10_000),
    incident_id=st.just("a"),
    severity=st.integers(1, 4),
    opens=st.booleans(),
    created_at=st.integers(-100, 0).map(later),
    attempts=st.integers(0, 3),
    digest=st.sampled_from([None, None, "digest-aa", "digest-aa/1", "digest-bb"]),
    told=st.booleans(),
    home=st.sampled_from([None, "digest-aa", "digest-bb"]),
).map(lambda row: row if row.told else row._replace(home=None))  # only what arrived has a home
FOUND = st.lists(ROWS, max_size=60, unique_by=lambda row: row.id).map(lambda rows: sorted(rows, key=lambda row: (row.severity, row.id)))


@given(FOUND, st.sampled_from([None, 0, 3, 20]), st.integers(1, 50), st.sets(st.sampled_from(["digest-aa", "digest-bb"])))
def test_every_row_is_sent_held_void_or_left_and_none_twice(rows: list[Due], digest_from: int | None, room: int, busy: set[str]) -> None:
    turn = take_turn(rows, Manner(digest_from, 10, 30), Spoken(), room, frozenset(busy), T0)
    sent = [row.id for unit in turn.sends for row in (unit.rows if isinstance(unit, Batch) else (unit,))]
    held = [row for _, found in turn.held for row in found]
    everything = [*sent, *held, *turn.void]
    assert len(everything) == len(set(everything))
    assert set(everything) <= {row.id for row in rows}
    assert len(turn.sends) <= room
    if len(turn.sends) < room:  # nothing is left behind while there is room
        assert set(everything) == {row.id for row in rows}
    homes = [batch.home for batch in batches(turn)]
    assert len(homes) == len(set(homes))
    assert not set(homes) & busy
    assert all(T0 < until <= later(10) for until, _ in turn.held)
