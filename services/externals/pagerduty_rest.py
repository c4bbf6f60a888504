"""PagerDuty's REST API v2 as far as a monitor reads it, and what people do in PagerDuty; rules from PagerDuty/developer-docs, "REST API".

``GET /incidents`` with the token, pages of at most 100, 960 requests a minute and 429 with ``ratelimit-reset``.
"""

import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.externals.script import Script, Step

if TYPE_CHECKING:
    from services.externals.pagerduty import Incident, Pager

TOKEN = "Token token="  # noqa: S105 - the scheme, not a secret
TOKEN_CHARS = 20
MEDIA_TYPE = "application/vnd.pagerduty+json;version=2"
WINDOW_S = 60.0
MOST_PAGE, MOST_REACHED = 100, 10_000
STATUSES = ("triggered", "acknowledged", "resolved")
DONE = {"acknowledge": "acknowledged", "resolve": "resolved", "reopen": "triggered", "unacknowledge": "triggered"}


def rest_routes(pager: "Pager", per_minute: int) -> list[Route]:
    """``GET /incidents``; ``POST /_people`` and ``/_script_rest`` for tests."""
    desk, script = _Desk(pager, per_minute), Script()

    async def incidents(request: Request) -> Response:
        async def behave() -> Response:
            return desk.answer(request)

        return await script.run(behave, _scripted)

    async def people(request: Request) -> Response:
        asked = await request.json()
        found = [one for one in pager.incidents if one.dedup_key == asked["key"]]
        if not found:
            return JSONResponse({"error": "no such incident"}, 404)
        pager.change(found[-1], DONE[asked["action"]], asked.get("who"))  # type: ignore[arg-type] # one of the states
        return JSONResponse({"state": found[-1].state})

    return [Route("/incidents", incidents), Route("/_people", people, methods=["POST"]), script.route("/_script_rest")]


def _scripted(step: Step) -> tuple[int, Mapping[str, object]]:
    return step.status or 500, {"error": {"message": "as scripted", "code": 2000}}


class _Desk:
    def __init__(self, pager: "Pager", per_minute: int) -> None:
        self._pager = pager
        self._per_minute = per_minute
        self._recent: deque[float] = deque()

    def answer(self, request: Request) -> Response:
        token = request.headers.get("Authorization", "")
        if not token.startswith(TOKEN) or len(token) != len(TOKEN) + TOKEN_CHARS:
            return _refuse(401, 2006, "Authentication failed")
        if request.headers.get("Accept") != MEDIA_TYPE:
            return _refuse(400, 2002, "Arguments Caused Error", "the Accept header asks for no version")
        wait_s = self._wait_s()
        limits = {"ratelimit-limit": str(self._per_minute), "ratelimit-remaining": str(self._per_minute - len(self._recent))}
        if wait_s:
            return _refuse(429, 2020, "Rate Limit Exceeded", headers={**limits, "ratelimit-reset": str(wait_s)})
        return self._list(request, limits)

    def _wait_s(self) -> int:
        now = self._pager.clock()
        while self._recent and self._recent[0] <= now - WINDOW_S:
            self._recent.popleft()
        if len(self._recent) >= self._per_minute:
            return max(1, math.ceil(self._recent[0] + WINDOW_S - now))
        self._recent.append(now)
        return 0

    def _list(self, request: Request, headers: Mapping[str, str]) -> Response:
        asked = request.query_params
        statuses, services, key = asked.getlist("statuses[]"), asked.getlist("service_ids[]"), asked.get("incident_key")
        if not set(statuses) <= set(STATUSES):
            return _refuse(400, 1003, "Invalid Status Provided")
        try:
            limit, offset = int(asked.get("limit", 25)), int(asked.get("offset", 0))
        except ValueError:
            return _refuse(400, 2001, "Invalid Input Provided", "limit and offset are numbers")
        if not 1 <= limit <= MOST_PAGE or offset < 0 or offset + limit > MOST_REACHED:
            return _refuse(400, 2001, "Invalid Input Provided", "Limit must be at most 100, and offset and limit together at most 10000")
        found = [
            one
            for one in self._pager.incidents
            if (not statuses or one.state in statuses)
            and (not services or one.service in services)
            and (key is None or one.dedup_key == key)
        ]
        if asked.get("sort_by") == "created_at:desc":
            found.reverse()
        page = [_incident(one) for one in found[offset : offset + limit]]
        body = {"incidents": page, "limit": limit, "offset": offset, "total": None, "more": len(found) > offset + limit}
        return JSONResponse(body, headers=dict(headers))


def _incident(one: "Incident") -> dict[str, Any]:
    """In the form of the API's ``incident``, as far as it is known here."""
    agent = _user(one.changed_by) if one.changed_by else _service(one)
    by = _user(one.acked_by) if one.acked_by else _service(one)
    acknowledged = one.state == "acknowledged" and one.acked_at is not None
    return {
        "id": f"Q{one.number:06}",
        "type": "incident",
        "summary": f"[#{one.number}] {one.summary}",
        "incident_number": one.number,
        "title": one.summary,
        "created_at": _instant(one.opened_at),
        "status": one.state,
        "incident_key": one.dedup_key,
        "service": _service(one),
        "assignments": [] if one.state == "resolved" else [{"at": _instant(one.opened_at), "assignee": _user(one.assigned_to)}],
        "acknowledgements": [{"at": _instant(one.acked_at or 0), "acknowledger": by}] if acknowledged else [],
        "last_status_change_at": _instant(one.changed_at),
        "last_status_change_by": agent,
        "urgency": "high",
    }


def _user(name: str) -> dict[str, str]:
    return {"id": f"U{name[:5].upper()}", "type": "user_reference", "summary": name}


def _service(one: "Incident") -> dict[str, str]:
    return {"id": one.service, "type": "service_reference", "summary": f"service of {one.service}"}


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refuse(status: int, code: int, message: str, *details: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"error": {"message": message, "code": code, **({"errors": list(details)} if details else {})}}
    return JSONResponse(body, status, dict(headers or {}))
