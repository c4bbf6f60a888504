"""Does log rotation work: is every log of a service cut in time, and written to again, before logs fill the disk?"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from checks.log_reading import STAMP, clock_time, kept, recalled, stamp_of
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check
from monitor.probes_contract import LogFamily

SIZE = Metric("monitor_log_file_size_bytes", "Size of the log file that is written to.", ("file",))
AGE = Metric("monitor_log_file_age_seconds", "Time since the first line of the log file; 0 while it is empty.", ("file",))
ROTATED = Metric("monitor_log_rotated_files", "Former parts of the log beside it.", ("file",))
FOLDER = Metric("monitor_log_folder_size_bytes", "What the files in the folders of the service's logs take on the disk.")

NOT_ROTATED = FindingKind("LogNotRotated", Severity.P4, None, "A log is larger than max_bytes, or its first line is older than max_age.")
NOT_REOPENED = FindingKind(
    "LogNotReopened", Severity.P3, None, "The service goes on writing to the rotated file, so that who reads its log reads nothing."
)
PILED_UP = FindingKind(
    "LogsPiledUp", Severity.P4, None, "The folder of the logs takes more than max_folder_bytes, or a log has more than max_rotated parts."
)

FILES = ("log", "error_log", "access_log")
REOPENED_WITHIN_S = 60.0


class Config(PluginConfig):
    """Keys of a ``log_rotation`` check."""

    max_age: Duration = Field(
        172_800.0,
        description="A first line that is older was not rotated in time: daily, and a day of grace. 0 where only the size counts.",
    )
    max_bytes: int = Field(268_435_456, ge=1, description="A larger log was not rotated in time.")
    max_rotated: int = Field(30, ge=1, description="More former parts of one log are too many: the runbook keeps 14.")
    max_folder_bytes: int = Field(5_368_709_120, ge=1, description="What all files in the folder of the logs may take on the disk.")
    deadline: Duration = Field(6.0, gt=0, le=30, description="For looking at all logs of the service.")


@dataclass(slots=True)
class First:
    """When a file was seen first, for logs whose lines carry no time."""

    inode: int
    seen_at: float


@dataclass(slots=True)
class Seen:
    """What is kept from run to run, by log."""

    files: dict[str, First]


@check(
    "log_rotation",
    config=Config,
    metrics=(SIZE, AGE, ROTATED, FOLDER),
    finds=(NOT_ROTATED, NOT_REOPENED, PILED_UP),
    blind="A log of the service is missing or may not be read, its folder may not be listed, or its disk hangs.",
    why="A log that nobody rotates fills the disk, and everything on it stops. A service that writes on into a rotated file leaves an "
    "empty log behind, in which no error is ever found.",
    privileges="The monitor's user reads the logs and lists their folders.",
)
async def log_rotation(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at size, age and rotated parts of the service's ``log``, ``error_log`` and ``access_log``, and at the folders they are in."""
    paths = {name: path for name in FILES if (path := getattr(ctx.service, name))}
    if not paths:
        raise CannotLook(f"service {ctx.service.name} has no log: set log, error_log or access_log in [services.{ctx.service.name}]")
    try:
        async with asyncio.timeout(cfg.deadline):
            families = {name: await ctx.logs.family(path) for name, path in paths.items()}
    except TimeoutError as exc:
        raise CannotLook(f"looking at the logs of {ctx.service.name} took longer than {cfg.deadline:g} s: is their disk slow?") from exc
    now = ctx.clock.now().timestamp()
    before = recalled(ctx, Seen)
    seen = Seen({})
    for name, family in families.items():
        first = before.files.get(name) if before else None
        seen.files[name] = first if first and first.inode == family.inode and family.size_bytes else First(family.inode, now)
    return judge(families, paths, seen, cfg, now=now, service=ctx.service.name)


