"""Do all instances of a service answer, in the same version, by the same clock, and do they stay up?

Asked one by one, beside what stands in front of them: a proxy hides the instance that is gone.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from checks.partly import or_blind
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpRequest

UP = Metric("monitor_instance_up", "1 when the instance calls itself healthy, 0 when it does not, or does not answer.", ("target",))
SKEW = Metric("monitor_instance_clock_skew_seconds", "How far the clock of the instance is ahead of the monitor's.", ("target",))
AGE = Metric("monitor_instance_running_seconds", "How long the instance has been running, by its own word.", ("target",))
VERSIONS = Metric("monitor_instance_versions", "Different versions among the instances that answer.")
FRONT_UP = Metric("monitor_instances_front_up", "1 when the proxy in front of the instances lets a request through, 0 when not.")

DOWN = FindingKind("InstanceDown", Severity.P2, "INC-001", "An instance does not answer as healthy; others do.")
ALL_DOWN = FindingKind("AllInstancesDown", Severity.P1, "INC-001", "No instance answers as healthy.", fells=True)
FRONT = FindingKind("ProxyFailing", Severity.P1, "INC-001", "The instances are healthy, and the proxy in front of them fails.", fells=True)
VERSION = FindingKind("VersionSkew", Severity.P3, None, "The instances run different versions for longer than a deployment takes.")
CLOCK = FindingKind("ClockSkew", Severity.P3, None, "The clock of an instance differs: tokens expire early, data lands on the wrong day.")
RESTARTS = FindingKind("InstanceRestarts", Severity.P2, "INC-001", "An instance was started more often than max_restarts.")


class Config(PluginConfig):
    """Keys of a ``service_instances`` check."""

    path: str = Field(
        "/health", pattern=r"^/[!-~]*$", description="Health address of an instance: JSON with status, version, timestamp, started_at."
    )
    compare: tuple[Literal["version", "timestamp", "started_at"], ...] = Field(
        ("version", "timestamp", "started_at"),
        description="What of the health answers is compared, for VersionSkew, ClockSkew and InstanceRestarts. An instance that lacks one "
        "of these is not called fine.",
    )
    healthy: str = Field("healthy", description="The status of a healthy instance.")
    front_path: str | None = Field(
        None, pattern=r"^/[!-~]*$", description="Path below the service's url, through the proxy; without it the proxy is not asked."
    )
    max_skew: Duration = Field(2.0, gt=0, description="ClockSkew beyond this, the time of the request given.")
    version_skew_after: Duration = Field(900.0, ge=0, description="VersionSkew when it lasts longer: so long a deployment takes.")
    max_restarts: int = Field(3, ge=0, description="InstanceRestarts with more restarts …")
    restarts_within: Duration = Field(1800.0, gt=0, description="… within this time.")
    deadline: Duration = Field(5.0, gt=0, le=60, description="For each request.")


@dataclass(frozen=True, slots=True)
class Told:
    """What one instance says of itself; ``trouble`` is empty when it is healthy."""

    address: str
    trouble: str
    version: str | None = None
    skew_s: float | None = None
    uncertain_s: float = 0.0
    """The answer's time was read somewhere within the request."""
    started_s: float | None = None


@check(
    "service_instances",
    config=Config,
    metrics=(UP, SKEW, AGE, VERSIONS, FRONT_UP),
    finds=(DOWN, ALL_DOWN, FRONT, VERSION, CLOCK, RESTARTS),
    needs=("instances",),
    blind="The monitor has no connection or memory left for its own requests, or a healthy instance does not tell what `compare` wants "
    "and nothing else is found.",
    why="A proxy answers for the instance that is gone, until the last one is gone too (INC-001).",
)
async def service_instances(ctx: CheckContext, cfg: Config) -> Observed:
    """Asks every instance of a service for its health, version and time, and the proxy in front of them for one request."""
    answers = await asyncio.gather(
        *(ctx.http.fetch(HttpRequest(url=f"{one.rstrip('/')}{cfg.path}", deadline_s=cfg.deadline)) for one in ctx.service.instances)
    )
    now = ctx.clock.now()
    told = [read(_address(one), answer, cfg, now) for one, answer in zip(ctx.service.instances, answers, strict=True)]
    front = None
    if cfg.front_path is not None and ctx.service.url is not None:
        front = await ctx.http.fetch(HttpRequest(url=f"{ctx.service.url.rstrip('/')}{cfg.front_path}", deadline_s=cfg.deadline))
    elif cfg.front_path is not None:
        raise CannotLook(f"the service {ctx.service.name} has a front_path, but no url to ask it at")
    return judge(told, front, ctx.kept.value if ctx.kept else {}, cfg, now_s=now.timestamp(), service=ctx.service.name)


def _address(url: str) -> str:
    return one_line(urlsplit(url).netloc.rpartition("@")[2], limit=80)


