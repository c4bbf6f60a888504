"""Did a job that is none of ours run when it should? It pings us; silence is the alarm."""

from datetime import datetime, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, model_validator

from checks.words import lasted
from monitor.crontab import moments_after
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PingedConfig, check, one_line
from monitor.probes_contract import Beat

AGE = Metric("monitor_heartbeat_age_seconds", "Since the last ping of a success; absent before the first.")
DUE = Metric("monitor_heartbeat_due_seconds", "Until the next success is late, grace included; negative once it is.")
DURATION = Metric("monitor_heartbeat_run_duration_seconds", "How long the last run took whose start was pinged too.")

LATE = FindingKind("HeartbeatLate", Severity.P2, None, "No ping of a success came in time.")
FAILED = FindingKind("HeartbeatFailed", Severity.P2, None, "The job pinged that it failed.")
HANGS = FindingKind("HeartbeatHangs", Severity.P2, None, "The job pinged its start, and no end within max_run.")


class Config(PingedConfig):
    """Keys of a ``heartbeat`` check."""

    period: Duration | None = Field(None, gt=0, description="A success comes at least this often. Either this or schedule.")
    schedule: str | None = Field(None, max_length=200, description='When the job runs, as in a crontab: "30 2 * * 1-5".')
    timezone: ZoneInfo = Field(ZoneInfo("UTC"), description="The time zone of the schedule.")
    grace: Duration = Field(600.0, ge=0, description="So much later a success may come.")
    max_run: Duration = Field(
        3600.0,
        gt=0,
        description="HeartbeatHangs when a run takes longer; known when the job pings its start. For so long after the grace, "
        "a run that goes on is not late yet.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.period is None) == (self.schedule is None):
            raise ValueError("write either period or schedule")
        if self.schedule is not None:
            try:
                CronSim(self.schedule, datetime(2026, 1, 1, tzinfo=self.timezone))
            except CronSimError as exc:
                raise ValueError(f"the schedule is none that cron knows: {exc}") from None
        return self

    def next_after(self, moment: datetime) -> datetime:
        """When the next run is due after this moment; a schedule goes by the wall clock of its time zone, whatever the season."""
        if self.period is not None:
            return moment + timedelta(seconds=self.period)
        return next(moments_after(self.schedule or "", moment, self.timezone)).astimezone(self.timezone)


@check(
    "heartbeat",
    config=Config,
    metrics=(AGE, DUE, DURATION),
    finds=(LATE, FAILED, HANGS),
    blind="The monitor's own state cannot be read.",
    why="A job that does not run writes no error anywhere: nobody misses a backup until it is needed. A start is no success: a job that "
    "is killed in each of its runs, and starts again and again, is late when `max_run` is over after the grace, whatever it pings.",
    privileges="Whoever knows the `key` may ping: `curl -fsS -m 10 --retry 5 https://MONITOR/ping/KEY` at the end of the job, "
    "`/ping/KEY/start` at its beginning, `/ping/KEY/$?` with its exit status, `/ping/KEY/fail` for a failure.",
)
async def heartbeat(ctx: CheckContext, cfg: Config) -> Observed:
    """Waits for the pings of a job: at least once in a period, or by a crontab's schedule, with a grace."""
    return judge(await ctx.heartbeats.of(ctx.name), cfg, now=ctx.clock.now(), name=ctx.name, service=ctx.service.name)


def judge(beat: Beat, cfg: Config, *, now: datetime, name: str, service: str) -> Observed:
    """What the pings mean now. Pure.

    A run that goes on is not late but hangs when it takes too long, until every run that was begun in time had to end: each start is
    pinged anew by a job that dies in each run, so that the age of the latest one says nothing.
    """
    expected = cfg.next_after(beat.success_at or beat.known_since)
    late_at = expected + timedelta(seconds=cfg.grace)
    samples: list[Sample] = [DUE((late_at - now).total_seconds())]
    if beat.success_at is not None:
        samples.append(AGE(max(0.0, (now - beat.success_at).total_seconds())))
    if beat.duration_s is not None:
        samples.append(DURATION(beat.duration_s))
    facts = _facts(beat, expected, cfg, now)
    running_s = (now - beat.started_at).total_seconds() if beat.running and beat.started_at else None
    findings: list[Finding] = []
    if beat.failed_at is not None and beat.failed_at == beat.ended_at:
        code = f" with exit status {beat.exit_code}" if beat.exit_code else ""
        summary = f"{name} failed{code}, {lasted(max(0.0, (now - beat.failed_at).total_seconds()))} ago ({service})"
        findings.append(FAILED(summary, facts=facts))
    elif running_s is not None and running_s > cfg.max_run:
        findings.append(HANGS(f"{name} was started {lasted(running_s)} ago and has not ended ({service})", facts=facts, value=running_s))
    elif (now - late_at).total_seconds() > (0.0 if running_s is None else cfg.max_run):
        late_s = (now - expected).total_seconds()
        since = "was never heard of" if beat.ended_at is None and running_s is None else "was not heard of in time"
        if running_s is not None:
            since = "starts and does not end"
            facts["first"] = "is it killed in each run? dmesg -T | grep -i 'killed process', and the end of the job's own log"
        findings.append(LATE(f"{name} {since}: its run is {lasted(late_s)} late ({service})", facts=facts, value=late_s))
    return Observed(tuple(samples), tuple(findings))


def _facts(beat: Beat, expected: datetime, cfg: Config, now: datetime) -> dict[str, str]:
    zone = cfg.timezone

    def told(moment: datetime) -> str:
        return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"

    def ago(moment: datetime | None) -> str:
        return "never" if moment is None else f"{told(moment)}, {lasted(max(0.0, (now - moment).total_seconds()))} ago"

    facts = {"it said": one_line(beat.body, limit=300)} if beat.body else {}
    if beat.failed_at is not None and beat.failed_at == beat.ended_at:
        facts["failed"] = ago(beat.failed_at)
    facts |= {"last success": ago(beat.success_at), "expected": f"{told(expected)} ({_rule(cfg)}, grace {lasted(cfg.grace)})"}
    if beat.started_at is not None:
        facts["last start"] = ago(beat.started_at)
    facts["first"] = "look at the job's own log, and whether its machine could reach this monitor"
    return facts


def _rule(cfg: Config) -> str:
    return f"every {lasted(cfg.period)}" if cfg.period is not None else f"schedule {cfg.schedule} {cfg.timezone}"
