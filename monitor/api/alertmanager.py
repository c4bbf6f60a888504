"""Alertmanager's v2 API over HTTP, so that Prometheus and amtool work with this monitor unchanged.

Reading is open. Posting alerts and changing silences need the bearer token. Errors are JSON strings, as in Alertmanager.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from alerts.matchers import checked, parse_matchers
from alerts.posted import PostedAlert
from alerts.silences import build, change
from monitor.alerting import Alerting
from monitor.alertmanager import (
    AlertQuery,
    group_alerts,
    receivers,
    show_alerts,
    show_silence,
    show_silences,
    show_status,
)
from monitor.domain import Matcher, Silence
from monitor.errors import StoreError, UsageError

MAX_BODY_BYTES = 16 * 1024 * 1024
_UNSET_YEAR = 1
"""Go's zero time: what amtool sends for a moment that was not given."""


class _Alert(msgspec.Struct, rename="camel"):
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    generator_url: str = msgspec.field(default="", name="generatorURL")


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


_ALERTS = msgspec.json.Decoder(list[_Alert])
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
        ("/alerts", "POST", face.post_alerts),
        ("/silences", "POST", face.post_silence),
        ("/silence/{silence_id}", "DELETE", face.delete_silence),
    )
    for path, answer in reading:
        routes.add_api_route(path, _endpoint(answer, None), methods=["GET"], response_class=Response)
    for path, method, change_it in changing:
        routes.add_api_route(path, _endpoint(change_it, refuse), methods=[method], response_class=Response)
    return routes


def _endpoint(answer: Callable[[Request], Awaitable[Any]], refuse: Refusal | None) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        refusal = refuse(request) if refuse else None
        if refusal is not None:
            return _json(bytes(refusal.body).decode().strip(), refusal.status_code)
        try:
            value = await answer(request)
        except _Refused as exc:
            return _json(str(exc), exc.status)
        except (UsageError, ValueError) as exc:
            return _json(str(exc), 400)
        except StoreError as exc:
            return _json(f"the state cannot be used now: {exc}", 503)
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

    async def alerts(self, request: Request) -> list[dict[str, Any]]:
        return await _shown(self._alerting, request)

    async def groups(self, request: Request) -> list[dict[str, Any]]:
        return group_alerts(await _shown(self._alerting, request), self._alerting.settings.posted)

    async def silences(self, request: Request) -> list[dict[str, Any]]:
        return show_silences(await self._alerting.silences(), _filter(request), self._alerting.now())

    async def silence(self, request: Request) -> dict[str, Any]:
        return show_silence(await _find(self._alerting, request), self._alerting.now())

    async def post_alerts(self, request: Request) -> None:
        refused = await self._alerting.post([_posted(one) for one in _decode(_ALERTS, await _body(request))])
        if refused:
            raise _Refused(400, "; ".join(refused[:20]))

    async def post_silence(self, request: Request) -> dict[str, str]:
        return {"silenceID": await _save_silence(self._alerting, _decode(_SILENCE, await _body(request)))}

    async def delete_silence(self, request: Request) -> None:
        await self._alerting.expire(await _find(self._alerting, request))


async def _shown(alerting: Alerting, request: Request) -> list[dict[str, Any]]:
    query = AlertQuery(
        matchers=_filter(request),
        receiver=request.query_params.get("receiver", ""),
        active=_flag(request, "active"),
        silenced=_flag(request, "silenced"),
        inhibited=_flag(request, "inhibited"),
    )
    if query.receiver:
        checked(Matcher("receiver", query.receiver, is_regex=True))
    firing, muting = await alerting.firing()
    return show_alerts(firing, muting, query, alerting.settings.external_url, alerting.now())


async def _save_silence(alerting: Alerting, sent: _Silence) -> str:
    now = alerting.now()
    matchers = tuple(checked(Matcher(m.name, m.value, m.is_regex, m.is_equal)) for m in sent.matchers)
    fresh = build(matchers, sent.starts_at, sent.ends_at, sent.created_by, sent.comment, now)
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


def _posted(sent: _Alert) -> PostedAlert:
    return PostedAlert(sent.labels, sent.annotations, _moment(sent.starts_at), _moment(sent.ends_at), sent.generator_url)


def _moment(sent: datetime | None) -> datetime | None:
    if sent is None or sent.year == _UNSET_YEAR:
        return None
    if sent.tzinfo is None:
        raise ValueError("a moment without an offset from UTC")
    return sent


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


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
