"""The calendar and the sending of checklist reports: each period once, at its local time, caught up after downtime."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from alerts.email import EmailConfig, send_mail
from dashboards.daily import DailyInput, Report, RunSummary, Watched, daily, render_html, render_text
from monitor.clock import Clock
from monitor.config.settings import DailyReport, Settings
from monitor.domain import CheckResult, Receipt
from monitor.errors import ConfigError, DeliveryError, Problem, StoreError
from monitor.plugins import NotifyContext
from monitor.store import Store, StoreThread, hour_of

LOOK_EVERY_S = 5.0
RETRY_AFTER = timedelta(minutes=5)
SEND_DEADLINE_S = 30.0

log = structlog.get_logger("monitor.reports")


class Reports:
    """Sends the daily checklist. APScheduler says when; the store says what is still owed."""

    def __init__(
        self, settings: Settings, *, store: Store, thread: StoreThread, clock: Clock, latest: Callable[[], Mapping[str, CheckResult]]
    ) -> None:
        self._settings = settings
        self._store = store
        self._thread = thread
        self._clock = clock
        self._latest = latest
        self._noted: datetime | None = None
        self._calendar = AsyncIOScheduler(timezone=settings.timezone)

    def reconfigure(self, settings: Settings) -> None:
        """Take new settings: the next report is due by them."""
        self._settings = settings
        self._calendar.remove_all_jobs()
        self._plan()

    async def serve(self) -> None:
        """Note what is due, send it, until cancelled. A report that cannot be sent is tried again every five minutes."""
        self._plan()
        self._calendar.start()
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._calendar.shutdown(wait=False)

    async def look(self) -> None:
        """Note what is due now, and send what is owed."""
        await self._catch_up()
        await self._send_due()

    def _plan(self) -> None:
        schedule = self._settings.daily_report
        if schedule is None:
            return
        trigger = CronTrigger(hour=schedule.at.hour, minute=schedule.at.minute, timezone=self._settings.timezone)
        self._calendar.add_job(self._catch_up, trigger, id="daily", misfire_grace_time=None, coalesce=True, max_instances=1)

    async def _catch_up(self) -> None:
        """Owe the newest period that is over, unless it is known or nothing was watched in it."""
        schedule = self._settings.daily_report
        if schedule is None:
            return
        due = last_due(schedule, self._settings, self._clock.now())
        if due == self._noted:
            return
        try:
            if await self._thread(self._store.history.counts, due - timedelta(days=1), due):
                await self._thread(self._store.reports.want, period_key(due, self._settings), due)
            self._noted = due
        except StoreError as exc:
            log.error("cannot note that a report is due", error=str(exc))

    async def _send_due(self) -> None:
        schedule = self._settings.daily_report
        if schedule is None:
            return
        try:
            for period in await self._thread(self._store.reports.due, self._clock.now()):
                await self._send(schedule, period)
        except StoreError as exc:
            log.error("reports cannot be looked up", error=str(exc))

    async def _send(self, schedule: DailyReport, period: str) -> None:
        now = self._clock.now()
        if not await self._thread(self._store.reports.take, period, now, now + RETRY_AFTER):
            return  # somebody else sends it
        end = period_end(period, schedule, self._settings)
        report = await self._thread(build_daily, self._settings, self._store, dict(self._latest()), now, end)
        try:
            receipt = await mail_report(self._settings, schedule.channel, report, self._clock)
        except DeliveryError as exc:
            log.error("report could not be sent, will be tried again", period=period, error=str(exc))
            await self._thread(self._store.reports.failed, period, str(exc), now + RETRY_AFTER)
            return
        await self._thread(self._store.reports.sent, period, self._clock.now())
        log.info("report sent", period=period, channel=schedule.channel, late_s=round((now - end).total_seconds()))
        if receipt.note:
            log.warning("the report did not reach everybody", period=period, channel=schedule.channel, note=receipt.note)


def last_due(schedule: DailyReport, settings: Settings, now: datetime) -> datetime:
    """The latest moment at or before ``now`` at which a daily report was due, in UTC."""
    local = now.astimezone(settings.timezone)
    for days_back in (0, 1):
        day = local.date() - timedelta(days=days_back)
        due = datetime.combine(day, schedule.at, settings.timezone).astimezone(now.tzinfo)
        if due <= now:
            return due
    raise AssertionError("a daily time always lies within the last two days")


def period_key(due: datetime, settings: Settings) -> str:
    """``daily/<local date on which it is due>``: one per calendar day, whatever the clocks do."""
    return f"daily/{due.astimezone(settings.timezone).date().isoformat()}"


def period_end(period: str, schedule: DailyReport, settings: Settings) -> datetime:
    """The moment at which the report of that period was due, in its timezone."""
    day = datetime.fromisoformat(period.removeprefix("daily/")).date()
    return datetime.combine(day, schedule.at, settings.timezone)


def build_daily(settings: Settings, store: Store, latest: Mapping[str, CheckResult], now: datetime, end: datetime) -> Report:
    """The daily checklist of the 24 hours before ``end``, with the newest results. Raises ``StoreError``."""
    start = end - timedelta(days=1)
    counts = store.history.counts(hour_of(start), end)
    return daily(
        DailyInput(
            now=now,
            timezone=settings.timezone,
            period_start=start,
            period_end=end,
            watched=tuple(Watched(i.key, i.check.name, i.service.name, i.every_s) for i in settings.instances),
            latest=latest,
            incidents=store.incidents.list(unresolved=False, since=start),
            history=tuple(RunSummary(c.instance, c.check, c.service, c.ok + c.found + c.blind, c.ok, c.found, c.blind) for c in counts),
            external_url=settings.external_url,
        )
    )


async def mail_report(settings: Settings, channel_name: str, report: Report, clock: Clock, *, extra: str = "") -> Receipt:
    """Send a report through an e-mail channel. ``extra`` sets one sent by hand apart from the scheduled one of the same day.

    Raises ``DeliveryError``, or ``ConfigError`` when the channel cannot carry one.
    """
    channel = settings.channels.get(channel_name)
    if channel is None or not isinstance(channel.config, EmailConfig):
        mails = ", ".join(name for name, known in settings.channels.items() if isinstance(known.config, EmailConfig)) or "none"
        problem = f"{channel_name!r} is not an e-mail channel"
        raise ConfigError((Problem(str(settings.source), None, "reports.daily.channel", problem, f"e-mail channels: {mails}"),))
    context = NotifyContext(clock=clock, deadline_s=SEND_DEADLINE_S)
    period = report.period_key.replace("/", ".")
    return await send_mail(
        context,
        channel.config,
        subject=report.title,
        text=render_text(report),
        html=render_html(report),
        message_id=f"<report.{period}{extra}@platform-monitor>",
    )
