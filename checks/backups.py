"""Can the data be brought back? How old is the last good backup, and the last one that was proven by a restore?

Reads the list that backup jobs write, one line of JSON for each run.
"""

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from checks.words import lasted, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, LocalPath, PluginConfig, check, one_line

AGE = Metric("monitor_backup_age_seconds", "Since the end of the last good backup.")
RESTORE_AGE = Metric("monitor_backup_restore_age_seconds", "Since a backup was last restored and its data verified.")
SIZE = Metric("monitor_backup_size_bytes", "Size of the last good backup.")
DURATION = Metric("monitor_backup_duration_seconds", "How long the last good backup took.")
FAILURES = Metric("monitor_backup_failures", "Runs that failed since the last good one, by kind.", ("kind",))

TOO_OLD = FindingKind("BackupTooOld", Severity.P2, None, "The last good backup is older than max_age, or there is none.")
FAILED = FindingKind("BackupFailed", Severity.P3, None, "The latest run of the backup failed.")
UNPROVEN = FindingKind("RestoreNotVerified", Severity.P3, None, "No backup was restored and verified within max_restore_age.")
RESTORE_FAILED = FindingKind("RestoreFailed", Severity.P2, None, "The latest try to restore a backup failed: the backups may be worthless.")
SIZE_ODD = FindingKind("BackupSizeOdd", Severity.P3, None, "The last backup is much smaller or larger than those before.")

COMPARED = 14
ENOUGH = 3
MAX_RUNS = 1_000
AHEAD_S = 300.0
"""A clock may be so far ahead of ours."""
EXAMPLE = '{"at": "2026-11-24T03:00:00Z", "kind": "backup", "ok": true, "size_bytes": 1048576, "duration_s": 42}'


class Run(BaseModel):
    """One line of the list."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    at: AwareDatetime
    """When it ended."""
    kind: Literal["backup", "restore"]
    """A restore is one into a place of its own, whose data was then verified."""
    ok: bool
    size_bytes: int | None = Field(None, ge=0)
    duration_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    detail: str = ""


class Config(PluginConfig):
    """Keys of a ``backups`` check."""

    runs: LocalPath = Field(description=f"The list: a file with one line for each run, such as {EXAMPLE}; kind is backup or restore.")
    max_age: Duration = Field(26 * 3600.0, gt=0, description="BackupTooOld when the last good backup is older.")
    max_restore_age: Duration = Field(
        8 * 86_400.0, ge=0, description="RestoreNotVerified when the last verified restore is older; 0 for never."
    )
    odd_percent: float = Field(50.0, gt=0, description="BackupSizeOdd when its size is so far from the median of those before.")


@check(
    "backups",
    config=Config,
    metrics=(AGE, RESTORE_AGE, SIZE, DURATION, FAILURES),
    finds=(TOO_OLD, FAILED, UNPROVEN, RESTORE_FAILED, SIZE_ODD),
    blind="The list is missing, cannot be read, or its latest line is no run.",
    why="A backup that nobody restored is a hope. Most are found to be empty on the day that they are needed.",
)
async def backups(ctx: CheckContext, cfg: Config) -> Observed:
    """Reads the list of backup runs: age and size of the last good backup, age of the last verified restore, runs that failed."""
    piece = await ctx.logs.read_on(cfg.runs, None)
    now = ctx.clock.now()
    try:
        runs = read(piece.lines, now=now)
    except ValueError as exc:
        raise CannotLook(
            f"{cfg.runs}: the latest line is no run of a backup: {exc}: let the backup job write lines such as {EXAMPLE}"
        ) from exc
    return judge(runs, cfg, now=now, service=ctx.service.name)


def read(lines: Sequence[str], *, now: datetime) -> tuple[Run, ...]:
    """The latest runs, oldest first. Raises ``ValueError`` when the last line is none; older lines that are none are left out."""
    runs: list[Run] = []
    written = [line for line in lines if line.strip()][-MAX_RUNS:]
    for line in written:
        try:
            run = Run.model_validate_json(line)
            if (run.at - now).total_seconds() > AHEAD_S:
                raise ValueError(f"it ends in the future, at {run.at.isoformat()}")
        except ValueError as exc:
            if line is written[-1]:
                raise ValueError(_why(exc)) from exc
        else:
            runs.append(run)
    return tuple(sorted(runs, key=lambda run: run.at))


def _why(exc: ValueError) -> str:
    if not isinstance(exc, ValidationError):
        return str(exc)
    first = exc.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return one_line(f"{place}: {first['msg']}" if place else first["msg"], limit=200)


def judge(runs: Sequence[Run], cfg: Config, *, now: datetime, service: str) -> Observed:
    """What the runs mean, oldest first. Pure. A list without a good run is a backup that does not exist."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    made, restores = [run for run in runs if run.kind == "backup"], [run for run in runs if run.kind == "restore"]
    good = [run for run in made if run.ok]
    for kind, of_kind in (("backup", made), ("restore", restores)):
        samples.append(FAILURES(len(_failed_since(of_kind)), kind=kind))
    if good:
        samples.append(AGE(_age_s(good[-1], now)))
        samples += [SIZE(good[-1].size_bytes)] if good[-1].size_bytes is not None else []
        samples += [DURATION(good[-1].duration_s)] if good[-1].duration_s is not None else []
    findings += _age(good, cfg, now, service)
    if failed := _failed_since(made):
        findings.append(FAILED(_failure_words("backup", len(failed), service), facts=_failure(failed, good, now), value=len(failed)))
    proven = [run for run in restores if run.ok]
    if proven:
        samples.append(RESTORE_AGE(_age_s(proven[-1], now)))
    findings += _proof(restores, proven, cfg, now, service)
    findings += _size(good, cfg, service)
    return Observed(tuple(samples), tuple(findings))


