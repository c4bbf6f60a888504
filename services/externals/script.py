"""How a fake misbehaves on purpose: the next answers, scripted by ``POST /_script``, for drills and tests.

``{"next": [{"status": 429, "retry_after": 2}, {"status": 500}, {"hang": true}, {"reset": true}, {"error": "channel_not_found"}]}``
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

STEPS_MAX = 1000


class Step(BaseModel):
    """One answer to come. ``accept``: the call does its work first, so that only its answer is lost or wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: int | None = Field(default=None, ge=200, le=599)
    retry_after: float | None = Field(default=None, ge=0)
    body: str | None = None
    location: str | None = None
    error: str | None = None
    """Slack's own way to refuse: status 200 with ``ok: false`` and this code."""
    hang: bool = False
    reset: bool = False
    accept: bool = False


class _Steps(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    next: list[Step] = Field(max_length=STEPS_MAX)


class Script:
    """The answers to come; each API call takes one. An empty script means good behaviour."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()

    async def run(self, call: Callable[[], Awaitable[Response]], refuse: Callable[[Step], tuple[int, Mapping[str, object]]]) -> Response:
        """Answer a call as scripted; ``refuse`` words a scripted status as the provider would."""
        if not self._steps:
            return await call()
        step = self._steps.popleft()
        if step.accept:
            await call()
        if step.hang:
            return _Hang()
        if step.reset:
            return _Cut()
        status, body = refuse(step)
        headers = {"Retry-After": f"{step.retry_after:g}"} if step.retry_after is not None else {}
        if step.location:
            headers["Location"] = step.location
        if step.body is not None:
            return Response(step.body, status, headers)
        return JSONResponse(body, status, headers)

    def route(self, path: str = "/_script") -> Route:
        return Route(path, self._accept, methods=["POST"])

    async def _accept(self, request: Request) -> Response:
        """Replaces what was scripted before; an empty list restores good behaviour."""
        try:
            steps = _Steps.model_validate_json(await request.body())
        except ValidationError as exc:
            return JSONResponse({"errors": exc.errors(include_url=False, include_context=False)}, 400)
        self._steps = deque(steps.next)
        return JSONResponse({"scripted": len(self._steps)})


class _Hang(Response):
    """Never answers; ends when the client has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class _Cut(Response):
    """Breaks the connection in the middle of the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
