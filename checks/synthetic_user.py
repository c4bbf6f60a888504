"""A user of our own: logs in at the auth service as people do. The token stays inside; nothing of it is ever shown."""

import json
from dataclasses import dataclass

from pydantic import Field, SecretStr

from monitor.plugins import PluginConfig, Secret, one_line
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpProbe, HttpRequest

MAX_BODY_BYTES = 65_536


class SyntheticUser(PluginConfig):
    """Keys of checks that log in."""

    username: str = Field(min_length=1, max_length=200, description="The synthetic user, who may read and no more.")
    password: Secret = Field(description="The user's password.")
    tenant: str = Field(
        min_length=1, max_length=100, pattern=r"^[!-~]+$", description="The tenant of the user: one of your own, for tests."
    )
    login_path: str = Field("/api/v1/login", pattern=r"^/[!-~]*$", description="Where the auth service takes log-ins.")


@dataclass(frozen=True, slots=True)
class Pass:
    """What a log-in gave."""

    headers: tuple[tuple[str, str], ...]
    """To be sent with every request of this user."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A log-in that gave no token."""

    status: int
    """0 when there was no whole answer."""
    error: str
    """The service's own name for it, or the reason why there was no answer."""
    detail: str


async def log_in(http: HttpProbe, url: str, user: SyntheticUser, *, deadline_s: float) -> Pass | Refusal:
    """Log in at the auth service at ``url``."""
    form = {"tenant_id": user.tenant, "username": user.username, "password": user.password.get_secret_value()}
    answer = await http.fetch(
        HttpRequest(
            url=f"{url.rstrip('/')}{user.login_path}",
            method="POST",
            headers=(("Content-Type", "application/json"), ("Accept", "application/json")),
            body=json.dumps(form).encode(),
            deadline_s=deadline_s,
            max_body_bytes=MAX_BODY_BYTES,
        )
    )
    if isinstance(answer, HttpFailure):
        return Refusal(0, answer.reason.value, one_line(answer.detail, limit=200))
    token = _field(answer, "access_token")
    if answer.status != 200 or not token:
        why = "the answer holds no access_token" if answer.status == 200 else _safe(_field(answer, "detail"), user.password)
        return Refusal(answer.status, _safe(_field(answer, "error"), user.password) or "no_token", why)
    return Pass((("Authorization", f"Bearer {token}"), ("X-Tenant-Id", user.tenant)), answer.phases.total_s)


def _field(answer: HttpAnswer, name: str) -> str:
    """A top-level text of the JSON answer; empty when it has none, or one that cannot be sent in a header."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return ""
    value = body.get(name) if isinstance(body, dict) else None
    return value if isinstance(value, str) and value.isprintable() else ""


def _safe(text: str, password: SecretStr) -> str:
    """What a service says of a log-in, without the password, should it repeat it."""
    return one_line(text.replace(password.get_secret_value(), "…"), limit=200)