def _age_s(run: Run, now: datetime) -> float:
    return max(0.0, (now - run.at).total_seconds())


def _failed_since(runs: Sequence[Run]) -> list[Run]:
    """The failed runs after the last good one."""
    last_good = max((number for number, run in enumerate(runs) if run.ok), default=-1)
    return list(runs[last_good + 1 :])


def _failure_words(what: str, times: int, service: str) -> str:
    return f"the latest {what} of {service} failed" if times == 1 else f"the last {times} {what}s of {service} failed"


def _failure(failed: Sequence[Run], good: Sequence[Run], now: datetime) -> dict[str, str]:
    facts = {
        f"{lasted(_age_s(run, now))} ago": one_line(run.detail, limit=200) or "failed, without a reason" for run in reversed(failed[-4:])
    }
    return {**facts, "last good one": f"{lasted(_age_s(good[-1], now))} ago" if good else "none known"}


def _age(good: Sequence[Run], cfg: Config, now: datetime, service: str) -> list[Finding]:
    if good and _age_s(good[-1], now) <= cfg.max_age:
        return []
    facts = {"allowed": lasted(cfg.max_age), "list": one_line(cfg.runs, limit=200), "first": "run the backup by hand and read what it says"}
    if not good:
        return [TOO_OLD(f"no good backup of {service} is known", facts=facts)]
    age_s = _age_s(good[-1], now)
    return [TOO_OLD(f"the last good backup of {service} is {lasted(age_s)} old", facts=facts, value=age_s)]


def _proof(restores: Sequence[Run], proven: Sequence[Run], cfg: Config, now: datetime, service: str) -> list[Finding]:
    if cfg.max_restore_age == 0:
        return []
    if failed := _failed_since(restores):
        summary = f"{_failure_words('restore', len(failed), service)}: is the backup any good?"
        return [RESTORE_FAILED(summary, facts=_failure(failed, proven, now), value=len(failed))]
    if proven and _age_s(proven[-1], now) <= cfg.max_restore_age:
        return []
    facts = {"allowed": lasted(cfg.max_restore_age), "first": "restore the last backup into a place of its own and compare its data"}
    if not proven:
        return [UNPROVEN(f"no backup of {service} was ever restored and verified, as far as the list tells", facts=facts)]
    age_s = _age_s(proven[-1], now)
    return [UNPROVEN(f"a backup of {service} was last restored and verified {lasted(age_s)} ago", facts=facts, value=age_s)]


def _size(good: Sequence[Run], cfg: Config, service: str) -> list[Finding]:
    sizes = [run.size_bytes for run in good if run.size_bytes is not None][-COMPARED - 1 :]
    if len(sizes) <= ENOUGH or good[-1].size_bytes is None:
        return []
    usual = statistics.median(sizes[:-1])
    percent = 100 * (sizes[-1] - usual) / usual if usual else 0.0
    if abs(percent) <= cfg.odd_percent:
        return []
    facts = {
        "last": sized(sizes[-1]),
        "usual": f"{sized(usual)}, the median of the {len(sizes) - 1} before",
        "sizes": ", ".join(map(sized, sizes[-7:])),
    }
    word = "smaller" if percent < 0 else "larger"
    return [SIZE_ODD(f"the last backup of {service} is {abs(percent):.0f} % {word} than usual", facts=facts, value=abs(percent))]
