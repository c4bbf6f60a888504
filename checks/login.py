"""Can a user log in, are tokens accepted everywhere, and is nobody let in without one?

The whole way of a user, with a synthetic one: what every single service says of itself proves none of this.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from checks.synthetic_user import Pass, Refusal, SyntheticUser, log_in
from checks.words import many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, check
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpReason, HttpRequest

UP = Metric("monitor_login_up", "1 when the synthetic user could log in, 0 when not.")
DURATION = Metric("monitor_login_duration_seconds", "Time of the latest log-in, and of the slowest request with its token.", ("step",))
REJECTED = Metric("monitor_login_tokens_rejected", "Protected addresses that refused the token that was just given.")

CANNOT = FindingKind("CannotLogIn", Severity.P2, "INC-006", "The synthetic user cannot log in.", fells=True)
TOKENS = FindingKind(
    "TokenRejected", Severity.P2, "INC-006", "A token that was just given is refused by some services, or none can say whether it is good."
)
ALL_REFUSED = FindingKind("AllRequestsRefused", Severity.P2, "INC-006", "Every protected address answers 401 or 403 to a token just given.")
OPEN = FindingKind("OpenWithoutToken", Severity.P1, "INC-006", "A protected address lets a request in that has no token.")
SLOW = FindingKind("LoginSlow", Severity.P3, "INC-005", "Logging in takes longer than slow_after.")

REFUSED = (401, 403)


class Config(SyntheticUser):
    """Keys of a ``login`` check."""

    protected: tuple[str, ...] = Field(
        ("/api/v1/verify",),
        max_length=20,
        description="Addresses that only a token opens: paths of this service, or whole URLs of others. Reading ones, without effect.",
    )
    without_token_every: Duration = Field(
        3600.0, ge=0, description="How often the addresses are tried without a token: each try is a 401 in the services' own logs."
    )
    slow_after: Duration = Field(2.0, gt=0, description="LoginSlow when the log-in takes longer.")
    deadline: Duration = Field(6.0, gt=0, le=30, description="For everything together.")

    @field_validator("protected")
    @classmethod
    def _addresses(cls, protected: tuple[str, ...]) -> tuple[str, ...]:
        for one in protected:
            if not (one.startswith("/") or urlsplit(one).scheme in {"http", "https"}) or not one.isprintable() or " " in one:
                raise ValueError("write a path such as /api/v1/verify, or a whole URL")
        return protected


@dataclass(frozen=True, slots=True)
class Tried:
    """One protected address: the status with the token and without; 0 when there was no whole answer, None when not tried."""

    address: str
    with_token: int
    without: int | None
    duration_s: float


@check(
    "login",
    config=Config,
    metrics=(UP, DURATION, REJECTED),
    finds=(CANNOT, TOKENS, ALL_REFUSED, OPEN, SLOW),
    needs=("url",),
    blind="The monitor has no connection or memory left for its own requests, or none of the protected addresses answers.",
    why="Users who cannot log in see no error in any log of theirs (INC-006), and every service still calls itself healthy.",
    privileges="A user of your own at the identity provider, in a tenant of your own, that may read and no more.",
)
async def login(ctx: CheckContext, cfg: Config) -> Observed:
    """Logs in as a synthetic user, then asks protected addresses of every service with the token, and without one."""
    base = (ctx.service.url or "").rstrip("/")
    until = ctx.clock.monotonic() + cfg.deadline
    made = await log_in(ctx.http, base, cfg, deadline_s=cfg.deadline * 2 / 3)
    if isinstance(made, Refusal):
        if made.error == HttpReason.OTHER.value and made.status == 0:
            raise CannotLook(f"the log-in at {ctx.service.name} could not be tried: {made.detail}")
        return refused(made, cfg, service=ctx.service.name)
    left_s = max(0.5, until - ctx.clock.monotonic())
    before = ctx.kept.value if ctx.kept else {}
    now_s = ctx.clock.now().timestamp()
    bare = not 0 <= now_s - before.get("bare_at", -math.inf) < cfg.without_token_every
    tried = await asyncio.gather(*(_try(ctx, base, one, made, left_s, bare=bare) for one in cfg.protected))
    if tried and all(one.with_token == 0 for one in tried):
        raise CannotLook(f"no protected address answers: {', '.join(one.address for one in tried[:3])}: their own checks say why")
    opened = [one.address for one in tried if 200 <= (one.without or 0) < 300] if bare else before["opened"]
    observed = judge(made, tried, opened, cfg, service=ctx.service.name)
    return replace(observed, keep={"bare_at": now_s if bare else before["bare_at"], "opened": opened})


async def _try(ctx: CheckContext, base: str, address: str, made: Pass, deadline_s: float, *, bare: bool) -> Tried:
    url = f"{base}{address}" if address.startswith("/") else address
    tenant = tuple(header for header in made.headers if header[0] != "Authorization")
    sent = (made.headers, tenant) if bare else (made.headers,)
    with_token, *without = await asyncio.gather(
        *(ctx.http.fetch(HttpRequest(url=url, headers=headers, deadline_s=deadline_s)) for headers in sent)
    )
    return Tried(_shown(address), _status(with_token), _status(without[0]) if without else None, with_token.phases.total_s)


def _status(answer: HttpAnswer | HttpFailure) -> int:
    return answer.status if isinstance(answer, HttpAnswer) else 0


def _shown(address: str) -> str:
    """Without what may be a secret: user, query."""
    if address.startswith("/"):
        return address.partition("?")[0]
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def refused(made: Refusal, cfg: Config, *, service: str) -> Observed:
    """What a log-in means that gave no token. Pure."""
    if made.status in REFUSED:
        why = "the synthetic user is refused: the tenant is disabled, or the identity provider does not take its password"
    elif made.error == "idp_unavailable":
        why = "the identity provider does not answer"
    elif made.status == 0:
        why = f"{service} does not answer ({made.error})"
    else:
        why = f"{service} answers {made.status} ({made.error})"
    facts = {"status": str(made.status or "no answer"), "error": made.error, "said": made.detail, "tenant": cfg.tenant}
    facts["first"] = "SELECT id, is_active FROM tenant_config; then the identity provider's own page, then the auth service's error log"
    found = CANNOT(f"nobody can log in at {service}: {why}", facts={name: text for name, text in facts.items() if text})
    return Observed((UP(0),), (found,))


def judge(made: Pass, tried: Sequence[Tried], opened: Sequence[str], cfg: Config, *, service: str) -> Observed:
    """What the round trip means. Pure. ``opened`` are the addresses that let a request in without a token when that was last tried."""
    rejected = [one for one in tried if one.with_token in REFUSED]
    slowest = max((one.duration_s for one in tried), default=0.0)
    samples: list[Sample] = [UP(1), REJECTED(len(rejected)), DURATION(made.duration_s, step="login"), DURATION(slowest, step="request")]
    findings = _tokens(rejected, tried, service)
    if opened:
        facts = {"open": ", ".join(opened[:8]), "first": "take it off the network, then find what changed in who may enter"}
        findings.append(OPEN(f"{opened[0]} lets everybody in, without a token ({service})", facts=facts, value=len(opened)))
    if made.duration_s > cfg.slow_after:
        facts = {"log-in": f"{made.duration_s:.2f} s", "slowest request": f"{slowest:.2f} s"}
        findings.append(SLOW(f"logging in at {service} takes {made.duration_s:.1f} s", facts=facts, value=made.duration_s))
    return Observed(tuple(samples), tuple(findings))


def _tokens(rejected: Sequence[Tried], tried: Sequence[Tried], service: str) -> list[Finding]:
    """Where the token is not taken. An address that cannot ask the provider for its verdict answers 5xx, not 401."""
    failing = [one for one in tried if one.with_token >= 500]
    facts = {one.address: f"{one.with_token} with a token just given" for one in (*rejected, *failing)[:8]}
    if rejected:
        facts["first"] = "does the identity provider know its own tokens (introspection)? Do the clocks agree?"
        if len(rejected) == len([one for one in tried if one.with_token]):
            return [ALL_REFUSED(f"every request is refused, with a token that {service} just gave", facts=facts, value=len(rejected))]
        what = many(len(rejected), "address", "addresses")
        return [TOKENS(f"{what} of {len(tried)} refuse a token that {service} just gave", facts=facts, value=len(rejected))]
    if failing and len(failing) == len([one for one in tried if one.with_token]):
        facts["first"] = "does the identity provider answer introspection? The services' error logs say whom they could not ask"
        what = f"{len(failing)} of {many(len(tried), 'address', 'addresses')} fail"
        summary = f"no address takes a token that {service} just gave: {what} with {_counted(failing)}"
        return [TOKENS(summary, facts=facts, value=len(failing))]
    return []


def _counted(failing: Sequence[Tried]) -> str:
    return ", ".join(str(status) for status in sorted({one.with_token for one in failing}))
