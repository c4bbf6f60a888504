"""Alertmanager's v2 API over HTTP, so that Prometheus and amtool work with this monitor unchanged.

Reading is open. Posting alerts and changing silences need the bearer token. Errors are JSON strings, as in Alertmanager.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from alerts.matchers import checked, parse_matchers
from alerts.silences import build, change
from monitor.alerting import Alerting
from monitor.alertmanager import (
    AlertQuery,
    receivers,
    show_silence,
    show_silences,
    show_status,
)
from monitor.api.posting import Answer
from monitor.domain import Matcher, Silence, bounded
from monitor.errors import StoreError, UsageError

MAX_BODY_BYTES = 16 * 1024 * 1024


class _Matcher(msgspec.Struct, rename="camel"):
    name: str
    value: str
    is_regex: bool
    is_equal: bool = True


class _Silence(msgspec.Struct, rename="camel"):
    matchers: list[_Matcher]
    starts_at: datetime
    ends_at: datetime
    created_by: str
    comment: str
    id: str = ""


_SILENCE = msgspec.json.Decoder(_Silence)

Refusal = Callable[[Request], Response | None]


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def alertmanager_routes(alerting: Alerting, refuse: Refusal) -> APIRouter:
    """``/api/v2``; ``refuse`` answers a request that may not change anything."""
    face, routes = _Face(alerting), APIRouter(prefix="/api/v2")
    reading = (
        ("/status", face.status),
        ("/receivers", face.receivers),
        ("/alerts", face.alerts),
        ("/alerts/groups", face.groups),
        ("/silences", face.silences),
        ("/silence/{silence_id}", face.silence),
    )
    changing = (
        ("/silences", "POST", face.post_silence),
        ("/silence/{silence_id}", "DELETE", face.delete_silence),
    )
    for path, answer in reading:
        routes.add_api_route(path, _endpoint(answer, None), methods=["GET"], response_class=Response)
    for path, method, change_it in changing:
        routes.add_api_route(path, _endpoint(change_it, refuse), methods=[method], response_class=Response)
    routes.add_api_route("/alerts", _posting(alerting, refuse), methods=["POST"], response_class=Response)
    return routes


def take_alerts(alerting: Alerting, body: bytes, answer: Answer) -> None:
    """Store the alerts of one request, and answer it: with the status and JSON; nothing when all is well."""

    def done(refused: Sequence[str], failed: StoreError | None) -> None:
        if failed is not None:
            answer(503, msgspec.json.encode(_unusable(failed)))
        elif refused:
            answer(400, msgspec.json.encode("; ".join(refused[:20])))
        else:
            answer(200, b"")

    try:
        alerting.take(body, done)
    except UsageError as exc:
        answer(400, msgspec.json.encode(str(exc)))
    except StoreError as exc:
        done((), exc)


def _posting(alerting: Alerting, refuse: Refusal) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        refusal = refuse(request)
        if refusal is not None:
            return _refused(refusal)
        try:
            body = await _body(request)
        except _Refused as exc:
            return _json(str(exc), exc.status)
        answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        take_alerts(alerting, body, lambda *answer: None if answered.done() else answered.set_result(answer))
        status, content = await answered
        return Response(content, status, media_type="application/json" if content else None)

    return endpoint


def _refused(refusal: Response) -> Response:
    """A refusal as Alertmanager tells errors."""
    return _json(bytes(refusal.body).decode().strip(), refusal.status_code)


def _unusable(exc: StoreError) -> str:
    return f"the state cannot be used now: {exc}"


def _endpoint(answer: Callable[[Request], Awaitable[Any]], refuse: Refusal | None) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        refusal = refuse(request) if refuse else None
        if refusal is not None:
            return _refused(refusal)
        try:
            value = await answer(request)
        except _Refused as exc:
            return _json(str(exc), exc.status)
        except (UsageError, ValueError) as exc:
            return _json(str(exc), 400)
        except StoreError as exc:
            return _json(_unusable(exc), 503)
        if isinstance(value, Response):
            return value
        return Response(status_code=200) if value is None else _json(value)

    return endpoint


class _Face:
    """One method for each operation; what it returns is the answer's JSON, None an empty one."""

    def __init__(self, alerting: Alerting) -> None:
        self._alerting = alerting

    async def status(self, _: Request) -> dict[str, Any]:
        return show_status(self._alerting.settings, self._alerting.version, self._alerting.started_at)

    async def receivers(self, _: Request) -> list[dict[str, str]]:
        return receivers()

    async def alerts(self, request: Request) -> Response:
        return _in_pieces(await self._alerting.alerts(_query(request)))

    async def groups(self, request: Request) -> Response:
        return _in_pieces(await self._alerting.groups(_query(request)))

    async def silences(self, request: Request) -> list[dict[str, Any]]:
        return show_silences(await self._alerting.silences(), _filter(request), self._alerting.now())

    async def silence(self, request: Request) -> dict[str, Any]:
        return show_silence(await _find(self._alerting, request), self._alerting.now())

    async def post_silence(self, request: Request) -> dict[str, str]:
        return {"silenceID": await _save_silence(self._alerting, _decode(_SILENCE, await _body(request)))}

    async def delete_silence(self, request: Request) -> None:
        await self._alerting.expire(await _find(self._alerting, request))


def _query(request: Request) -> AlertQuery:
    query = AlertQuery(
        matchers=_filter(request),
        receiver=request.query_params.get("receiver", ""),
        active=_flag(request, "active"),
        silenced=_flag(request, "silenced"),
        inhibited=_flag(request, "inhibited"),
    )
    if query.receiver:
        checked(Matcher("receiver", query.receiver, is_regex=True))
    return query


async def _save_silence(alerting: Alerting, sent: _Silence) -> str:
    now = alerting.now()
    matchers = tuple(checked(Matcher(m.name, m.value, m.is_regex, m.is_equal)) for m in sent.matchers)
    fresh = build(matchers, bounded(sent.starts_at), bounded(sent.ends_at), sent.created_by, sent.comment, now)
    if not sent.id:
        await alerting.save(fresh)
        return fresh.id
    old = await alerting.silence(sent.id)
    if old is None:
        raise _Refused(404, f"silence {sent.id} not found")
    changed = change(old, fresh, now)
    await alerting.save(*changed)
    return changed[-1].id


async def _find(alerting: Alerting, request: Request) -> Silence:
    silence_id = str(request.path_params["silence_id"])
    found = await alerting.silence(silence_id)
    if found is None:
        raise _Refused(404, f"silence {silence_id} not found")
    return found


def _filter(request: Request) -> tuple[Matcher, ...]:
    return tuple(matcher for text in request.query_params.getlist("filter") for matcher in parse_matchers(text))


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "true").lower() not in {"false", "0"}


async def _body(request: Request) -> bytes:
    taken = bytearray()
    async for chunk in request.stream():
        taken += chunk
        if len(taken) > MAX_BODY_BYTES:
            raise _Refused(413, f"more than {MAX_BODY_BYTES} bytes")
    return bytes(taken)


def _decode(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError) as exc:
        raise _Refused(400, f"bad request body: {exc}") from None


def _in_pieces(pieces: Sequence[bytes]) -> Response:
    """Sent, and compressed, piece by piece: the loop serves others in between."""

    async def each() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(0)

    return StreamingResponse(each(), media_type="application/json")


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
