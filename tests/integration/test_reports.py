"""The daily report's calendar: each period once, at its local time, caught up after downtime, by real mail."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from alerts.email import EmailConfig
from alerts.email import email as email_notifier
from monitor.config.settings import Channel, DailyReport, Settings
from monitor.domain import Observed
from monitor.plugins import CheckContext
from monitor.reports import Reports, last_due, period_end, period_key
from monitor.store import RunHour, Store, StoreThread, hour_of
from tests.support.monitoring import free_port
from tests.support.world import ManualClock, instance, settings, until

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")


class Mails:
    """A real SMTP server's handler that keeps subjects."""

    def __init__(self) -> None:
        self.subjects: list[str] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        text = (envelope.content or b"").decode(errors="replace") if isinstance(envelope.content, bytes) else str(envelope.content)
        self.subjects += [line.removeprefix("Subject: ") for line in text.splitlines() if line.startswith("Subject: ")]
        return "250 OK"


async def look(_: CheckContext) -> Observed:
    return Observed()


def reporting(folder: Path, port: int, at: time = time(8, 0), zone: ZoneInfo = BERLIN) -> Settings:
    base = settings(folder, instance(look))
    config = EmailConfig(host="127.0.0.1", port=port, security="none", sender="monitor@example.com", to=("ops@example.com",))
    channels = {"reports": Channel("reports", email_notifier, config)}
    return dataclasses.replace(base, channels=channels, daily_report=DailyReport(at, "reports"), timezone=zone)


@asynccontextmanager
async def serving(chosen: Settings, clock: ManualClock, store: Store) -> AsyncIterator[None]:
    thread = StoreThread()
    task = asyncio.create_task(Reports(chosen, store=store, thread=thread, clock=clock, latest=dict).serve())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        thread.close()


def watched(store: Store, at: datetime) -> None:
    store.history.record([RunHour("look/auth", hour_of(at), "look", "auth", ok=1, duration_sum_s=0.1, duration_max_s=0.1)])


async def test_a_report_missed_while_stopped_is_sent_once_after_the_start(tmp_path: Path) -> None:
    mails, port = Mails(), free_port()
    chosen = reporting(tmp_path, port)
    store = Store(chosen.state_url)
    now = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)  # 10:30 in Berlin: the report was due two and a half hours ago
    watched(store, now - timedelta(hours=5))
    server = Controller(mails, hostname="127.0.0.1", port=port)
    server.start()
    try:
        async with serving(chosen, ManualClock(now), store):
            await until(lambda: mails.subjects and not store.reports.due(now + timedelta(days=1)))  # sent, and recorded
        async with serving(chosen, ManualClock(now + timedelta(minutes=30)), store):
            await asyncio.sleep(0)
    finally:
        server.stop()
    assert len(mails.subjects) == 1
    assert "Daily checklist 2 Mar" in mails.subjects[0]
    assert store.reports.due(now + timedelta(days=1)) == ()
    store.close()


async def test_the_first_start_ever_owes_nothing(tmp_path: Path) -> None:
    chosen = reporting(tmp_path, 1)
    store, now = Store(chosen.state_url), datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    async with serving(chosen, ManualClock(now), store):
        await asyncio.sleep(0)
    assert store.reports.last("daily/") is None
    store.close()


async def test_a_report_that_cannot_be_sent_is_owed(tmp_path: Path) -> None:
    chosen = reporting(tmp_path, free_port())
    store, now = Store(chosen.state_url), datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    watched(store, now - timedelta(hours=5))
    async with serving(chosen, ManualClock(now), store):
        await until(lambda: store.reports.last("daily/") is not None and store.reports.due(now) == ())
    assert store.reports.due(now + timedelta(minutes=6)) == ("daily/2026-03-02",)
    store.close()


@pytest.mark.parametrize(
    ("zone", "now", "due", "period"),
    [
        (BERLIN, "2026-03-28T08:00:00+00:00", "2026-03-28T07:00:00+00:00", "daily/2026-03-28"),
        (BERLIN, "2026-03-29T05:59:59+00:00", "2026-03-28T07:00:00+00:00", "daily/2026-03-28"),
        (BERLIN, "2026-03-29T06:00:00+00:00", "2026-03-29T06:00:00+00:00", "daily/2026-03-29"),  # summer time began
        (BERLIN, "2026-10-25T07:00:00+00:00", "2026-10-25T07:00:00+00:00", "daily/2026-10-25"),  # and ended
        (BERLIN, "2026-10-25T06:59:59+00:00", "2026-10-24T06:00:00+00:00", "daily/2026-10-24"),
        (NEW_YORK, "2026-03-08T12:00:00+00:00", "2026-03-08T12:00:00+00:00", "daily/2026-03-08"),
        (NEW_YORK, "2026-11-01T12:59:59+00:00", "2026-10-31T12:00:00+00:00", "daily/2026-10-31"),
        (BERLIN, "2028-02-29T07:00:00+00:00", "2028-02-29T07:00:00+00:00", "daily/2028-02-29"),
    ],
)
def test_the_report_is_due_at_local_time_on_every_day_of_the_year(tmp_path: Path, zone: ZoneInfo, now: str, due: str, period: str) -> None:
    chosen = reporting(tmp_path, 1, zone=zone)
    assert chosen.daily_report is not None
    found = last_due(chosen.daily_report, chosen, datetime.fromisoformat(now))
    assert found == datetime.fromisoformat(due)
    assert period_key(found, chosen) == period
    assert period_end(period, chosen.daily_report, chosen) == found


def test_every_day_has_exactly_one_period_also_in_the_hour_that_is_skipped_or_repeated(tmp_path: Path) -> None:
    for at in (time(2, 30), time(0, 0), time(23, 59)):
        chosen = reporting(tmp_path, 1, at=at)
        assert chosen.daily_report is not None
        moment, periods = datetime(2026, 1, 2, tzinfo=UTC), []
        while moment < datetime(2026, 12, 31, tzinfo=UTC):
            periods.append(period_key(last_due(chosen.daily_report, chosen, moment), chosen))
            moment += timedelta(minutes=30)
        distinct = list(dict.fromkeys(periods))
        assert distinct == sorted(set(periods))
        assert len(distinct) in (363, 364)
