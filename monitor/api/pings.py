"""Where jobs send their signs of life: short addresses that fit a line of a crontab, in the form that Healthchecks made common."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from monitor.plugins import one_line
from monitor.probes_contract import Ping

MAX_BODY_BYTES = 10_000
SHOWN_CHARS = 1_000
METHODS = ["GET", "HEAD", "POST"]


def ping_routes(take: Callable[[str, Ping], Awaitable[bool]]) -> APIRouter:
    """``/ping/KEY`` for a success, ``/ping/KEY/start``, ``/fail``, ``/log``, or an exit status of 0 to 255.

    The key is the permission. A body, such as the end of the job's output, is kept with the last ping.
    """
    routes = APIRouter()

    @routes.api_route("/ping/{key}", methods=METHODS)
    @routes.api_route("/ping/{key}/{what}", methods=METHODS)
    async def _ping(request: Request, key: str, what: str = "success") -> Response:
        ping = _read(what, one_line(await _body(request), limit=SHOWN_CHARS))
        if ping is None:
            return PlainTextResponse("not a ping: /ping/KEY, or with /start, /fail, /log or an exit status of 0 to 255 behind it\n", 404)
        if not await take(key, ping):
            return PlainTextResponse("no heartbeat has this key\n", 404)
        return PlainTextResponse("OK\n")

    return routes


def _read(what: str, body: str) -> Ping | None:
    match what:
        case "success" | "start" | "fail" | "log":
            return Ping(what, body=body)
        case _ if what.isascii() and what.isdigit() and len(what) <= 3 and int(what) <= 255:
            return Ping("fail" if int(what) else "success", exit_code=int(what), body=body)
        case _:
            return None


async def _body(request: Request) -> str:
    """The beginning of what was sent."""
    taken = b""
    async for chunk in request.stream():
        taken += chunk[: MAX_BODY_BYTES - len(taken)]
        if len(taken) >= MAX_BODY_BYTES:
            break
    return taken.decode("utf-8", "replace")
