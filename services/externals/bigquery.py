"""The BigQuery-shaped endpoint: the part of the REST interface v2 that google-cloud-bigquery uses to run a query.

Owns the finished jobs and the mode: ``ok`` answers, ``hang`` accepts requests and never answers, ``error`` refuses them.
"""

import asyncio
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.externals.events import QueryError, Result, Value, instant, run_query

JOBS_MAX = 500
PAGE_ROWS = 10_000
LOCATION = "US"
MODES = ("ok", "hang", "error")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    project: str
    sql: str
    created_ms: int
    result: Result


class Refusal(Exception):
    """An answer in the error shape of Google's interfaces."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


def _refusal(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    errors = [{"message": str(exc), "domain": "global", "reason": exc.reason}]
    body = {"code": exc.status, "message": str(exc), "errors": errors, "status": exc.reason}
    return JSONResponse({"error": body}, exc.status)


# --- values on the wire ----------------------------------------------------------------------------------------------


def _scalar(kind: str, value: Any) -> Value:
    if value is None:
        return None
    match kind:
        case "INT64" | "INTEGER":
            return int(value)
        case "FLOAT64" | "FLOAT":
            return float(value)
        case "BOOL" | "BOOLEAN":
            return int(str(value).lower() == "true")
        case "TIMESTAMP":
            moment = datetime.fromisoformat(re.sub(r"\s*(?:Z|UTC)$", "+00:00", str(value)))
            return instant(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        case "STRING" | "DATE":
            return str(value)
    raise Refusal(400, "invalid", f"Query parameters of type {kind} are not served here")


def parameters_of(items: Sequence[Mapping[str, Any]]) -> dict[str, Value | Sequence[Value]]:
    """Named query parameters, as the client sends them, by name. Raises ``Refusal``."""
    found: dict[str, Value | Sequence[Value]] = {}
    for item in items:
        if not item.get("name"):
            raise Refusal(400, "invalid", "Only named query parameters are served here")
        kind, value = item["parameterType"], item.get("parameterValue", {})
        try:
            if kind["type"] == "ARRAY":
                element = kind["arrayType"]["type"]
                found[item["name"]] = [_scalar(element, entry.get("value")) for entry in value.get("arrayValues", ())]
            else:
                found[item["name"]] = _scalar(kind["type"], value.get("value"))
        except (KeyError, ValueError, TypeError) as exc:
            raise Refusal(400, "invalid", f"Invalid value of the query parameter {item['name']}") from exc
    return found


def _cell(kind: str, value: Value) -> str | None:
    if value is None:
        return None
    if kind == "TIMESTAMP":  # microseconds since 1970: formatOptions.useInt64Timestamp
        since = datetime.fromisoformat(str(value)) - _EPOCH
        return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)
    return str(value)


def _page(job: Job, query: Mapping[str, str]) -> dict[str, Any]:
    """The part of ``getQueryResults`` that holds rows. Raises ``Refusal``."""
    try:
        start = int(query.get("pageToken") or query.get("startIndex") or 0)
        size = min(int(query.get("maxResults") or 0 if "maxResults" in query else PAGE_ROWS), PAGE_ROWS)
    except ValueError as exc:
        raise Refusal(400, "invalid", "pageToken, startIndex and maxResults are numbers") from exc
    if not size:  # "only tell me when it is done": with an empty list of rows, the client would believe that there are none
        return {}
    kinds = [kind for _, kind in job.result.schema]
    rows = job.result.rows[start : start + size]
    page: dict[str, Any] = {"rows": [{"f": [{"v": _cell(kind, value)} for kind, value in zip(kinds, row, strict=True)]} for row in rows]}
    if start + size < len(job.result.rows):
        page["pageToken"] = str(start + size)
    return page


def _results(job: Job, query: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": "bigquery#getQueryResultsResponse",
        "jobReference": {"projectId": job.project, "jobId": job.id, "location": LOCATION},
        "schema": {"fields": [{"name": name, "type": kind, "mode": "NULLABLE"} for name, kind in job.result.schema]},
        "totalRows": str(len(job.result.rows)),
        "totalBytesProcessed": "0",
        "jobComplete": True,
        "cacheHit": False,
        **_page(job, query),
    }


def _resource(job: Job) -> dict[str, Any]:
    times = dict.fromkeys(("creationTime", "startTime", "endTime"), str(job.created_ms))
    return {
        "kind": "bigquery#job",
        "id": f"{job.project}:{LOCATION}.{job.id}",
        "jobReference": {"projectId": job.project, "jobId": job.id, "location": LOCATION},
        "configuration": {"jobType": "QUERY", "query": {"query": job.sql, "useLegacySql": False}},
        "status": {"state": "DONE"},
        "statistics": {**times, "query": {"statementType": "SELECT", "totalBytesProcessed": "0", "cacheHit": False}},
    }


# --- the endpoint ----------------------------------------------------------------------------------------------------


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except json.JSONDecodeError as exc:
        raise Refusal(400, "parseError", "The body is not JSON") from exc
    if not isinstance(body, dict):
        raise Refusal(400, "parseError", "The body is not an object")
    return body


class Endpoint:
    """The jobs of all projects, and the mode that the faults switch."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.mode = "ok"
        self._healed = asyncio.Event()
        self._healed.set()
        self._jobs: OrderedDict[tuple[str, str], Job] = OrderedDict()
        self._now = now

    def switch(self, mode: str) -> None:
        self.mode = mode
        if mode == "hang":
            self._healed.clear()
        else:
            self._healed.set()

    async def admit(self) -> None:
        """Let a request in according to the mode. Raises ``Refusal``."""
        await self._healed.wait()
        if self.mode == "error":
            # 403 and not 5xx: the client repeats 5xx silently for ten minutes.
            raise Refusal(403, "accessDenied", "Access Denied: the data set is not available")

    def start(self, project: str, job_id: str, config: Mapping[str, Any]) -> Job:
        """Run a query and keep its result. Raises ``Refusal``."""
        sql = str(config.get("query", ""))
        if config.get("useLegacySql"):
            raise Refusal(400, "invalid", "Legacy SQL is not served here")
        now = self._now()
        try:
            result = run_query(sql, parameters_of(config.get("queryParameters", ())), today=now.date())
        except QueryError as exc:
            raise Refusal(400, "invalidQuery", f"Invalid query: {exc}") from exc
        job = Job(job_id, project, sql, int(now.timestamp() * 1000), result)
        self._jobs[project, job_id] = job
        while len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)
        return job

    def find(self, request: Request) -> Job:
        project, job_id = request.path_params["project"], request.path_params["job"]
        job = self._jobs.get((project, job_id))
        if job is None:
            raise Refusal(404, "notFound", f"Not found: Job {project}:{job_id}")
        return job

    async def insert(self, request: Request) -> Response:
        body = await _body(request)
        await self.admit()
        job_id = str(body.get("jobReference", {}).get("jobId") or secrets.token_hex(8))
        config = body.get("configuration", {}).get("query")
        if not isinstance(config, dict):
            raise Refusal(400, "invalid", "Only query jobs are served here")
        return JSONResponse(_resource(self.start(request.path_params["project"], job_id, config)))

    async def query(self, request: Request) -> Response:
        body = await _body(request)
        await self.admit()
        job = self.start(request.path_params["project"], secrets.token_hex(8), body)
        paging = {"maxResults": str(body["maxResults"])} if "maxResults" in body else {}
        return JSONResponse({**_results(job, paging), "kind": "bigquery#queryResponse"})

    async def get_job(self, request: Request) -> Response:
        await self.admit()
        return JSONResponse(_resource(self.find(request)))

    async def cancel(self, request: Request) -> Response:
        await self.admit()
        return JSONResponse({"kind": "bigquery#jobCancelResponse", "job": _resource(self.find(request))})

    async def results(self, request: Request) -> Response:
        await self.admit()
        return JSONResponse(_results(self.find(request), request.query_params))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"service": "bigquery", "status": "healthy"})

    async def control(self, request: Request) -> Response:
        if request.client is None or not ip_address(request.client.host).is_loopback:
            raise HTTPException(403, "only from this machine")
        if request.method == "POST":
            mode = (await _body(request)).get("mode")
            if mode not in MODES:
                raise Refusal(400, "invalid", f"mode: expected one of {', '.join(MODES)}")
            self.switch(mode)
        return JSONResponse({"mode": self.mode})


def create_app(*, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Starlette:
    """The endpoint, with ``GET /health`` and the faults' own ``GET``/``POST /_control`` (loopback only)."""
    endpoint = Endpoint(now)
    v2 = "/bigquery/v2/projects/{project}"
    return Starlette(
        routes=[
            Route(f"{v2}/jobs", endpoint.insert, methods=["POST"]),
            Route(f"{v2}/queries", endpoint.query, methods=["POST"]),
            Route(f"{v2}/jobs/{{job}}", endpoint.get_job),
            Route(f"{v2}/jobs/{{job}}/cancel", endpoint.cancel, methods=["POST"]),
            Route(f"{v2}/queries/{{job}}", endpoint.results),
            Route("/health", endpoint.health),
            Route("/_control", endpoint.control, methods=["GET", "POST"]),
        ],
        exception_handlers={Refusal: _refusal},
    )
