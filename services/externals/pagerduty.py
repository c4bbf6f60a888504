"""A stand-in for PagerDuty's Events API v2 that keeps the published rules and shows whom it would have paged.

What people do there, and the REST API that shows it, are in ``pagerduty_rest.py``.
Limits and answers are those of PagerDuty/developer-docs, "Events API v2"; alerts live in memory.
"""

import hashlib
import json
import math
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from services.externals.page import show
from services.externals.pagerduty_rest import rest_routes
from services.externals.script import Script, Step

BODY_BYTES = 512 * 1024
SUMMARY_CHARS = 1024
DEDUP_KEY_CHARS = 255
ROUTING_KEY_CHARS = 32
RATE_WINDOW_S = 60.0
KEPT = 2000
ACTIONS = ("trigger", "acknowledge", "resolve")
SEVERITIES = ("critical", "error", "warning", "info")
WORDS = {
    400: ("invalid event", "Event object is invalid"),
    413: ("event too large", "Event object exceeds 512 KB"),
    429: ("throttle exceeded", "Requests for this service are arriving too quickly.  Please retry later."),
}

Event = dict[str, Any]


@dataclass(slots=True)
class Incident:
    """One alert as PagerDuty would show it. Times are epoch seconds."""

    number: int
    service: str
    routing_key: str = field(repr=False)
    dedup_key: str
    severity: str
    summary: str
    source: str
    opened_at: float
    details: Mapping[str, Any]
    links: list[dict[str, str]]
    state: Literal["triggered", "acknowledged", "resolved"] = "triggered"
    triggers: int = 1
    acked_at: float | None = None
    resolved_at: float | None = None
    changed_at: float = 0.0
    """When its state changed last, and by whom: a person, or nobody when an event did it."""
    changed_by: str | None = None
    acked_by: str | None = None
    assigned_to: str = "Ada On-Call"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API, accepted or not. The routing key is kept as its last four characters."""

    received_at: float
    status: int
    outcome: str
    """opened, folded, acknowledged, resolved or dropped; for a refused call, why."""
    event_action: str
    dedup_key: str
    routing_key: str
    summary: str
    event: Event
    errors: tuple[str, ...] = ()


def problems(event: object) -> list[str]:
    """What PagerDuty would refuse, in its own words; empty when the event is valid."""
    if not isinstance(event, dict):
        return ["Event must be a JSON object"]
    found = []
    key = event.get("routing_key")
    if not isinstance(key, str) or not key:
        found.append("'routing_key' is missing or blank")
    elif len(key) != ROUTING_KEY_CHARS:
        found.append("Length of 'routing_key' is incorrect (should be 32 characters)")
    elif not (key.isascii() and key.isalnum()):
        found.append("'routing_key' contains invalid characters")
    action, dedup_key = event.get("event_action"), event.get("dedup_key")
    if action not in ACTIONS:
        found.append(f"'event_action' is invalid (must be one of the following: {', '.join(ACTIONS)})")
    if dedup_key is not None and not isinstance(dedup_key, str):
        found.append("'dedup_key' must be a string")
    elif dedup_key and len(dedup_key) > DEDUP_KEY_CHARS:
        found.append("Length of 'dedup_key' is incorrect (should be at most 255 characters)")
    elif action in ACTIONS[1:] and not dedup_key:
        found.append(f"'dedup_key' is missing or blank; it is required for {action}")
    if action == "trigger":
        found += _payload_problems(event.get("payload"))
        found += _list_problems(event, "links", "href") + _list_problems(event, "images", "src")
    return found


def _payload_problems(payload: object) -> list[str]:
    if not isinstance(payload, dict):
        return ["'payload' is missing or blank"]
    found = [f"'payload.{name}' is missing or blank" for name in ("summary", "source", "severity") if not payload.get(name)]
    summary, severity, details = payload.get("summary"), payload.get("severity"), payload.get("custom_details", {})
    if summary and (not isinstance(summary, str) or len(summary) > SUMMARY_CHARS):
        found.append("Length of 'payload.summary' is incorrect (should be at most 1024 characters)")
    if severity and severity not in SEVERITIES:
        found.append(f"'payload.severity' is invalid (must be one of the following: {', '.join(SEVERITIES)})")
    if "timestamp" in payload and not _is_instant(payload["timestamp"]):
        found.append("'payload.timestamp' is not a valid ISO 8601 timestamp")
    if not isinstance(details, dict):
        found.append("'payload.custom_details' must be an object")
    return found


def _list_problems(event: Event, name: str, required: str) -> list[str]:
    items = event.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return [f"'{name}' must be a list of objects"]
    found = [f"'{name}.{required}' is missing or blank" for item in items if not isinstance(item.get(required), str) or not item[required]]
    if name == "images":
        found += ["'images.src' must be served over HTTPS" for item in items if not str(item.get("src", "")).startswith("https://")]
    return found


def _is_instant(value: object) -> bool:
    try:
        datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class Pager:
    """What the stand-in knows: incidents by (routing key, dedup key), and every call."""

    clock: Callable[[], float]
    rate_per_min: int
    incidents: list[Incident] = field(default_factory=list)
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=KEPT))
    _open: dict[tuple[str, str], Incident] = field(default_factory=dict)
    _recent: defaultdict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _numbers: int = 0

    def wait_s(self, routing_key: str) -> int:
        """Whole seconds until the key may call again; 0 counts this call in its sliding minute."""
        now, recent = self.clock(), self._recent[routing_key]
        while recent and recent[0] <= now - RATE_WINDOW_S:
            recent.popleft()
        if len(recent) >= self.rate_per_min:
            return max(1, math.ceil(recent[0] + RATE_WINDOW_S - now))
        recent.append(now)
        return 0

    def take(self, event: Event) -> str:
        """Apply a valid event; returns its dedup key."""
        dedup_key = event.get("dedup_key") or uuid.uuid4().hex
        outcome = self._apply(event, (event["routing_key"], dedup_key))
        self.note(202, outcome, {**event, "dedup_key": dedup_key})
        return str(dedup_key)

    def note(self, status: int, outcome: str, event: object, errors: tuple[str, ...] = ()) -> None:
        shown: Event = event if isinstance(event, dict) else {}
        payload = shown.get("payload")
        self.calls.append(
            Call(
                received_at=self.clock(),
                status=status,
                outcome=outcome,
                event_action=str(shown.get("event_action", "")),
                dedup_key=str(shown.get("dedup_key") or ""),
                routing_key=f"…{str(shown.get('routing_key', ''))[-4:]}",
                summary=str(payload.get("summary", "")) if isinstance(payload, dict) else "",
                event={name: value for name, value in shown.items() if name != "routing_key"},
                errors=errors,
            )
        )

    def clear(self) -> None:
        self.incidents.clear()
        self.calls.clear()
        self._open.clear()

    def _apply(self, event: Event, key: tuple[str, str]) -> str:
        now, incident = self.clock(), self._open.get(key)
        if event["event_action"] == "trigger":
            return self._fold(incident, event, now) if incident else self._begin(key, event, now)
        if incident is None:
            return "dropped"
        if event["event_action"] == "acknowledge":
            self.change(incident, "acknowledged", None)
            return "acknowledged"
        self.change(incident, "resolved", None)
        return "resolved"

    def change(self, incident: Incident, state: Literal["triggered", "acknowledged", "resolved"], who: str | None) -> None:
        """Bring an incident to a state: a person does, or without one an event."""
        now = self.clock()
        if incident.state != state:
            incident.changed_at, incident.changed_by = now, who
        incident.state = state
        if state == "acknowledged":
            incident.acked_at, incident.acked_by = incident.acked_at or now, incident.acked_by or who
        key = next((key for key, one in self._open.items() if one is incident), None)
        if state == "resolved":
            incident.resolved_at = now
            if key is not None:
                del self._open[key]
        if state == "triggered":
            incident.acked_at = incident.acked_by = None
        if state != "resolved" and key is None:
            incident.resolved_at = None
            self._open[(incident.routing_key, incident.dedup_key)] = incident

    def _begin(self, key: tuple[str, str], event: Event, now: float) -> str:
        payload = event["payload"]
        self._numbers += 1
        self._open[key] = Incident(
            number=self._numbers,
            service=service_id(key[0]),
            routing_key=key[0],
            dedup_key=key[1],
            severity=payload["severity"],
            summary=payload["summary"],
            source=str(payload["source"]),
            opened_at=now,
            changed_at=now,
            details=payload.get("custom_details", {}),
            links=event.get("links", []),
        )
        self.incidents.append(self._open[key])
        del self.incidents[:-KEPT]
        return "opened"

    @staticmethod
    def _fold(incident: Incident, event: Event, now: float) -> str:
        payload = event["payload"]
        incident.triggers += 1
        incident.severity = payload["severity"]
        incident.details = payload.get("custom_details", incident.details)
        return "folded"


def service_id(routing_key: str) -> str:
    """The service that a routing key belongs to: each key has one of its own."""
    return f"P{hashlib.sha256(routing_key.encode()).hexdigest()[:6].upper()}"


def create_app(*, clock: Callable[[], float] = time.time, rate_per_min: int = 120, rest_per_min: int = 960) -> Starlette:
    """``POST /v2/enqueue`` as PagerDuty answers it; ``/`` for people, ``/_received`` and ``/_script`` for tests.

    ``clock`` gives epoch seconds. Any routing key of 32 letters and digits is an integration.
    """
    pager, script = Pager(clock, rate_per_min), Script()

    async def enqueue(request: Request) -> Response:
        body = await _capped_body(request)

        async def behave() -> Response:
            return _answer(pager, body)

        return await script.run(behave, lambda step: _scripted(pager, step))

    async def page(_: Request) -> Response:
        return show("pagerduty.html", incidents=pager.incidents[::-1][:100], log=list(pager.calls)[::-1][:100])

    async def received(_: Request) -> Response:
        calls = [asdict(call) for call in pager.calls]
        return JSONResponse(
            {
                "events": [call for call in calls if call["status"] == 202],
                "refused": [call for call in calls if call["status"] != 202],
                "incidents": [_shown(incident) for incident in pager.incidents],
            }
        )

    async def clear(_: Request) -> Response:
        pager.clear()
        return RedirectResponse("/", 303)

    return Starlette(
        routes=[
            Route("/v2/enqueue", enqueue, methods=["POST"]),
            Route("/", page),
            Route("/_received", received),
            Route("/_clear", clear, methods=["POST"]),
            script.route(),
            *rest_routes(pager, rest_per_min),
        ]
    )


def _shown(incident: Incident) -> Event:
    return {name: value for name, value in asdict(incident).items() if name != "routing_key"}


async def _capped_body(request: Request) -> bytes | None:
    """The body, or None when it is larger than PagerDuty takes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            return None
    return bytes(body)


def _answer(pager: Pager, body: bytes | None) -> Response:
    if body is None:
        return _refuse(pager, 413, None)
    try:
        event = json.loads(body)
    except ValueError:
        return _refuse(pager, 400, None, ("Event is not valid JSON",))
    errors = tuple(problems(event))
    if errors:
        return _refuse(pager, 400, event, errors)
    wait_s = pager.wait_s(event["routing_key"])
    if wait_s:
        return _refuse(pager, 429, event, headers={"Retry-After": str(wait_s)})
    return JSONResponse({"status": "success", "message": "Event processed", "dedup_key": pager.take(event)}, 202)


def _refuse(pager: Pager, status: int, event: object, errors: tuple[str, ...] = (), headers: Mapping[str, str] | None = None) -> Response:
    short, message = WORDS[status]
    pager.note(status, "; ".join(errors) or short, event, errors)
    return JSONResponse({"status": short, "message": message, **({"errors": errors} if errors else {})}, status, headers)


def _scripted(pager: Pager, step: Step) -> tuple[int, Mapping[str, object]]:
    status = step.status or 500
    short, message = WORDS.get(status, ("error", "as scripted"))
    pager.note(status, "as scripted", None)
    return status, {"status": short, "message": message}
