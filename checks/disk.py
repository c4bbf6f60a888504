"""How much room is left on the disks, and when will it be gone if it goes on like this?"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Self

from pydantic import Field, model_validator

from checks.partly import or_blind
from checks.words import lasted, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Disk

TOTAL = Metric("monitor_disk_size_bytes", "Size of the file system.", ("mount",))
FREE = Metric("monitor_disk_free_bytes", "What an ordinary user may still take of the file system.", ("mount",))
INODES_FREE = Metric("monitor_disk_inodes_free_ratio", "Free inodes as a share of all; absent where there is no fixed number.", ("mount",))
FULL_IN = Metric(
    "monitor_disk_full_in_seconds", "Time until the file system is full, by its trend; absent while it does not fill.", ("mount",)
)

LOW = FindingKind(
    "DiskSpaceLow", Severity.P3, None, "Less than warn_free_percent is free; P2 below critical_free_percent: writes fail soon."
)
FILLING = FindingKind("DiskFilling", Severity.P3, None, "By its trend, the file system is full within full_within.")
INODES = FindingKind(
    "DiskInodesLow", Severity.P3, None, "Free inodes are below warn_free_percent: no file can be made, whatever room there is."
)
READ_ONLY = FindingKind("DiskReadOnly", Severity.P2, None, "The file system is mounted read-only: its disk may have failed.")

POINTS = 120
"""Kept of each file system: the trend's window is that many steps long at most."""
ENOUGH_POINTS = 5
ROOM_PERCENT = 60.0
"""With more than this free, a trend is weather: nobody is woken for the first gigabytes of an empty disk."""


