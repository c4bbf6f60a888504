"""Is this machine overloaded, or about to run out of file handles?"""

from pydantic import Field

from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, PluginConfig, check
from monitor.probes_contract import Load

AVERAGE = Metric("monitor_load_average", "Tasks that run or wait to run or for a disk, on average.", ("minutes",))
CPUS = Metric("monitor_cpus", "Processors of this machine.")
FILES = Metric("monitor_open_files", "Open file handles of the whole machine.")
FILES_LIMIT = Metric("monitor_open_files_limit", "File handles that the machine can have open.")

HIGH = FindingKind("LoadHigh", Severity.P3, "INC-005", "The load of five minutes is above warn_per_cpu for each processor.")
FILES_HIGH = FindingKind("OpenFilesHigh", Severity.P2, None, "The machine has used up warn_files_percent of its file handles.")


class Config(PluginConfig):
    """Keys of a ``load`` check."""

    warn_per_cpu: float = Field(2.0, gt=0, description="LoadHigh when the load of five minutes is above this for each processor.")
    warn_files_percent: float = Field(80.0, gt=0, le=100, description="OpenFilesHigh from this share of the file handles on.")


@check(
    "load",
    config=Config,
    metrics=(AVERAGE, CPUS, FILES, FILES_LIMIT),
    finds=(HIGH, FILES_HIGH),
    blind="The kernel's figures cannot be read.",
    why="On an overloaded machine everything is slow at once (INC-005), and the cause is none of the services' own.",
)
async def load(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at this machine's load averages against its processors, and at its open files against the kernel's limit."""
    return judge(await ctx.host.load(), cfg, service=ctx.service.name)


def judge(seen: Load, cfg: Config, *, service: str) -> Observed:
    """What the figures mean. Pure."""
    averages = {"1": seen.per_minute, "5": seen.per_five, "15": seen.per_fifteen}
    samples: list[Sample] = [AVERAGE(value, minutes=minutes) for minutes, value in averages.items()]
    samples.append(CPUS(seen.cpus))
    findings: list[Finding] = []
    per_cpu = seen.per_five / seen.cpus
    if per_cpu > cfg.warn_per_cpu:
        facts = {
            "load": f"{seen.per_minute:.1f} in 1 min, {seen.per_five:.1f} in 5 min, {seen.per_fifteen:.1f} in 15 min",
            "processors": str(seen.cpus),
            "first": "ps -eo pid,stat,pcpu,comm --sort=-pcpu | head: who runs (R) or waits for a disk (D)",
        }
        findings.append(HIGH(f"the load of {service} is {per_cpu:.1f} for each processor over 5 min", facts=facts, value=per_cpu))
    if seen.open_files is not None and seen.max_open_files:
        percent = 100 * seen.open_files / seen.max_open_files
        samples += [FILES(seen.open_files), FILES_LIMIT(seen.max_open_files)]
        if percent >= cfg.warn_files_percent:
            facts = {
                "open": f"{seen.open_files:,} of {seen.max_open_files:,}",
                "first": "lsof -n | awk '{print $1}' | sort | uniq -c | sort -n | tail",
            }
            findings.append(FILES_HIGH(f"{service} has used up {percent:.0f} % of its file handles", facts=facts, value=percent))
    return Observed(tuple(samples), tuple(findings))
