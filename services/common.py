"""What the three services share: the app with its health, timing and errors, the connection pools, the rule who may enter.

A service is ``build_app(name, router, settings)``; its routes get a ``Service`` (and, behind ``Tenant``, an ``Identity``).
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx2
import psycopg
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import DatabaseUnavailable, InvalidValue, ServiceError, Unauthorized
from services.identity import Identity, IdentityProvider
from services.logs import open_logs
from services.settings import Settings

VERSION = "0.0.1"
STARTED_AT = time.time()
"""When this process began, Unix seconds: a changed one tells of a restart."""
POOL_TIMEOUT_S = 3.0
"""How long a request waits for a connection before it is told that the database is exhausted."""
POOL_LIFETIME_S = 1800.0
"""Connections are recycled after half an hour (the runbook's prevention of INC-002)."""
QUERY_TIMEOUT_S = 60.0
SLOW_S = 2.0
"""The runbook's threshold of INC-005."""

Connection = psycopg.AsyncConnection[DictRow]
Pool = AsyncConnectionPool[Connection]


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes and the workers of one running service may touch."""

    name: str
    settings: Settings
    pool: Pool
    read_pool: Pool
    """The read replica's; the same object as ``pool`` when none is configured."""
    idp: IdentityProvider
    log: logging.Logger

    @asynccontextmanager
    async def database(self, *, read: bool = False) -> AsyncIterator[Connection]:
        """A connection in a transaction, committed at the end. Raises ``DatabaseUnavailable``."""
        pool = self.read_pool if read else self.pool
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S + POOL_TIMEOUT_S), pool.connection() as connection:
                yield connection
        except PoolTimeout as exc:
            raise DatabaseUnavailable(
                f"no database connection within {POOL_TIMEOUT_S:g} s: PostgreSQL refuses more, cannot be reached, "
                f"or the {pool.max_size} connections of {self.name} are all busy"
            ) from exc
        except TimeoutError as exc:
            raise DatabaseUnavailable(f"the database did not answer within {QUERY_TIMEOUT_S:g} s") from exc
        except psycopg.DataError as exc:
            raise InvalidValue(f"the database does not take this value: {str(exc).strip()}") from exc
        except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
            raise DatabaseUnavailable(f"the database failed: {str(exc).strip() or type(exc).__name__}") from exc


TENANT_ACTIVE = "SELECT is_active FROM tenant_config WHERE id = %(tenant_id)s"


async def tenant_is_active(service: Service, tenant_id: str) -> bool:
    """Whether the tenant exists and is switched on. Raises ``DatabaseUnavailable``."""
    async with service.database() as connection:
        row = await (await connection.execute(TENANT_ACTIVE, {"tenant_id": tenant_id})).fetchone()
    return bool(row and row["is_active"])


async def identify(service: Service, authorization: str, tenant_id: str) -> Identity:
    """The rule who may enter: a token that the provider calls valid, for this very tenant, which is active.

    Raises ``Unauthorized``, ``IdpUnavailable`` or ``DatabaseUnavailable``.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("expected the header Authorization: Bearer TOKEN")
    if not tenant_id:
        raise Unauthorized("expected the header X-Tenant-Id")
    identity = await service.idp.introspect(token.strip())
    if identity is None:
        raise Unauthorized("the token is not valid, or no longer")
    if identity.tenant_id != tenant_id:
        raise Unauthorized("the token is for another tenant")
    if not await tenant_is_active(service, tenant_id):
        raise Unauthorized(f"the tenant {tenant_id} is unknown or not active")
    return identity


def running_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(running_service)]


async def tenant_identity(
    service: Running, authorization: Annotated[str, Header()] = "", x_tenant_id: Annotated[str, Header()] = ""
) -> Identity:
    return await identify(service, authorization, x_tenant_id)


Tenant = Annotated[Identity, Depends(tenant_identity)]
Work = Callable[[Service], Coroutine[Any, Any, None]]


def build_app(name: str, router: APIRouter, settings: Settings, *, works: tuple[Work, ...] = ()) -> FastAPI:
    """The service ``name`` (also its application_name). ``works`` are loops that run beside the routes; one that dies ends the process."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.enter_context(open_logs(name, settings.log_dir, ingestion=name == "data-service"))
            service = await open_service(name, settings, stack)
            app.state.service = service
            service.log.info("started", extra={"version": VERSION, "pid": os.getpid()})
            await stack.enter_async_context(_working(service, works))
            yield
        # The log files are closed by now; the end of the process is uvicorn's to tell.

    app = FastAPI(title=name, version=VERSION, lifespan=lifespan)
    app.add_middleware(ProcessTime, log=logging.getLogger(f"services.{name}"))
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_request)
    app.add_exception_handler(Exception, _answer_crash)

    @app.get("/health")
    async def health() -> dict[str, str | float]:
        """Whether this process serves. It asks nobody else, so that an outage of the database is not told as ours."""
        return {"service": name, "version": VERSION, "status": "healthy", "timestamp": time.time(), "started_at": STARTED_AT}

    app.include_router(router, prefix="/api/v1")
    return app