class Config(PluginConfig):
    """Keys of a ``disk`` check."""

    paths: tuple[str, ...] = Field(
        ("/",), min_length=1, max_length=50, description="Folders whose file systems are watched; one file system is told once."
    )
    warn_free_percent: float = Field(20.0, ge=0, lt=100, description="DiskSpaceLow below this share, of space; DiskInodesLow, of inodes.")
    critical_free_percent: float = Field(10.0, ge=0, lt=100, description="DiskSpaceLow is P2 below this share.")
    trend_over: Duration = Field(6 * 3600.0, ge=600, description="How much of the past the straight line is drawn through.")
    full_within: Duration = Field(24 * 3600.0, ge=0, description="DiskFilling when the line reaches the end this soon; 0 for never.")
    may_be_read_only: bool = Field(False, description="Whether a read-only file system is as it should be.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.critical_free_percent > self.warn_free_percent:
            raise ValueError("critical_free_percent must not be above warn_free_percent")
        return self


@check(
    "disk",
    config=Config,
    metrics=(TOTAL, FREE, INODES_FREE, FULL_IN),
    finds=(LOW, FILLING, INODES, READ_ONLY),
    blind="A path is missing or not mounted, or its disk does not answer (a network mount that hangs), and nothing is found on the others.",
    why="A full disk stops PostgreSQL, the logs and the backups at once; days before, its trend says so.",
)
async def disk(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at the space and the inodes left on this machine's file systems, and draws a straight line through the last hours."""
    looks = await asyncio.gather(*(_look(ctx, path) for path in cfg.paths))  # at once: one that hangs takes its time alone
    seen = {look.mount_point: look for look in looks if isinstance(look, Disk)}
    unseen = [str(look) for look in looks if isinstance(look, CannotLook)]
    before = ctx.kept.value if ctx.kept else {}
    observed = judge(tuple(seen.values()), before, cfg, now=ctx.clock.now(), service=ctx.service.name)
    if unseen and isinstance(observed.keep, dict):
        observed = replace(observed, keep={**before, **observed.keep})  # what was not seen keeps its trend
    return or_blind(observed, unseen)


async def _look(ctx: CheckContext, path: str) -> Disk | CannotLook:
    try:
        return await ctx.host.disk(path)
    except CannotLook as exc:
        return exc


def judge(disks: Sequence[Disk], before: Mapping[str, Any], cfg: Config, *, now: datetime, service: str) -> Observed:
    """What the numbers mean; the fullest first. Pure. ``before`` are the points of time and free bytes that are kept, by mount point."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    keep: dict[str, list[list[float]]] = {}
    for found in sorted(disks, key=_free):
        mount = one_line(found.mount_point, limit=100)
        points = _extended(before.get(found.mount_point, []), now.timestamp(), found.free_bytes, cfg)
        keep[found.mount_point] = points
        full_in_s = full_in(points, window_s=cfg.trend_over)
        samples += [TOTAL(found.total_bytes, mount=mount), FREE(found.free_bytes, mount=mount)]
        if full_in_s is not None:
            samples.append(FULL_IN(full_in_s, mount=mount))
        findings += _space(found, mount, full_in_s, cfg, service)
        if found.total_inodes:
            share = found.free_inodes / found.total_inodes
            samples.append(INODES_FREE(share, mount=mount))
            if 100 * share < cfg.warn_free_percent:
                facts = {
                    "free inodes": f"{found.free_inodes:,} of {found.total_inodes:,}",
                    "first": f"du --inodes -x {mount} | sort -n | tail",
                }
                summary = f"{mount} on {service} has {100 * share:.0f} % of its inodes left: soon no file can be made"
                findings.append(INODES(summary, labels={"mount": mount}, facts=facts, value=100 * share))
        if found.read_only and not cfg.may_be_read_only:
            facts = {"device": one_line(found.device, limit=100) or "unknown", "first": "dmesg -T | tail -50: the kernel says why"}
            findings.append(READ_ONLY(f"{mount} on {service} is mounted read-only", labels={"mount": mount}, facts=facts))
    return Observed(tuple(samples), tuple(findings), keep=keep)


def _free(found: Disk) -> float:
    return found.free_bytes / found.total_bytes if found.total_bytes else 1.0


def _space(found: Disk, mount: str, full_in_s: float | None, cfg: Config, service: str) -> list[Finding]:
    percent = 100 * _free(found)
    facts = {"free": f"{sized(found.free_bytes)} of {sized(found.total_bytes)} ({percent:.1f} %)"}
    if full_in_s is not None:
        facts["full in"] = f"{lasted(full_in_s)}, by the last {lasted(cfg.trend_over)}"
    facts["device"] = one_line(found.device, limit=100) or "unknown"
    facts["first"] = f"du -xh --max-depth=2 {mount} | sort -h | tail -20"
    soon = f", full in {lasted(full_in_s)} if it goes on like this" if full_in_s is not None else ""
    if percent < cfg.warn_free_percent:
        severity = Severity.P2 if percent < cfg.critical_free_percent else None
        summary = f"{mount} on {service} has {percent:.0f} % of its space left{soon}"
        return [LOW(summary, labels={"mount": mount}, facts=facts, severity=severity, value=percent)]
    if full_in_s is not None and full_in_s <= cfg.full_within and percent < ROOM_PERCENT:
        summary = f"{mount} on {service} fills up: full in {lasted(full_in_s)} if it goes on like this ({percent:.0f} % free now)"
        return [FILLING(summary, labels={"mount": mount}, facts=facts, value=full_in_s)]
    return []


def _extended(points: list[list[float]], at_s: float, free_bytes: int, cfg: Config) -> list[list[float]]:
    """The kept points with this one, none older than the window and none in the future, and at most POINTS of them."""
    kept = [point for point in points if at_s - cfg.trend_over <= point[0] < at_s]
    if len(kept) > 1 and kept[-1][0] - kept[-2][0] < cfg.trend_over / POINTS:
        kept.pop()  # the latest point moves on until it is a whole step away from the one before
    return [*kept, [at_s, float(free_bytes)]]


def full_in(points: Sequence[Sequence[float]], *, window_s: float) -> float | None:
    """Seconds until a straight line through points of (time, free bytes) reaches 0; None while it does not fall or too little is known.

    The line is that of least squares. It counts from a quarter of the window on.
    """
    if len(points) < ENOUGH_POINTS or points[-1][0] - points[0][0] < window_s / 4:
        return None
    mean_t = sum(point[0] for point in points) / len(points)
    mean_f = sum(point[1] for point in points) / len(points)
    spread = sum((point[0] - mean_t) ** 2 for point in points)
    slope = sum((point[0] - mean_t) * (point[1] - mean_f) for point in points) / spread if spread else 0.0
    return points[-1][1] / -slope if slope < 0 else None
