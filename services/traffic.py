"""A little traffic on the platform, so that logs, dashboards and latencies of the demo are alive.

Owns one loop per service: one that hangs silences only itself.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import cycle

import httpx2

PAUSE_S = 0.7
REQUEST_WITHIN_S = 5.0
PATHS: Mapping[str, Sequence[str]] = {
    "auth": ("/api/v1/verify", "/api/v1/verify", "/health"),
    "data": ("/health", "/api/v1/availability", "/health", "/health"),
    "analytics": ("/api/v1/reports/revenue", "/api/v1/reports/top-pages", "/health"),
}

LogIn = Callable[[], Awaitable[dict[str, str]]]
"""Logs in and returns the headers of a request. Raises ``httpx2.HTTPError``."""


async def visit_forever(urls: Mapping[str, str], log_in: LogIn) -> None:
    """Ask each service (name to base URL) something about every ``PAUSE_S`` seconds, until cancelled."""
    limits = httpx2.Timeout(REQUEST_WITHIN_S)
    async with httpx2.AsyncClient(timeout=limits, trust_env=False) as http, asyncio.TaskGroup() as group:
        for name, url in urls.items():
            group.create_task(_visit(http, url, PATHS[name], log_in))


async def _visit(http: httpx2.AsyncClient, url: str, paths: Sequence[str], log_in: LogIn) -> None:
    headers: dict[str, str] = {}
    for path in cycle(paths):
        # A visitor meets every fault that is provoked; that is no reason to stay away.
        with contextlib.suppress(httpx2.HTTPError):
            if not headers:
                headers = await log_in()
            answer = await http.get(url + path, headers=headers)
            if answer.status_code == httpx2.codes.UNAUTHORIZED:
                headers = {}
        await asyncio.sleep(PAUSE_S)
