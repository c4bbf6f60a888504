"""One JSON request of a notifier over HTTPS: what comes back, or a ``DeliveryError`` that says whether another attempt can help."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from alerts.message import clean
from alerts.transport import retry_after_s, tls_context
from monitor.errors import DeliveryError
from monitor.plugins import NotifyContext

ANSWER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any
    """The decoded JSON; None when there was none."""


class JsonClient:
    """Requests of one notification to one provider, all of them under the context's deadline. ``name`` is how errors call it.

    Redirects are not followed: they would carry credentials elsewhere. Nothing of ``secrets`` appears in an error.
    """

    def __init__(
        self,
        ctx: NotifyContext,
        name: str,
        base_url: str,
        *,
        headers: Mapping[str, str],
        ca_file: str | None,
        secrets: tuple[str, ...] = (),
        auth: tuple[str, str] | None = None,
    ) -> None:
        self._ctx = ctx
        self._name = name
        self._secrets = secrets
        try:
            self._client = httpx2.AsyncClient(
                base_url=base_url.rstrip("/") + "/",
                headers={"Accept": "application/json", "User-Agent": "platform-monitor", **headers},
                auth=auth,
                verify=tls_context(ca_file),
                timeout=min(5.0, ctx.deadline_s),
                follow_redirects=False,
                trust_env=False,
            )
        except httpx2.InvalidURL as exc:
            raise DeliveryError(f"{name}: not a usable address: {clean(str(exc), 200)}", retryable=False) from exc

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.__aexit__(kind, exc, trace)

    async def call(self, method: str, path: str, body: Any = None, *, content: bytes | None = None, **more: Any) -> Answer:
        """Any 2xx, and the statuses in ``allow``. Raises ``DeliveryError`` for everything else."""
        allow = more.pop("allow", ())
        try:
            async with (
                asyncio.timeout(self._ctx.deadline_s),
                self._client.stream(method, path, json=body, content=content, **more) as response,
            ):
                taken = bytearray()
                async for chunk in response.aiter_bytes(65_536):
                    taken += chunk
                    if len(taken) > ANSWER_BYTES:
                        raise DeliveryError(f"{self._name}'s answer is larger than {ANSWER_BYTES} bytes", retryable=True)
        except (TimeoutError, httpx2.TimeoutException) as exc:
            raise DeliveryError(f"{self._name} did not answer in time", retryable=True) from exc
        except (httpx2.TransportError, httpx2.DecodingError) as exc:
            cause = clean(str(exc), 200)
            raise DeliveryError(
                f"{self._name} is not reachable: {type(exc).__name__}{f': {cause}' if cause else ''}", retryable=True
            ) from exc
        answer = Answer(response.status_code, _read(bytes(taken)))
        if response.status_code < 300 or response.status_code in allow:
            return answer
        raise self._refused(response, answer)

    def _refused(self, response: httpx2.Response, answer: Answer) -> DeliveryError:
        status = response.status_code
        asked = response.headers.get("Retry-After") or (response.headers.get("ratelimit-reset") if status == 429 else None)
        wait_s = retry_after_s(asked, self._ctx.clock.now())
        limited = status == 429 or (status == 403 and (wait_s is not None or response.headers.get("X-RateLimit-Remaining") == "0"))
        said = _said(answer.body)
        for secret in self._secrets:
            said = said.replace(secret, "***")
        hint = "redirects are not followed" if 300 <= status < 400 else clean(said, 200)
        reason = f"{self._name} answered {status}{f': {hint}' if hint else ''}"
        return DeliveryError(reason, retryable=limited or status >= 500 or status == 408, retry_after_s=wait_s)


def _read(content: bytes) -> Any:
    try:
        return json.loads(content) if content.strip() else None
    except ValueError:
        return None


def _said(body: Any) -> str:
    """The provider's own words: GitHub's ``message``, Jira's ``errorMessages`` and ``errors``, PagerDuty's ``error``."""
    if isinstance(body, str):
        return body
    if not isinstance(body, dict):
        return ""
    if isinstance(body.get("error"), dict):
        return _said(body["error"])
    parts = [body.get("message"), *(body.get("errorMessages") or ())]
    errors = body.get("errors")
    if isinstance(errors, list):
        parts += [text for text in errors if isinstance(text, str)]
    if isinstance(errors, dict):
        parts += [f"{name}: {text}" for name, text in errors.items()]
    return "; ".join(str(part) for part in parts if part)
