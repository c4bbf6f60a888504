"""Moments that others write, at the edges of the calendar: kept as near as they can be, and no row ends a start."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.decide import Policy
from alerts.posted import PostedPolicy, accept_all, receive
from alerts.silences import make
from monitor.domain import AlertPolicy, EscalationStep, Severity, bounded
from monitor.domain.moments import EARLIEST, LATEST
from monitor.errors import StoreError
from monitor.postings import read_postings
from monitor.store import Store
from tests.support.databases import state_url

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POLICY = Policy(alert=AlertPolicy(), chains=dict.fromkeys(Severity, (EscalationStep(0, "on-call", ("page",)),)))
BEYOND = (2**62, 253_402_318_799_000_000)
"""Microseconds: none of Python's years, and 9999-12-31T23:59:59-05:00."""


@pytest.fixture(params=["sqlite", "pg18"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    for url in state_url(None if request.param == "sqlite" else request.getfixturevalue(request.param), tmp_path):
        opened = Store(url)
        yield opened
        opened.close()


OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(timezones=OFFSETS))
def test_every_moment_can_be_kept_and_shown_in_every_time_zone(sent: datetime) -> None:
    kept = bounded(sent)
    assert kept.tzinfo is UTC
    assert kept == min(max(sent, EARLIEST), LATEST)
    for hours in (-14, 14):
        assert kept.astimezone(timezone(timedelta(hours=hours))) == kept


@pytest.mark.parametrize(
    ("said", "starts_at", "ends_at"),
    [
        ('"endsAt": "9999-12-31T23:59:59-05:00"', T0, LATEST),
        ('"startsAt": "9999-12-31T23:00:00-05:00", "endsAt": "9999-12-31T23:59:59-05:00"', LATEST, LATEST),
        ('"startsAt": "0002-01-01T00:00:00+14:00", "endsAt": "9999-12-31T23:59:59Z"', EARLIEST, LATEST),
        ('"startsAt": "0001-01-01T00:00:00+14:00", "endsAt": "0001-01-01T00:00:00-14:00"', T0, T0 + timedelta(minutes=5)),
    ],
)
def test_an_alert_with_such_moments_is_stored_and_read(store: Store, said: str, starts_at: datetime, ends_at: datetime) -> None:
    postings = read_postings(f'[{{"labels": {{"alertname": "Far"}}, {said}}}]'.encode(), lambda *_: False)
    sent = accept_all([posting.read() for posting in postings], PostedPolicy(), (), T0)
    alerts = [alert for alert in sent if not isinstance(alert, ValueError)]
    store.incidents.receive((), lambda _: alerts, lambda known, taken: receive(known, taken, POLICY, T0), T0, lambda _: True)
    (kept,) = store.incidents.firing()
    assert (kept.firing_since, kept.ends_at) == (starts_at, ends_at)


def test_a_row_beyond_the_calendar_is_read_as_the_last_moment(store: Store) -> None:
    silence = make(["service=files"], T0, T0 + timedelta(hours=1), "anna", "known", T0)
    store.silences.save(silence)
    postings = read_postings(b'[{"labels": {"alertname": "Far"}}]', lambda *_: False)
    (alert,) = accept_all([posting.read() for posting in postings], PostedPolicy(), (), T0)
    assert not isinstance(alert, ValueError)
    store.incidents.receive((), lambda _: [alert], lambda known, taken: receive(known, taken, POLICY, T0), T0, lambda _: True)
    for stored in BEYOND:
        with store._database.write() as connection:
            connection.exec_driver_sql(f"UPDATE silences SET ends_at = {stored}")
            connection.exec_driver_sql(f"UPDATE alerts SET ends_at = {stored}, pending_since = {-stored}")
        assert [one.ends_at for one in store.silences.list()] == [LATEST]
        assert store.silences.find(silence.id).ends_at == LATEST
        (kept,) = store.incidents.live_alerts()
        assert (kept.pending_since, kept.ends_at) == (EARLIEST, LATEST)


def test_a_moment_that_would_not_read_back_is_not_written(store: Store) -> None:
    silence = make(["service=files"], T0, T0 + timedelta(hours=1), "anna", "known", T0)
    for wrong in (
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=5))),
        datetime.min.replace(tzinfo=UTC),
    ):
        with pytest.raises(StoreError, match="no moment that can be stored"):
            store.silences.save(replace(silence, ends_at=wrong))
    assert store.silences.list() == ()
