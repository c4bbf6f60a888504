"""The external identity provider, seen from the services: log-in (RFC 6749, section 4.3) and token introspection (RFC 7662).

Owns no tokens and caches none: a token that was revoked is refused at once, and an outage is seen at once.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx2

from services.errors import IdpUnavailable

IDP_TIMEOUT_S = 5.0
"""For a whole exchange."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the provider says a token belongs to."""

    subject: str
    tenant_id: str


class IdentityProvider:
    """The provider at ``url``. Every method raises ``IdpUnavailable`` when it cannot be asked or does not make sense."""

    def __init__(self, url: str, client: httpx2.AsyncClient) -> None:
        self._url = url.rstrip("/")
        self._client = client

    async def log_in(self, tenant_id: str, username: str, password: str) -> dict[str, Any] | None:
        """``{access_token, token_type, expires_in}``, or None when the provider refuses these credentials."""
        form = {"grant_type": "password", "username": username, "password": password, "tenant_id": tenant_id}
        status, body = await self._post("/oauth/token", form)
        if status in {400, 401}:
            return None
        if status != 200 or not isinstance(body.get("access_token"), str):
            raise IdpUnavailable(f"the identity provider answered the log-in with status {status} and no token")
        return {name: body.get(name) for name in ("access_token", "token_type", "expires_in")}

    async def introspect(self, token: str) -> Identity | None:
        """Whom a token belongs to, or None when it is unknown, expired or revoked."""
        status, body = await self._post("/oauth/introspect", {"token": token})
        if status != 200 or not isinstance(body.get("active"), bool):
            raise IdpUnavailable(f"the identity provider answered the token check with status {status} and no verdict")
        return Identity(str(body.get("sub", "")), str(body.get("tenant_id", ""))) if body["active"] else None

    async def _post(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if not self._url:
            raise IdpUnavailable("IDP_URL is not set")
        try:
            async with asyncio.timeout(IDP_TIMEOUT_S):
                answer = await self._client.post(self._url + path, data=form)
            body = answer.json()
        except TimeoutError as exc:
            raise IdpUnavailable(f"the identity provider did not answer within {IDP_TIMEOUT_S:g} s") from exc
        except httpx2.HTTPError as exc:
            raise IdpUnavailable(f"the identity provider cannot be reached: {str(exc) or type(exc).__name__}") from exc
        except httpx2.InvalidURL as exc:
            raise IdpUnavailable(f"IDP_URL is not a URL: {exc}") from exc
        except ValueError:  # not JSON
            body = {}
        return answer.status_code, body if isinstance(body, dict) else {}
