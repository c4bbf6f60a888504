"""The HTTP face: status page, metrics, liveness, readiness and reload. Reading is open, changing needs the token."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from pydantic import SecretStr
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from dashboards.status_page import CONTENT_SECURITY_POLICY, STATIC, PageInput, render_fragment, render_incident, render_page
from monitor.alerting import Alerting
from monitor.api.alertmanager import MAX_BODY_BYTES, alertmanager_routes, take_alerts
from monitor.api.doors import door_routes
from monitor.api.pings import ping_routes
from monitor.api.posting import posting_protocol
from monitor.domain import Incident, TimelineEntry
from monitor.errors import ConfigError, StoreError, UsageError
from monitor.metrics.exposition import CONTENT_TYPE
from monitor.probes_contract import Ping

_GUARDS = (
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
_UNCACHED = ("cache-control", "no-store")


@dataclass(frozen=True, slots=True)
class Answers:
    """What the API asks of the running program."""

    version: str
    metrics: Callable[[], Iterable[bytes]]
    page: Callable[[], Awaitable[PageInput]]
    incident: Callable[[str], Awaitable[tuple[Incident, tuple[TimelineEntry, ...]]]]
    now: Callable[[], datetime]
    unready: Callable[[], tuple[str, ...]]
    """Reasons why the program is not doing its work; empty when it is."""
    reload: Callable[[], Awaitable[None]]
    token: Callable[[], SecretStr | None]
    ping: Callable[[str, Ping], Awaitable[bool]]
    """Takes a heartbeat's ping; False when no check has its key."""
    alerting: Alerting


def create_api(answers: Answers) -> FastAPI:
    """Build the ASGI application over what the program answers."""
    api = FastAPI(title="platform monitor", version=answers.version, docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=1)
    api.middleware("http")(_guard_answer)
    api.add_exception_handler(StoreError, _say_store_error)
    api.mount("/static", StaticFiles(directory=STATIC), name="static")
    api.include_router(_pages(answers))
    api.include_router(_operations(answers))
    api.include_router(ping_routes(answers.ping))
    api.include_router(door_routes(answers.alerting, lambda bearer: _refuse(answers.token(), bearer)))
    api.include_router(
        alertmanager_routes(answers.alerting, lambda request: _refuse(answers.token(), request.headers.get("Authorization", "")))
    )
    return api


def create_protocol(answers: Answers) -> Any:
    """What uvicorn speaks: HTTP as ever, with a short way in for posted alerts."""
    return posting_protocol(
        partial(take_alerts, answers.alerting),
        lambda authorization: _refuse(answers.token(), authorization) is None,
        MAX_BODY_BYTES,
        (*_GUARDS, _UNCACHED),
    )


def _pages(answers: Answers) -> APIRouter:
    """What people read."""
    routes = APIRouter()

    @routes.get("/", response_class=HTMLResponse)
    async def _page() -> str:
        return render_page(await answers.page())

    @routes.get("/fragment", response_class=HTMLResponse)
    async def _fragment() -> str:
        return render_fragment(await answers.page())

    @routes.get("/incidents/{incident_id}", response_class=HTMLResponse)
    async def _incident(incident_id: str) -> Response:
        try:
            incident, timeline = await answers.incident(incident_id)
        except UsageError as exc:
            return PlainTextResponse(f"{exc}\n", 404)
        can_take = answers.token() is not None
        return HTMLResponse(render_incident(incident, timeline, answers.now(), answers.version, can_take=can_take))

    return routes


def _operations(answers: Answers) -> APIRouter:
    """What machines ask, by the names Prometheus and its kin use."""
    routes = APIRouter()

    @routes.get("/metrics")
    async def _metrics() -> Response:
        async def page() -> AsyncIterator[bytes]:
            for part in answers.metrics():
                yield part

        return StreamingResponse(page(), headers={"Content-Type": CONTENT_TYPE})

    @routes.api_route("/-/healthy", methods=["GET", "HEAD"])
    async def _healthy() -> Response:
        return PlainTextResponse("healthy\n")

    @routes.api_route("/-/ready", methods=["GET", "HEAD"])
    async def _ready() -> Response:
        reasons = answers.unready()
        return PlainTextResponse("\n".join(reasons) + "\n", 503) if reasons else PlainTextResponse("ready\n")

    @routes.post("/-/reload")
    async def _reload(authorization: Annotated[str, Header()] = "") -> Response:
        refusal = _refuse(answers.token(), authorization)
        if refusal is not None:
            return refusal
        try:
            await answers.reload()
        except ConfigError as exc:
            return PlainTextResponse(f"the old configuration stays in use:\n{exc}\n", 422)
        return PlainTextResponse("reloaded\n")

    return routes


async def _guard_answer(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    for name, value in _GUARDS if request.url.path.startswith("/static") else (*_GUARDS, _UNCACHED):
        response.headers[name] = value
    return response


async def _say_store_error(_: Request, exc: Exception) -> Response:
    return PlainTextResponse(f"the state cannot be used now: {exc}\n", 503)


def _refuse(token: SecretStr | None, authorization: str) -> Response | None:
    """Default deny: without a configured token nothing can be changed over HTTP."""
    if token is None:
        return PlainTextResponse("refused: set monitor.token in the configuration, or send SIGHUP\n", 403)
    given = authorization.removeprefix("Bearer ").encode()
    if not hmac.compare_digest(given, token.get_secret_value().encode()):
        return PlainTextResponse("refused: wrong or missing bearer token\n", 401, {"WWW-Authenticate": "Bearer"})
    return None