def judge(families: Mapping[str, LogFamily], paths: Mapping[str, str], seen: Seen, cfg: Config, *, now: float, service: str) -> Observed:
    """What the files mean. Pure."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    folders = {os.path.dirname(os.path.abspath(paths[name])): family.folder_bytes for name, family in families.items()}
    for name, family in families.items():
        age_s = _age_s(family, seen.files[name], now)
        samples += (SIZE(family.size_bytes, file=name), AGE(age_s, file=name), ROTATED(len(family.rotated), file=name))
        findings += _not_rotated(name, paths[name], family, age_s, cfg, service)
        findings += _not_reopened(name, paths[name], family, service)
        if len(family.rotated) > cfg.max_rotated:
            summary = f"{service} has {len(family.rotated)} rotated parts of {paths[name]}, more than {cfg.max_rotated}"
            facts = {"oldest": family.rotated[-1].name, "first": "what does logrotate's `rotate` say for it?"}
            findings.append(PILED_UP(summary, labels={"file": name}, facts=facts, value=len(family.rotated)))
    samples.append(FOLDER(sum(folders.values())))
    for folder, used in folders.items():
        if used > cfg.max_folder_bytes:
            summary = f"the logs of {service} take {_size(used)} in {folder}, more than {_size(cfg.max_folder_bytes)}"
            labels = {"file": next(name for name in families if os.path.dirname(os.path.abspath(paths[name])) == folder)}
            findings.append(PILED_UP(summary, labels=labels | {"of": "folder"}, facts={"first": f"ls -lhS {folder}"}, value=used))
    return Observed(tuple(samples), tuple(findings), keep=kept(seen))


def _age_s(family: LogFamily, first: First, now: float) -> float:
    """Since the first line says it was written, or since the file was first seen to hold something."""
    if not family.size_bytes:
        return 0.0
    found = STAMP.search(family.first_line)
    written_at = stamp_of(found) if found else None
    return max(0.0, now - (written_at if written_at is not None else first.seen_at))


def _not_rotated(name: str, path: str, family: LogFamily, age_s: float, cfg: Config, service: str) -> list[Finding]:
    too_large, too_old = family.size_bytes > cfg.max_bytes, bool(cfg.max_age) and age_s > cfg.max_age
    if not (too_large or too_old):
        return []
    wrong = f"{_size(family.size_bytes)} large" if too_large else f"{age_s / 86_400:.1f} days old"
    limit = _size(cfg.max_bytes) if too_large else f"{cfg.max_age / 86_400:g} days"
    latest = family.rotated[0] if family.rotated else None
    facts = {
        "size": _size(family.size_bytes),
        "age": f"{age_s / 86_400:.1f} days",
        "last rotated": f"{latest.name}, {clock_time(latest.written_at.timestamp())}" if latest else "never: there is no rotated file",
        "first": f"logrotate --debug /etc/logrotate.d/* 2>&1 | grep -A5 {path}",
    }
    value = family.size_bytes if too_large else age_s
    return [
        NOT_ROTATED(
            f"{path} of {service} is {wrong}, more than {limit}: log rotation does not work",
            labels={"file": name},
            facts=facts,
            value=value,
        )
    ]


def _not_reopened(name: str, path: str, family: LogFamily, service: str) -> list[Finding]:
    latest = family.rotated[0] if family.rotated else None
    if latest is None or family.size_bytes:
        return []
    later_s = (latest.written_at - family.written_at).total_seconds()
    if later_s <= REOPENED_WITHIN_S:
        return []
    facts = {
        "last written": f"{latest.name}, {clock_time(latest.written_at.timestamp())}",
        "empty since": clock_time(family.written_at.timestamp()),
        "first": f"which process still has it open? lsof {os.path.join(os.path.dirname(path), latest.name)}",
    }
    summary = f"{service} still writes to {latest.name}, which was rotated: {path} stays empty"
    return [NOT_REOPENED(summary, labels={"file": name}, facts=facts, value=later_s)]


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
