"""Do the processes of a service run, and within their bounds?"""

from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from checks.partly import or_blind
from checks.words import lasted, many, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, Service, check
from monitor.probes_contract import HostProcess, Unit

COUNT = Metric("monitor_processes", "Processes of the service.")
RSS = Metric("monitor_processes_resident_bytes", "Resident memory of the service's processes together.")
CPU = Metric("monitor_processes_cpu_ratio", "Processors that the service's processes keep busy, since the run before.")
FILES = Metric("monitor_processes_open_files", "Open files of the process that has the most.")
YOUNGEST = Metric("monitor_processes_youngest_seconds", "How long the process that was started last has been running.")
RESTARTS = Metric("monitor_processes_restarts", "Restarts of the service's processes within restarts_within.")

MISSING = FindingKind("ProcessMissing", Severity.P2, "INC-001", "Fewer processes than at_least run.")
TOO_MANY = FindingKind("TooManyProcesses", Severity.P3, None, "More processes than at_most run: something is not ended, or started twice.")
NOT_LISTENING = FindingKind("PortNotBound", Severity.P2, "INC-001", "The service's processes run, and none of them listens on the port.")
RSS_HIGH = FindingKind("ProcessMemoryHigh", Severity.P3, None, "A process holds more memory than max_resident_bytes.")
CPU_HIGH = FindingKind("ProcessCpuHigh", Severity.P3, "INC-005", "The processes keep more processors busy than max_cpus.")
FILES_HIGH = FindingKind("ProcessFilesHigh", Severity.P2, None, "A process has used up warn_files_percent of its open files.")
LOOPING = FindingKind(
    "RestartLoop", Severity.P2, "INC-001", "The processes were started more often than max_restarts within restarts_within."
)
UNIT_DOWN = FindingKind("UnitNotActive", Severity.P2, "INC-001", "The systemd unit is not active.")


