"""A stand-in for Slack's Web API that keeps the published rules and shows the channel as Slack would.

``chat.postMessage``, ``chat.update`` and ``auth.test``; messages live in memory. Limits of messages are in ``slack_blocks.py``.
"""

import hashlib
import json
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from services.externals.page import add_filters, show
from services.externals.script import Script, Step
from services.externals.slack_blocks import InvalidMessage, Json, check_message
from services.externals.slack_markup import mrkdwn_html, plain_html

BODY_BYTES = 1_048_576
KEPT = 500
POSTS_PER_S = 1.0
UPDATES_PER_S = 50 / 60
"""``chat.update`` is a tier 3 method: 50 calls a minute."""

add_filters(mrkdwn=mrkdwn_html, plain=plain_html)


@dataclass(slots=True)
class Message:
    """Times are epoch seconds; ``ts`` is Slack's id of a message in its channel."""

    ts: str
    received_at: float
    text: str
    blocks: list[Json]
    attachments: list[Json]
    thread_ts: str | None = None
    broadcast: bool = False
    edited_at: float | None = None
    edits: int = 0


@dataclass(slots=True)
class Channel:
    id: str
    name: str
    messages: list[Message] = field(default_factory=list)

    def find(self, ts: object) -> Message | None:
        return next((message for message in self.messages if message.ts == ts), None)


@dataclass(slots=True)
class Bucket:
    """A token bucket: ``rate_per_s`` with ``burst`` at once."""

    rate_per_s: float
    burst: int
    tokens: float
    at: float

    def wait_s(self, now: float) -> int:
        """Whole seconds until a call may pass; 0 takes a token."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate_per_s)
        self.at = now
        if self.tokens < 1:
            return max(1, math.ceil((1 - self.tokens) / self.rate_per_s))
        self.tokens -= 1
        return 0


class Refusal(Exception):
    """``ok: false`` with this code; ``status`` and ``retry_after_s`` for the one that is an HTTP error too."""

    def __init__(self, code: str, *details: str, retry_after_s: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.details = details
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Workspace:
    """What the stand-in knows."""

    clock: Callable[[], float]
    burst: int
    channels: dict[str, Channel] = field(default_factory=dict)
    refused: deque[Json] = field(default_factory=lambda: deque(maxlen=KEPT))
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)
    _last_ts: int = 0

    def post(self, call: Json) -> Json:
        channel = self._channel(call)
        parts = _parts(call)
        thread_ts = call.get("thread_ts")
        if thread_ts is not None and channel.find(thread_ts) is None:
            raise Refusal("thread_not_found")
        self._limit("chat.postMessage", channel, POSTS_PER_S)
        message = Message(
            ts=self._next_ts(),
            received_at=self.clock(),
            thread_ts=thread_ts,
            broadcast=_flag(call.get("reply_broadcast")),
            **parts,
        )
        channel.messages.append(message)
        del channel.messages[:-KEPT]
        return {"ok": True, "channel": channel.id, "ts": message.ts, "message": {"type": "message", **parts, "ts": message.ts}}

    def update(self, call: Json) -> Json:
        channel = self._channel(call)
        message = channel.find(call.get("ts"))
        if message is None:
            raise Refusal("message_not_found")
        parts = _parts(call)
        self._limit("chat.update", channel, UPDATES_PER_S)
        message.text, message.blocks, message.attachments = parts["text"], parts["blocks"], parts["attachments"]
        message.edited_at, message.edits = self.clock(), message.edits + 1
        return {"ok": True, "channel": channel.id, "ts": message.ts, "text": message.text}

    def clear(self) -> None:
        self.channels.clear()
        self.refused.clear()

    def _channel(self, call: Json) -> Channel:
        """By id or by name; a name nobody used yet becomes a channel, since everybody's workspace has its own."""
        asked = str(call.get("channel", ""))
        for channel in self.channels.values():
            if asked in {channel.id, channel.name, f"#{channel.name}"}:
                return channel
        name = asked.removeprefix("#")
        if not re.fullmatch(r"[a-z0-9_-]{1,80}|[CG][A-Z0-9]{8,}", name):
            raise Refusal("channel_not_found")
        digest = hashlib.sha256(name.encode()).hexdigest()[:10].upper()
        channel = Channel(id=name if name[0] in "CG" else f"C{digest}", name=name)
        return self.channels.setdefault(channel.id, channel)

    def _limit(self, method: str, channel: Channel, rate_per_s: float) -> None:
        now = self.clock()
        bucket = self._buckets.setdefault((method, channel.id), Bucket(rate_per_s, self.burst, float(self.burst), now))
        if wait_s := bucket.wait_s(now):
            raise Refusal("ratelimited", retry_after_s=wait_s)

    def _next_ts(self) -> str:
        """Microseconds since the epoch, never the same twice."""
        self._last_ts = max(self._last_ts + 1, int(self.clock() * 1_000_000))
        return f"{self._last_ts // 1_000_000}.{self._last_ts % 1_000_000:06}"