async def open_service(name: str, settings: Settings, stack: AsyncExitStack) -> Service:
    """What a service works with; ``stack`` closes it."""
    pool = await stack.enter_async_context(_pool(settings.dsn(name), settings))
    read_pool = pool
    if settings.postgres_read_host:
        read_pool = await stack.enter_async_context(_pool(settings.dsn(name, read=True), settings))
    client = await stack.enter_async_context(httpx2.AsyncClient(follow_redirects=False, trust_env=False))
    log = logging.getLogger(f"services.{name}")
    return Service(name, settings, pool, read_pool, IdentityProvider(settings.idp_url, client), log)


def _pool(dsn: str, settings: Settings) -> Pool:
    # Not waited for: a service starts, and says why it cannot serve, also while the database is away.
    return AsyncConnectionPool(
        dsn,
        connection_class=psycopg.AsyncConnection[DictRow],
        kwargs={"row_factory": dict_row, "options": f"-c statement_timeout={QUERY_TIMEOUT_S:g}s"},
        min_size=1,
        max_size=settings.pool_max,
        timeout=POOL_TIMEOUT_S,
        max_lifetime=POOL_LIFETIME_S,
        reconnect_timeout=30,
        check=AsyncConnectionPool.check_connection,
        open=False,
    )


@asynccontextmanager
async def _working(service: Service, works: tuple[Work, ...]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work(service)) for work in works]

    def end_with(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            service.log.critical("a background loop died: the process ends", exc_info=task.exception())
            os.kill(os.getpid(), signal.SIGTERM)

    for task in tasks:
        task.add_done_callback(end_with)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ProcessTime:
    """``X-Process-Time`` (seconds) on every answer, errors included, and a log line for each request but ``/health``."""

    def __init__(self, app: ASGIApp, log: logging.Logger) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope["process_started"] = time.perf_counter()
        told = False

        async def timed(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start":
                elapsed_s = time.perf_counter() - started
                MutableHeaders(scope=message)["X-Process-Time"] = f"{elapsed_s:.6f}"
                self._tell(scope, message["status"], elapsed_s)
                told = True
            await send(message)

        try:
            await self._app(scope, receive, timed)
        except Exception:
            if not told:  # answered outside of this middleware, by _answer_crash
                self._tell(scope, 500, time.perf_counter() - started)
            raise

    def _tell(self, scope: Scope, status: int, elapsed_s: float) -> None:
        if scope["path"] == "/health" and elapsed_s < SLOW_S:
            return
        level = logging.WARNING if elapsed_s >= SLOW_S or status == 401 else logging.INFO
        facts = {"method": scope["method"], "path": scope["path"], "status": status, "duration_s": round(elapsed_s, 6)}
        self._log.log(level, "request", extra=facts)


def _problem(status: int, name: str, detail: object, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": name, "detail": detail}, status, headers=headers)


async def _answer_service_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, ServiceError)
    log = running_service(request).log
    log.log(logging.ERROR if exc.status >= 500 else logging.WARNING, exc.name, extra={"detail": str(exc), "path": request.url.path})
    return _problem(exc.status, exc.name, str(exc), {"WWW-Authenticate": "Bearer"} if exc.status == 401 else None)


async def _answer_http_error(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    name = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "http_error")
    return _problem(exc.status_code, name, exc.detail, dict(exc.headers or {}))


async def _answer_bad_request(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    # Without the input: it may hold a password.
    problems = [{"where": ".".join(str(part) for part in error["loc"]), "problem": error["msg"]} for error in exc.errors()]
    return _problem(422, "invalid_request", problems)


async def _answer_crash(request: Request, exc: Exception) -> JSONResponse:
    """Starlette calls this outside the middleware and raises again, so that uvicorn logs the traceback."""
    elapsed_s = time.perf_counter() - request.scope.get("process_started", time.perf_counter())
    return _problem(500, "internal", "an unexpected error; the service's error log has it", {"X-Process-Time": f"{elapsed_s:.6f}"})