class Config(PluginConfig):
    """Keys of a ``processes`` check."""

    command: str | None = Field(
        None,
        min_length=1,
        max_length=500,
        description="Text in the command lines of the processes. Without it, those that listen on the port.",
    )
    port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="The TCP port they listen on; that of the service's url where it is left out; 0 with command: none is looked for.",
    )
    unit: str | None = Field(None, description="The systemd unit that must be active, such as nginx.service.")
    at_least: int = Field(1, ge=1, description="ProcessMissing with fewer processes.")
    at_most: int | None = Field(None, ge=1, description="TooManyProcesses with more.")
    max_resident_bytes: int | None = Field(None, gt=0, description="ProcessMemoryHigh when one process holds more.")
    max_cpus: float | None = Field(None, gt=0, description="ProcessCpuHigh when they keep more processors busy, together.")
    warn_files_percent: float = Field(
        80.0, ge=0, le=100, description="ProcessFilesHigh from this share of a process's limit on; 0: open files are not looked at."
    )
    max_restarts: int = Field(3, ge=0, description="RestartLoop with more restarts …")
    restarts_within: Duration = Field(1800.0, gt=0, description="… within this time.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError("at_most must not be below at_least")
        if self.port == 0 and self.command is None:
            raise ValueError("port = 0 needs a command: something has to say which processes are meant")
        return self


@check(
    "processes",
    config=Config,
    metrics=(COUNT, RSS, CPU, FILES, YOUNGEST, RESTARTS),
    finds=(MISSING, TOO_MANY, NOT_LISTENING, RSS_HIGH, CPU_HIGH, FILES_HIGH, LOOPING, UNIT_DOWN),
    blind="Ports or open files of the processes cannot be seen because they belong to another user, there is no systemd, or nothing says "
    "what to look for.",
    why="A service that is restarted every minute answers its health check in between; memory and open files tell of the end before.",
    privileges="To see ports, open files and limits of another user's processes, the monitor runs as that user or with CAP_SYS_PTRACE. "
    "Without, `command` with `port = 0` and `warn_files_percent = 0` watches what everybody may see: number, memory, processors, restarts.",
)
async def processes(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at the processes of a service on this machine: how many, since when, their memory, processors, open files, port and unit."""
    port = cfg.port if cfg.port is not None else port_of(ctx.service)
    if cfg.command is None and port is None:
        raise CannotLook(f"nothing says which processes are those of {ctx.service.name}: set command or port, or the service's url")
    found = await ctx.host.processes(cfg.command or "", port=port if cfg.command is None else None)
    unit = await ctx.host.unit(cfg.unit) if cfg.unit is not None else None
    before = ctx.kept.value if ctx.kept else {}
    return or_blind(
        judge(found, unit, before, cfg, port=port, now_s=ctx.clock.now().timestamp(), service=ctx.service.name), unseen(found, cfg, port)
    )


def port_of(service: Service) -> int | None:
    """The port of the service's url; None without a url."""
    if service.url is None:
        return None
    url = urlsplit(service.url)
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def judge(
    found: Sequence[HostProcess], unit: Unit | None, before: dict[str, Any], cfg: Config, *, port: int | None, now_s: float, service: str
) -> Observed:
    """What was seen means this. Pure. ``before`` is what the last run kept: times of starts, CPU time, the unit's restarts."""
    starts = _starts(found, unit, before, cfg, now_s)
    busy = _busy(found, before, now_s)
    files = [(one.open_files / one.max_open_files, one) for one in found if one.open_files is not None and one.max_open_files]
    samples: list[Sample] = [COUNT(len(found)), RSS(sum(one.rss_bytes for one in found)), RESTARTS(len(starts))]
    if busy is not None:
        samples.append(CPU(busy))
    if files:
        samples.append(FILES(max(one.open_files or 0 for _, one in files)))
    if found:
        samples.append(YOUNGEST(max(0.0, now_s - max(one.started_at.timestamp() for one in found))))
    facts = _facts(found, unit, now_s)
    findings = _presence(found, unit, cfg, port, facts, service)
    findings += _bounds(found, busy, files, cfg, service)
    if len(starts) > cfg.max_restarts:
        summary = f"{service} was started anew {len(starts)} times within {lasted(cfg.restarts_within)}"
        findings.append(LOOPING(summary, facts={**facts, "first": "the last lines of its error log before each start"}, value=len(starts)))
    cpu = {_identity(one): one.cpu_s for one in found[:500]}
    keep = {"starts": starts, "cpu": cpu, "at_s": now_s, "unit": unit.restarts if unit else None}
    return Observed(tuple(samples), tuple(findings), keep=keep)


def _starts(found: Sequence[HostProcess], unit: Unit | None, before: dict[str, Any], cfg: Config, now_s: float) -> list[float]:
    """When restarts were seen within restarts_within. What systemd restarted between two runs counts each; else one run sees one at most.

    Workers come and go: a process counts only when its parent is none of the service's own.
    """
    recent = [at for at in before.get("starts", []) if now_s - cfg.restarts_within < at <= now_s]
    if not before:
        return recent
    own = {one.pid for one in found}
    anew = any(_identity(one) not in before["cpu"] for one in found if one.parent not in own)
    by_unit = max(0, unit.restarts - before["unit"]) if unit is not None and before["unit"] is not None else 0
    return (recent + [now_s] * max(int(anew), by_unit))[-1000:]


def _identity(one: HostProcess) -> str:
    """Numbers of processes are used again; with the time of its start it is one process."""
    return f"{one.pid} {one.started_at.timestamp():.2f}"


def _busy(found: Sequence[HostProcess], before: dict[str, Any], now_s: float) -> float | None:
    """Processors kept busy since the run before; None at the first run. A process that is new since then counts from its start."""
    if not before or now_s <= before["at_s"]:
        return None
    spent = sum(one.cpu_s - float(before["cpu"].get(_identity(one), 0.0)) for one in found)
    return float(max(0.0, spent) / (now_s - before["at_s"]))


def _facts(found: Sequence[HostProcess], unit: Unit | None, now_s: float) -> dict[str, str]:
    facts = {}
    if unit is not None:
        facts[unit.name] = f"{unit.active} ({unit.sub}), result {unit.result or 'unknown'}, {many(unit.restarts, 'restart')}"
    for one in sorted(found, key=lambda one: (-one.rss_bytes, one.pid))[:5]:
        age = lasted(max(0.0, now_s - one.started_at.timestamp()))
        opened = f", {one.open_files:,} open files" if one.open_files is not None else ""
        facts[f"process {one.pid}"] = f"{sized(one.rss_bytes)}, for {age}{opened}: {one.command[:80]}"
    return facts


def _presence(
    found: Sequence[HostProcess], unit: Unit | None, cfg: Config, port: int | None, facts: dict[str, str], service: str
) -> list[Finding]:
    findings = []
    if unit is not None and unit.active not in {"active", "reloading"}:
        first = {"first": f"systemctl status {unit.name}; journalctl -u {unit.name} -n 50"}
        findings.append(UNIT_DOWN(f"the unit {unit.name} of {service} is {unit.active} ({unit.sub})", facts={**facts, **first}))
    where = f"with {cfg.command!r} in the command line" if cfg.command is not None else f"that listens on port {port}"
    if len(found) < cfg.at_least:
        summary = (
            f"no process of {service} runs, none {where}" if not found else f"{len(found)} of {cfg.at_least} processes of {service} run"
        )
        findings.append(MISSING(summary, facts={**facts, "looked for": f"a process {where}"}, value=len(found)))
    elif cfg.at_most is not None and len(found) > cfg.at_most:
        findings.append(
            TOO_MANY(f"{len(found)} processes of {service} run, at most {cfg.at_most} are expected", facts=facts, value=len(found))
        )
    if cfg.command is not None and port and found and not _port_unseen(found, port) and not any(port in one.listens_on for one in found):
        ports = sorted({number for one in found for number in one.listens_on})
        shown = ", ".join(map(str, ports[:10])) or "none"
        findings.append(NOT_LISTENING(f"{service} runs but does not listen on port {port}", facts={"it listens on": shown, **facts}))
    return findings


def unseen(found: Sequence[HostProcess], cfg: Config, port: int | None) -> list[str]:
    """What is wanted of these processes and cannot be seen. Pure."""
    missing = []
    if cfg.command is not None and port and _port_unseen(found, port):
        missing.append(f"whether they listen on port {port} (port = 0 does without)")
    if cfg.warn_files_percent and (hidden := [one for one in found if one.open_files is None or one.max_open_files is None]):
        missing.append(
            f"the open files of {len(hidden)} of {many(len(found), 'process', 'processes')} (warn_files_percent = 0 does without)"
        )
    cure = "run the monitor as the user of these processes or with CAP_SYS_PTRACE"
    return [f"this user may not see {' and '.join(missing)}: {cure}"] if missing else []


def _port_unseen(found: Sequence[HostProcess], port: int) -> bool:
    """Whether a process may listen on the port without being seen to: of another user's, no port is seen at all."""
    return not any(port in one.listens_on for one in found) and any(not one.listens_on and one.open_files is None for one in found)


def _bounds(
    found: Sequence[HostProcess], busy: float | None, files: Sequence[tuple[float, HostProcess]], cfg: Config, service: str
) -> list[Finding]:
    findings = []
    if cfg.max_resident_bytes is not None and found:
        biggest = max(found, key=lambda one: one.rss_bytes)
        if biggest.rss_bytes > cfg.max_resident_bytes:
            facts = {"process": f"{biggest.pid}: {biggest.command[:100]}", "allowed": sized(cfg.max_resident_bytes)}
            summary = f"a process of {service} holds {sized(biggest.rss_bytes)} of memory"
            findings.append(RSS_HIGH(summary, facts=facts, value=biggest.rss_bytes))
    if cfg.max_cpus is not None and busy is not None and busy > cfg.max_cpus:
        findings.append(
            CPU_HIGH(f"the processes of {service} keep {busy:.1f} processors busy", facts={"allowed": f"{cfg.max_cpus:g}"}, value=busy)
        )
    share, most = max(files, key=lambda pair: pair[0], default=(0.0, None))
    if most is not None and cfg.warn_files_percent and 100 * share >= cfg.warn_files_percent:
        facts = {
            "process": f"{most.pid}: {most.command[:100]}",
            "open": f"{most.open_files:,} of {most.max_open_files:,}",
            "first": f"ls -l /proc/{most.pid}/fd | awk '{{print $NF}}' | sort | uniq -c | sort -n | tail",
        }
        findings.append(
            FILES_HIGH(f"a process of {service} has used up {100 * share:.0f} % of its open files", facts=facts, value=100 * share)
        )
    return findings
