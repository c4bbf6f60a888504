"""Can the services reach what they take their data from, such as BigQuery and SFTP?

Asks the service that uses them: its network, its credentials and its limits are what counts, not the monitor's.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from checks.partly import or_blind
from checks.synthetic_user import Refusal, SyntheticUser, log_in
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, check, one_line
from monitor.probes_contract import HttpFailure, HttpRequest

UP = Metric("monitor_source_up", "1 when the service reaches this source of data, 0 when not.", ("source",))
DURATION = Metric("monitor_source_duration_seconds", "How long the service's latest question to this source took.", ("source",))

UNAVAILABLE = FindingKind(
    "SourceUnavailable", Severity.P2, "INC-003", "A service cannot reach a source of its data: no new data will come."
)
SLOW = FindingKind("SourceSlow", Severity.P3, "INC-005", "A source answers, but slower than slow_after.")

MAX_SOURCES = 20


class Config(SyntheticUser):
    """Keys of a ``sources`` check."""

    auth_url: str = Field(pattern=r"^https?://[!-~]+$", description="Where the synthetic user logs in: the url of the auth service.")
    path: str = Field("/api/v1/availability", pattern=r"^/[!-~]*$", description="What the service says of its sources.")
    slow_after: Duration = Field(3.0, gt=0, description="SourceSlow when a source takes longer.")
    deadline: Duration = Field(8.0, gt=0, le=60, description="For log-in and answer together.")


@check(
    "sources",
    config=Config,
    metrics=(UP, DURATION),
    finds=(UNAVAILABLE, SLOW),
    needs=("url",),
    blind="The synthetic user cannot log in, or the service does not answer what it was asked: of any source, or of one while it reaches "
    "all others.",
    why="When BigQuery or SFTP is away, the service is healthy, its jobs wait, and the dashboards show yesterday (INC-003).",
    privileges="A user of your own at the identity provider, in a tenant of your own, that may read and no more.",
)
async def sources(ctx: CheckContext, cfg: Config) -> Observed:
    """Asks a service as a synthetic user which of its sources it can reach now."""
    until = ctx.clock.monotonic() + cfg.deadline
    made = await log_in(ctx.http, cfg.auth_url, cfg, deadline_s=cfg.deadline / 2)
    if isinstance(made, Refusal):
        raise CannotLook(f"the synthetic user cannot log in: {made.error} {made.detail}: the login check says why")
    url = f"{(ctx.service.url or '').rstrip('/')}{cfg.path}"
    left_s = max(0.5, until - ctx.clock.monotonic())
    answer = await ctx.http.fetch(HttpRequest(url=url, headers=made.headers, deadline_s=left_s, max_body_bytes=65_536))
    if isinstance(answer, HttpFailure):
        raise CannotLook(f"{ctx.service.name} does not say whether it reaches its sources: {answer.reason.value}: {answer.detail}")
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    told = {name: seen for name, seen in body.items() if isinstance(seen, dict)} if isinstance(body, dict) else {}
    if answer.status not in {200, 503} or not told:
        raise CannotLook(f"{ctx.service.name} does not say whether it reaches its sources: it answers {answer.status} without any")
    return judge(told, cfg, service=ctx.service.name)


def judge(told: Mapping[str, Mapping[str, Any]], cfg: Config, *, service: str) -> Observed:
    """What the service says of each source. Pure.

    Raises ``CannotLook`` when it does not say whether one is available, and reaches all others.
    """
    samples: list[Sample] = []
    findings: list[Finding] = []
    unclear: list[str] = []
    for source, seen in sorted(told.items())[:MAX_SOURCES]:
        name, available, duration_s = one_line(source, limit=40), seen.get("available"), seen.get("duration_s")
        if not isinstance(available, bool):
            unclear.append(f"{service} does not say whether {name} is available")
            continue
        took = f"{duration_s:.1f} s" if isinstance(duration_s, int | float) else "unknown"
        samples.append(UP(available, source=name))
        if isinstance(duration_s, int | float):
            samples.append(DURATION(duration_s, source=name))
        if not available:
            facts = {"error": one_line(str(seen.get("error") or "none given"), limit=300), "took": took}
            facts["first"] = f"the status page of {name}; then the credentials and the network of {service}"
            findings.append(UNAVAILABLE(f"{service} cannot reach {name}", labels={"source": name}, facts=facts))
        elif isinstance(duration_s, int | float) and duration_s > cfg.slow_after:
            findings.append(
                SLOW(f"{name} takes {took} to answer {service}", labels={"source": name}, facts={"took": took}, value=duration_s)
            )
    return or_blind(Observed(tuple(samples), tuple(findings)), unclear)