def read(address: str, answer: HttpAnswer | HttpFailure, cfg: Config, now: datetime) -> Told:
    """One instance's answer. Pure."""
    if isinstance(answer, HttpFailure):
        return Told(address, f"{answer.reason.value}: {one_line(answer.detail, limit=120)}")
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    if answer.status != 200 or not isinstance(body, dict):
        return Told(address, f"status {answer.status}" if answer.status != 200 else "its answer is no JSON object")
    status, took_s = body.get("status"), answer.phases.total_s
    compared = {name: body.get(name) for name in cfg.compare}
    version, at_s = compared.get("version"), _number(compared.get("timestamp"))
    return Told(
        address,
        "" if status == cfg.healthy else f"its status is {one_line(str(status), limit=40)}",
        one_line(version, limit=40) or None if isinstance(version, str) else None,
        None if at_s is None else at_s - (now.timestamp() - took_s / 2),
        took_s / 2,
        _number(compared.get("started_at")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12 else None


def judge(
    told: Sequence[Told], front: HttpAnswer | HttpFailure | None, before: Mapping[str, Any], cfg: Config, *, now_s: float, service: str
) -> Observed:
    """What the instances say means. Pure. ``before`` are known starts and restarts, and since when versions differ.

    Raises ``CannotLook`` when a healthy instance does not tell what is compared, and nothing else is found.
    """
    versions = sorted({one.version for one in told if one.version})
    samples: list[Sample] = [VERSIONS(len(versions))] if "version" in cfg.compare else []
    for one in told:
        samples.append(UP(not one.trouble, target=one.address))
        samples += [SKEW(one.skew_s, target=one.address)] if one.skew_s is not None else []
        samples += [AGE(max(0.0, now_s - one.started_s), target=one.address)] if one.started_s is not None else []
    findings = _down(told, service)
    if front is not None:
        fine = isinstance(front, HttpAnswer) and front.status < 500
        samples.append(FRONT_UP(fine))
        if not fine and not all(one.trouble for one in told):
            findings.append(_front(front, told, service))
    differ_since = before.get("differ_since", now_s) if len(versions) > 1 else None
    if differ_since is not None and now_s - differ_since >= cfg.version_skew_after:
        facts = {one.address: one.version or "no answer" for one in told}
        summary = f"the instances of {service} run {len(versions)} versions for {lasted(now_s - differ_since)}: {', '.join(versions[:5])}"
        findings.append(VERSION(summary, facts=facts, value=len(versions)))
    findings += [_skewed(one, service) for one in told if one.skew_s is not None and abs(one.skew_s) > cfg.max_skew + one.uncertain_s]
    starts, restarts = _restarts(told, before, cfg, now_s)
    for address, times in sorted(restarts.items()):
        if len(times) > cfg.max_restarts:
            facts = {
                "latest": f"{lasted(now_s - times[-1])} ago",
                "first": "its error log before each start; memory, and who ends it (dmesg, journalctl)",
            }
            summary = f"{address} of {service} was started anew {len(times)} times within {lasted(cfg.restarts_within)}"
            findings.append(RESTARTS(summary, labels={"target": address}, facts=facts, value=len(times)))
    keep = {"starts": starts, "restarts": restarts, "differ_since": differ_since}
    return or_blind(Observed(tuple(samples), tuple(findings), keep=keep), _untold(told, cfg))


def _untold(told: Sequence[Told], cfg: Config) -> list[str]:
    """What healthy instances do not tell although it is compared. One instance alone has no version that could differ."""
    unseen = []
    for one in told:
        values = {"version": one.version if len(told) > 1 else "", "timestamp": one.skew_s, "started_at": one.started_s}
        missing = [name for name in cfg.compare if values[name] is None]
        if missing and not one.trouble:
            unseen.append(
                f"the health answer of {one.address} has no {' and no '.join(missing)}: have it tell, or leave that out of compare"
            )
    return unseen


def _down(told: Sequence[Told], service: str) -> list[Finding]:
    down = [one for one in told if one.trouble]
    if len(down) == len(told):
        facts = {one.address: one.trouble for one in down[:10]}
        return [ALL_DOWN(f"no instance of {service} is healthy, of {len(told)}", facts=facts, value=len(down))]
    healthy = many(len(told) - len(down), "other is", "others are")
    return [
        DOWN(
            f"{one.address} of {service} is not healthy: {one.trouble} ({healthy})",
            labels={"target": one.address},
            facts={"said": one.trouble},
        )
        for one in down
    ]


def _front(front: HttpAnswer | HttpFailure, told: Sequence[Told], service: str) -> Finding:
    said = f"status {front.status}" if isinstance(front, HttpAnswer) else f"{front.reason.value}: {one_line(front.detail, limit=120)}"
    healthy = [one.address for one in told if not one.trouble]
    facts = {"proxy": said, "healthy": ", ".join(healthy[:10]), "first": "the proxy's error log: which upstream does it try?"}
    behind = "1 instance behind it is" if len(healthy) == 1 else f"{len(healthy)} instances behind it are"
    return FRONT(f"the proxy in front of {service} fails ({said}), while {behind} healthy", facts=facts)


def _skewed(one: Told, service: str) -> Finding:
    assert one.skew_s is not None
    word = "ahead of" if one.skew_s > 0 else "behind"
    facts = {"first": "timedatectl on both machines: which one does not follow its time server?"}
    summary = f"the clock of {one.address} ({service}) is {abs(one.skew_s):.1f} s {word} the monitor's"
    return CLOCK(summary, labels={"target": one.address}, facts=facts, value=abs(one.skew_s))


def _restarts(
    told: Sequence[Told], before: Mapping[str, Any], cfg: Config, now_s: float
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The known start of each instance, and when another one was seen. An instance that does not answer keeps its last."""
    starts: dict[str, float] = {}
    restarts: dict[str, list[float]] = {}
    for one in told:
        old = before.get("starts", {}).get(one.address)
        times = [at for at in before.get("restarts", {}).get(one.address, []) if now_s - cfg.restarts_within < at <= now_s]
        if one.started_s is not None and old is not None and abs(one.started_s - old) > 1.0:
            times.append(now_s)
        known = one.started_s if one.started_s is not None else old
        if known is not None:
            starts[one.address] = known
        restarts[one.address] = times[-1000:]
    return starts, restarts