def create_app(*, clock: Callable[[], float] = time.time, burst: int = 5) -> Starlette:
    """Slack's methods under ``/api/``; ``/`` for people, ``/_received`` and ``/_script`` for tests.

    ``clock`` gives epoch seconds; ``burst`` messages pass at once, then one a second and channel. Any token ``xoxb-…`` is a bot.
    """
    workspace, script = Workspace(clock, burst), Script()
    methods: dict[str, Callable[[Json], Json]] = {
        "auth.test": lambda _: {"ok": True, "team": "demo", "user": "monitor", "bot_id": "B000000001"},
        "chat.postMessage": workspace.post,
        "chat.update": workspace.update,
    }

    async def api(request: Request) -> Response:
        body = await _capped_body(request)
        name = request.path_params["method"]

        async def behave() -> Response:
            return _answer(workspace, methods.get(name), name, request, body)

        return await script.run(behave, lambda step: _scripted(workspace, name, step))

    async def page(_: Request) -> Response:
        return show("slack.html", channels=[_shown(channel) for channel in workspace.channels.values()])

    async def received(_: Request) -> Response:
        return JSONResponse({"channels": [asdict(channel) for channel in workspace.channels.values()], "refused": list(workspace.refused)})

    async def clear(_: Request) -> Response:
        workspace.clear()
        return RedirectResponse("/", 303)

    return Starlette(
        routes=[
            Route("/api/{method}", api, methods=["POST"]),
            Route("/", page),
            Route("/_received", received),
            Route("/_clear", clear, methods=["POST"]),
            script.route(),
        ]
    )


async def _capped_body(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            return None
    return bytes(body)


def _answer(workspace: Workspace, method: Callable[[Json], Json] | None, name: str, request: Request, body: bytes | None) -> Response:
    try:
        if method is None:
            raise Refusal("unknown_method")
        call = _read_call(request, body)
        _authenticate(request, call)
        return JSONResponse(method(call))
    except InvalidMessage as exc:
        return _refuse(workspace, name, Refusal(exc.code, *exc.details))
    except Refusal as exc:
        return _refuse(workspace, name, exc)


def _refuse(workspace: Workspace, name: str, refusal: Refusal) -> Response:
    limited = refusal.retry_after_s is not None
    workspace.refused.append({"received_at": workspace.clock(), "method": name, "error": refusal.code, "details": list(refusal.details)})
    metadata = {"response_metadata": {"messages": [f"[ERROR] {detail}" for detail in refusal.details]}} if refusal.details else {}
    headers = {"Retry-After": str(refusal.retry_after_s)} if limited else None
    return JSONResponse({"ok": False, "error": refusal.code, **metadata}, 429 if limited else 200, headers)


def _scripted(workspace: Workspace, name: str, step: Step) -> tuple[int, Mapping[str, object]]:
    code = step.error or ("ratelimited" if step.status == 429 else "internal_error")
    workspace.refused.append({"received_at": workspace.clock(), "method": name, "error": code, "details": ["as scripted"]})
    return step.status or (200 if step.error else 500), {"ok": False, "error": code}


def _read_call(request: Request, body: bytes | None) -> Json:
    """Arguments of a call, from JSON or a form; a form's blocks and attachments are JSON texts."""
    if body is None:
        raise Refusal("request_too_large")
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            call = json.loads(body or b"{}")
        else:
            form = dict(parse_qsl(body.decode(), keep_blank_values=True))
            call = {name: json.loads(value) if name in {"blocks", "attachments"} else value for name, value in form.items()}
    except ValueError as exc:
        raise Refusal("invalid_json") from exc
    if not isinstance(call, dict):
        raise Refusal("json_not_object")
    return call


def _authenticate(request: Request, call: Json) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token if scheme.lower() == "bearer" else str(call.get("token", ""))
    if not given:
        raise Refusal("not_authed")
    if not given.startswith("xoxb-") or len(given) <= len("xoxb-"):
        raise Refusal("invalid_auth")


def _parts(call: Json) -> dict[str, Any]:
    parts = {"text": call.get("text") or "", "blocks": call.get("blocks") or [], "attachments": call.get("attachments") or []}
    check_message(**parts)
    return parts


def _flag(value: object) -> bool:
    return value is True or str(value).lower() in {"true", "1"}


def _shown(channel: Channel) -> dict[str, Any]:
    """The channel for its page: only colours that are colours reach a style attribute."""
    messages = []
    for message in channel.messages[-100:]:
        attachments = [
            {
                "colour": part["color"] if re.fullmatch(r"#[0-9a-fA-F]{6}", str(part.get("color", ""))) else "",
                "blocks": part.get("blocks", []),
                "text": str(part.get("text", "")),
            }
            for part in message.attachments
        ]
        messages.append({**asdict(message), "attachments": attachments})
    return {"name": channel.name, "messages": messages}
