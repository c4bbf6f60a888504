"""Which dates come near: passwords and keys to change, contracts and dependencies to renew?"""

from datetime import date, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator

from checks.words import many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line

LEFT = Metric("monitor_due_date_left_seconds", "Time until the date, in whole days; negative once it is over.", ("what",))

SOON = FindingKind("DateDueSoon", Severity.P4, None, "A date is less than its warn_before away.")
OVERDUE = FindingKind("DateOverdue", Severity.P3, None, "A date is over.")

DAY_S = 86_400


class Due(BaseModel):
    """One date, as ``due``, or as ``changed`` and how long that is good for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    what: str = Field(min_length=1, max_length=80, description="What is due, in words: its name everywhere.")
    due: date | None = Field(None, description="The last good day, such as 2027-03-31.")
    changed: date | None = Field(None, description="When it was last changed or renewed …")
    max_age: Duration | None = Field(None, ge=DAY_S, description="… and how long that is good for, such as 365d.")
    warn_before: Duration | None = Field(None, ge=0, description="In place of the check's own warn_before.")
    how: str = Field("", max_length=300, description="How it is changed: the first step, or a link.")

    @model_validator(mode="after")
    def _one_date(self) -> Self:
        by_age = self.changed is not None and self.max_age is not None
        if (self.due is None) == (not by_age) or (self.due is not None and (self.changed or self.max_age)):
            raise ValueError("write either due, or changed and max_age")
        return self

    @property
    def day(self) -> date:
        """The last good day."""
        if self.due is not None:
            return self.due
        assert self.changed is not None
        assert self.max_age is not None
        return self.changed + timedelta(seconds=self.max_age)


class Config(PluginConfig):
    """Keys of a ``due_dates`` check."""

    dates: tuple[Due, ...] = Field(min_length=1, max_length=200, description="What is due, and when: tables with what, due, changed …")
    warn_before: Duration = Field(30 * DAY_S, ge=0, description="DateDueSoon so long before.")
    timezone: ZoneInfo = Field(ZoneInfo("UTC"), description="Where the days begin and end.")

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [one.what for one in self.dates]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} stands there twice: every date needs its own name")
        return self


@check(
    "due_dates",
    config=Config,
    metrics=(LEFT,),
    finds=(SOON, OVERDUE),
    blind="Never: the dates stand in the configuration.",
    why="Keys, contracts and certificates end on days that are known for years, and still take systems down.",
)
async def due_dates(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares dates that stand in the configuration with today."""
    today = ctx.clock.now().astimezone(cfg.timezone).date()
    return judge(cfg, today=today, service=ctx.service.name)


def judge(cfg: Config, *, today: date, service: str) -> Observed:
    """What is due. Pure; the most urgent first."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    for one in sorted(cfg.dates, key=lambda one: (one.day, one.what)):
        days = (one.day - today).days
        what = one_line(one.what, limit=80)
        samples.append(LEFT(days * DAY_S, what=what))
        warn_before = cfg.warn_before if one.warn_before is None else one.warn_before
        facts = {"due": one.day.isoformat()}
        if one.changed is not None:
            facts["last changed"] = one.changed.isoformat()
        if one.how:
            facts["first"] = one_line(one.how, limit=300)
        if days < 0:
            findings.append(OVERDUE(f"{what} is {many(-days, 'day')} overdue ({service})", labels={"what": what}, facts=facts, value=days))
        elif days * DAY_S <= warn_before:
            when = "today" if days == 0 else f"in {many(days, 'day')}"
            findings.append(SOON(f"{what} is due {when} ({service})", labels={"what": what}, facts=facts, value=days))
    return Observed(tuple(samples), tuple(findings))
