"""How another process asks the running platform for something: one JSON line there, one back, over loopback with a token.

Owns the state file ``platform.json`` in the platform's folder, which tells where to ask; it is readable by its owner only.
"""

import asyncio
import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from services.ports import HOST

STATE_FILE = "platform.json"
ANSWER_WITHIN_S = 60.0
LINE_MAX_BYTES = 4096

Handler = Callable[[str], Awaitable[str]]
"""Takes the request's argument and returns a line for a person."""


class ControlError(Exception):
    """What was asked for was not done; the message says why."""


class Control:
    """Answers requests while the platform runs. A handler's ``refusals`` become answers; anything else is a bug."""

    def __init__(self, root: Path, handlers: Mapping[str, Handler], refusals: tuple[type[Exception], ...]) -> None:
        self._path = root / STATE_FILE
        self._handlers = dict(handlers)
        self._refusals = refusals
        self._token = secrets.token_urlsafe(24)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0, limit=LINE_MAX_BYTES)

    async def stop(self) -> None:
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def write_state(self, facts: Mapping[str, Any]) -> None:
        """Write the state file anew: these facts, and where to ask."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        state = {"pid": os.getpid(), "control": {"port": port, "token": self._token}, **facts}
        fresh = self._path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(state, indent=2) + "\n")
        fresh.replace(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                line = await reader.readline()
            answer = await self._answer(line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # who asked went away, or sent something that is no line
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, str]:
        try:
            request = json.loads(line)
            token, verb, argument = (str(request[name]) for name in ("token", "do", "argument"))
        except (ValueError, KeyError, TypeError):
            return {"error": "not a request"}
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return {"error": "wrong token"}
        handler = self._handlers.get(verb)
        if handler is None:
            return {"error": f"unknown request {verb!r}"}
        try:
            return {"done": await handler(argument)}
        except self._refusals as exc:
            return {"error": str(exc)}


async def ask(root: Path, verb: str, argument: str) -> str:
    """Ask the platform that runs in ``root``; returns its answer. Raises ``ControlError``."""
    path = root / STATE_FILE
    try:
        where = json.loads(path.read_text())["control"]
        port, token = int(where["port"]), str(where["token"])
    except FileNotFoundError as exc:
        raise ControlError(f"no platform runs in {root}: {path} is not there. Start one, or name its folder with --root.") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ControlError(f"{path} cannot be read: {exc}") from exc
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(json.dumps({"token": token, "do": verb, "argument": argument}).encode() + b"\n")
            answer = json.loads(await reader.readline())
            writer.close()
            await writer.wait_closed()
    except TimeoutError as exc:
        raise ControlError(f"the platform did not answer within {ANSWER_WITHIN_S:g} s") from exc
    except (OSError, ValueError) as exc:
        raise ControlError(f"the platform that wrote {path} is gone; start it again") from exc
    if "error" in answer:
        raise ControlError(answer["error"])
    return str(answer["done"])
