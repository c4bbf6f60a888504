"""Does this machine still have memory, and did the kernel have to kill for it?"""

from typing import Any

from pydantic import Field

from checks.partly import or_blind
from checks.words import lasted, many, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check
from monitor.probes_contract import Memory

TOTAL = Metric("monitor_memory_size_bytes", "Memory of this machine.")
AVAILABLE = Metric("monitor_memory_available_bytes", "What programs can still get without swapping.")
SWAP_USED = Metric("monitor_swap_used_bytes", "Swap space in use.")
SWAP_TOTAL = Metric("monitor_swap_size_bytes", "Swap space of this machine.")
KILLS = Metric("monitor_oom_kills_total", "Processes that the kernel killed for want of memory since it was started.", kind="counter")

LOW = FindingKind(
    "MemoryLow",
    Severity.P3,
    None,
    "Less than warn_available_percent is available; P2 below critical_available_percent: the kernel kills soon.",
)
SWAPPING = FindingKind("SwapFull", Severity.P3, None, "More than warn_swap_percent of the swap space is in use.")
KILLED = FindingKind("OomKill", Severity.P2, None, "The kernel killed a process for want of memory.")

NO_KILLS = "the kernel does not tell whether it killed for want of memory: no oom_kill in /proc/vmstat (Linux before 4.13, or not mounted)"


class Config(PluginConfig):
    """Keys of a ``memory`` check."""

    warn_available_percent: float = Field(10.0, ge=0, lt=100, description="MemoryLow below this share of available memory.")
    critical_available_percent: float = Field(5.0, ge=0, lt=100, description="MemoryLow is P2 below this share.")
    warn_swap_percent: float = Field(80.0, gt=0, le=100, description="SwapFull above this share, where there is swap space.")
    killed_within: Duration = Field(3600.0, gt=0, description="OomKill is told for so long after the last one.")


@check(
    "memory",
    config=Config,
    metrics=(TOTAL, AVAILABLE, SWAP_USED, SWAP_TOTAL, KILLS),
    finds=(LOW, SWAPPING, KILLED),
    blind="The kernel's figures cannot be read, or its count of kills is missing (oom_kill in /proc/vmstat) and nothing else is found.",
    why="Out of memory, the kernel kills the biggest process: mostly PostgreSQL or a worker in the middle of a job.",
)
async def memory(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at this machine's available memory and swap space, and counts what the kernel killed for want of memory."""
    before = ctx.kept.value if ctx.kept else {}
    return judge(await ctx.host.memory(), before, cfg, now_s=ctx.clock.now().timestamp(), service=ctx.service.name)


def judge(seen: Memory, before: dict[str, Any], cfg: Config, *, now_s: float, service: str) -> Observed:
    """What the figures mean. Pure. ``before`` is the last count of kills, and when a new one was last seen.

    Raises ``CannotLook`` when the kernel does not tell of kills and nothing else is found.
    """
    samples = [TOTAL(seen.total_bytes), AVAILABLE(seen.available_bytes), SWAP_USED(seen.swap_used_bytes), SWAP_TOTAL(seen.swap_total_bytes)]
    findings = _available(seen, cfg, service)
    if seen.swap_total_bytes and (percent := 100 * seen.swap_used_bytes / seen.swap_total_bytes) > cfg.warn_swap_percent:
        facts = {"swap": f"{sized(seen.swap_used_bytes)} of {sized(seen.swap_total_bytes)}", "first": "vmstat 1 10: is it moving (si, so)?"}
        findings.append(SWAPPING(f"{percent:.0f} % of the swap space of {service} is in use", facts=facts, value=percent))
    keep = _kills(seen.oom_kills, before, now_s)
    if seen.oom_kills is not None:
        samples.append(KILLS(seen.oom_kills))
        findings += _killed(keep, cfg, now_s, service)
    unseen = [] if seen.oom_kills is not None else [NO_KILLS]
    return or_blind(Observed(tuple[Sample, ...](samples), tuple(findings), keep=keep), unseen)


def _available(seen: Memory, cfg: Config, service: str) -> list[Finding]:
    percent = 100 * seen.available_bytes / seen.total_bytes if seen.total_bytes else 100.0
    if percent >= cfg.warn_available_percent:
        return []
    severity = Severity.P2 if percent < cfg.critical_available_percent else None
    facts = {
        "available": f"{sized(seen.available_bytes)} of {sized(seen.total_bytes)}",
        "swap": f"{sized(seen.swap_used_bytes)} of {sized(seen.swap_total_bytes)} used",
        "first": "ps -eo pid,rss,comm --sort=-rss | head: who has it",
    }
    return [LOW(f"{service} has {percent:.1f} % of its memory available", facts=facts, severity=severity, value=percent)]


def _kills(count: int | None, before: dict[str, Any], now_s: float) -> dict[str, Any]:
    """What to keep: a count that became smaller belongs to a kernel that was started anew, whose kills are all new."""
    old = before.get("count")
    keep = {"count": old if count is None else count, "at_s": before.get("at_s"), "new": before.get("new", 0)}
    if count is not None and old is not None and count != old:
        new = count - old if count > old else count
        keep |= {"at_s": now_s, "new": new} if new else {}
    return keep


def _killed(keep: dict[str, Any], cfg: Config, now_s: float, service: str) -> list[Finding]:
    if keep["at_s"] is None or not 0 <= now_s - keep["at_s"] < cfg.killed_within:
        return []
    ago, number = lasted(now_s - keep["at_s"]), keep["new"]
    facts = {
        "seen": f"{ago} ago",
        "since the kernel's start": f"{keep['count']:,}",
        "first": "dmesg -T | grep -i 'killed process': which, and how big",
    }
    return [KILLED(f"the kernel of {service} killed {many(number, 'process', 'processes')} for want of memory", facts=facts, value=number)]
