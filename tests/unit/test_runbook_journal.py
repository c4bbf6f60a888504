"""What the audit journal tells about earlier runs."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.domain import AuditEntry
from runbook.journal import next_allowed, unfinished

NOW = datetime(2025, 12, 1, 2, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def entries(*phases: str, minutes: int = 1) -> tuple[AuditEntry, ...]:
    """One entry a phase, the last of them one step before now."""
    count = len(phases)
    made: list[Any] = [NOW - timedelta(minutes=minutes * (count - index)) for index in range(count)]
    return tuple(
        AuditEntry(at, "p/s", f"d{index}", phase, "anna", "INC-003") for index, (at, phase) in enumerate(zip(made, phases, strict=True))
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phases", "digest"),
    [
        ((), None),
        (("intent", "applied", "verified"), None),
        (("intent", "failed"), None),
        (("intent",), "d0"),
        (("intent", "refused", "refused"), "d0"),
        (("intent", "applied", "intent"), "d2"),
        (("intent", "intent"), "d1"),
        (("intent", "failed", "refused", "intent", "applied"), None),
        (("refused", "refused"), None),
    ],
)
def test_an_intent_without_outcome_is_unfinished(phases: tuple[str, ...], digest: str | None) -> None:
    found = unfinished(entries(*phases))
    assert (found.digest if found else None) == digest


@pytest.mark.parametrize(
    ("phases", "minutes", "free_in"),
    [
        ((), 1, None),
        (("intent", "applied"), 1, None),
        (("intent", "applied", "intent", "failed"), 1, timedelta(minutes=56)),
        (("refused", "refused", "refused"), 1, None),
        (("intent", "applied", "intent", "applied"), 20, None),
        (("intent", "intent", "intent"), 10, timedelta(minutes=40)),
    ],
)
def test_two_runs_an_hour(phases: tuple[str, ...], minutes: int, free_in: timedelta | None) -> None:
    free_at = next_allowed(entries(*phases, minutes=minutes), now=NOW, runs=2, window=HOUR)
    assert free_at == (None if free_in is None else NOW + free_in)


@given(st.lists(st.integers(0, 300), max_size=12).map(sorted), st.integers(1, 4))
def test_never_more_runs_than_allowed_in_any_window(minutes: list[int], runs: int) -> None:
    begun: list[AuditEntry] = []
    for minute in minutes:
        now = NOW + timedelta(minutes=minute)
        if next_allowed(begun, now=now, runs=runs, window=HOUR) is None:
            begun.append(AuditEntry(now, "p/s", "d", "intent", "anna", "INC-003"))
    for entry in begun:
        assert sum(entry.at <= other.at < entry.at + HOUR for other in begun) <= runs
