"""The external identity provider: password grants and token introspection, over plain HTTP.

Owns the issued tokens, in memory. Shapes follow RFC 6749 §4.3 (grant), RFC 6749 §5.2 (errors) and RFC 7662 (introspection).
"""

import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKENS_MAX = 20_000
FORM_MAX_BYTES = 16_384
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


@dataclass(frozen=True, slots=True)
class User:
    """Someone who can log in. ``tenants`` may hold ``"*"``: every tenant."""

    username: str
    password: str
    tenants: tuple[str, ...] = ("*",)

    def may_enter(self, tenant_id: str) -> bool:
        return bool(tenant_id) and ("*" in self.tenants or tenant_id in self.tenants)


@dataclass(frozen=True, slots=True)
class Token:
    username: str
    tenant_id: str
    issued_at: float
    expires_at: float
    """Unix seconds."""


class Directory:
    """The users and the tokens that were issued to them."""

    def __init__(self, users: Sequence[User], token_ttl_s: float, unix_time: Callable[[], float]) -> None:
        self.token_ttl_s = token_ttl_s
        self._users = {user.username: user for user in users}
        self._tokens: dict[str, Token] = {}
        self._unix_time = unix_time

    def log_in(self, username: str, password: str, tenant_id: str) -> str | None:
        """A fresh opaque token, or None when user, password or tenant is wrong (which of them is not told)."""
        user = self._users.get(username)
        known = hmac.compare_digest(password.encode(), (user.password if user else "").encode())
        if user is None or not known or not user.may_enter(tenant_id):
            return None
        now = self._unix_time()
        self._forget_expired(now)
        token = secrets.token_urlsafe(32)
        self._tokens[token] = Token(username, tenant_id, now, now + self.token_ttl_s)
        return token

    def find(self, token: str) -> Token | None:
        """The token while it is valid."""
        found = self._tokens.get(token)
        return found if found and found.expires_at > self._unix_time() else None

    def _forget_expired(self, now: float) -> None:
        # Tokens are kept in order of issue and live equally long, so the expired and the oldest ones are in front.
        while self._tokens:
            oldest = next(iter(self._tokens))
            if self._tokens[oldest].expires_at > now and len(self._tokens) < TOKENS_MAX:
                return
            del self._tokens[oldest]


async def _form(request: Request) -> dict[str, str] | None:
    """The first value of every field of an urlencoded body, or None when the body is something else."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        return None
    body = await request.body()
    if len(body) > FORM_MAX_BYTES:
        return None
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace"), keep_blank_values=True).items()}


def _refuse(status: int, error: str, description: str) -> JSONResponse:
    return JSONResponse({"error": error, "error_description": description}, status, headers=NO_STORE)


MODES = ("ok", "error", "forget", "no-introspection")
"""``error`` answers every request with 503, ``no-introspection`` the token checks only; ``forget`` gives tokens and does not know them."""


class _Provider:
    """The endpoints over one directory, and the mode that the faults switch."""

    def __init__(self, directory: Directory, unix_time: Callable[[], float]) -> None:
        self._directory = directory
        self._unix_time = unix_time
        self._mode = MODES[0]

    async def control(self, request: Request) -> Response:
        if request.method == "POST":
            try:
                wanted = (await request.json())["mode"]
            except (ValueError, KeyError, TypeError):
                wanted = None
            if wanted not in MODES:
                return _refuse(400, "invalid_request", f"mode: expected one of {', '.join(MODES)}")
            self._mode = wanted
        return JSONResponse({"mode": self._mode})

    async def token(self, request: Request) -> Response:
        if self._mode == "error":
            return _DOWN
        form = await _form(request)
        if form is None:
            return _refuse(400, "invalid_request", "expected a small application/x-www-form-urlencoded body")
        if form.get("grant_type") != "password":
            return _refuse(400, "unsupported_grant_type", "only grant_type=password is served")
        issued = self._directory.log_in(form.get("username", ""), form.get("password", ""), form.get("tenant_id", ""))
        if issued is None:
            return _refuse(401, "invalid_grant", "wrong username, password or tenant")
        answer = {"access_token": issued, "token_type": "Bearer", "expires_in": int(self._directory.token_ttl_s)}
        return JSONResponse(answer, headers=NO_STORE)

    async def introspect(self, request: Request) -> Response:
        if self._mode in {"error", "no-introspection"}:
            return _DOWN
        form = await _form(request)
        if form is None or "token" not in form:
            return _refuse(400, "invalid_request", "expected the form field token")
        found = self._directory.find(form["token"])
        if found is None or self._mode == "forget":
            return JSONResponse({"active": False}, headers=NO_STORE)
        answer = {
            "active": True,
            "sub": found.username,
            "username": found.username,
            "tenant_id": found.tenant_id,
            "token_type": "Bearer",
            "iat": int(found.issued_at),
            "exp": int(found.expires_at),
        }
        return JSONResponse(answer, headers=NO_STORE)

    async def health(self, _: Request) -> Response:
        if self._mode == "error":
            return _DOWN
        return JSONResponse({"service": "identity-provider", "status": "healthy", "timestamp": self._unix_time()})


_DOWN = _refuse(503, "temporarily_unavailable", "the identity provider is down for maintenance")


def create_app(users: Sequence[User], *, token_ttl_s: float = 3600, unix_time: Callable[[], float] = time.time) -> Starlette:
    """The provider for these users. Routes: ``POST /oauth/token``, ``POST /oauth/introspect``, ``GET /health``.

    The faults switch it through ``/_control`` (loopback only).
    """
    provider = _Provider(Directory(users, token_ttl_s, unix_time), unix_time)
    return Starlette(
        routes=[
            Route("/oauth/token", provider.token, methods=["POST"]),
            Route("/oauth/introspect", provider.introspect, methods=["POST"]),
            Route("/health", provider.health),
            Route("/_control", provider.control, methods=["GET", "POST"]),
        ]
    )
