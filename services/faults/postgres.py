"""INC-002 and INC-005: PostgreSQL has no connection left, takes none, or makes its users wait."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict

from services.faults.fault import Fault, FaultError, let_go

if TYPE_CHECKING:
    from services.platform import Platform

HELD_MAX = 1000
LEAK_EVERY_S = 0.2


class Leak:
    """Connections that are opened and never given back. It goes on leaking: a slot that others free is taken at once."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connections: list[psycopg.AsyncConnection] = []
        self._leaking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take connections until the server refuses. Raises ``FaultError``."""
        refusal = await self._fill()
        if refusal is None or not self._connections:
            await self.close()
            raise FaultError(str(refusal).strip() if refusal else f"the server gives more than {HELD_MAX} connections")
        self._leaking = asyncio.create_task(self._leak())

    async def close(self) -> None:
        if self._leaking is not None:
            self._leaking.cancel()
            await asyncio.wait({self._leaking})
        for connection in self._connections:
            await connection.close()
        self._connections.clear()

    async def _fill(self) -> psycopg.OperationalError | None:
        while len(self._connections) < HELD_MAX:
            try:
                self._connections.append(await psycopg.AsyncConnection.connect(self._dsn, autocommit=True))
            except psycopg.OperationalError as exc:
                return exc
        return None

    async def _leak(self) -> None:
        while True:
            await asyncio.sleep(LEAK_EVERY_S)
            await self._fill()


async def _take_connections(platform: "Platform") -> None:
    if "connections-exhausted" in platform.held:
        return
    leak = Leak(platform.services_dsn("report-export"))
    await leak.start()
    platform.held["connections-exhausted"] = leak.close


async def _return_connections(platform: "Platform") -> None:
    await let_go(platform, "connections-exhausted")


class Handshakes:
    """Logins that are begun and never finished: each holds a slot before it is a session. One that the server drops is replaced."""

    def __init__(self, host: str, port: int, user: str, number: int) -> None:
        self._where = (host, port)
        self._greeting = _startup_message(user)
        self._number = number
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._hold()) for _ in range(self._number)]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hold(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*self._where)
                try:
                    writer.write(self._greeting)
                    await reader.read()  # the server asks for the password, waits, and gives up in the end
                finally:
                    writer.transport.abort()
            await asyncio.sleep(LEAK_EVERY_S)


def _startup_message(user: str) -> bytes:
    """Version 3.0 of the protocol, with a user and nothing else."""
    body = (196_608).to_bytes(4, "big") + b"user\0" + user.encode() + b"\0\0"
    return (len(body) + 4).to_bytes(4, "big") + body


async def _stick_handshakes(platform: "Platform") -> None:
    if "handshakes-stuck" in platform.held:
        return
    where = conninfo_to_dict(platform.services_dsn("handshakes"))
    sockets = Handshakes(str(where["host"]), int(str(where["port"])), str(where["user"]), platform.max_connections)
    sockets.start()
    platform.held["handshakes-stuck"] = sockets.close


async def _drop_handshakes(platform: "Platform") -> None:
    await let_go(platform, "handshakes-stuck")


async def _lock_purchases(platform: "Platform") -> None:
    if "slow-queries" in platform.held:
        return
    connection = await psycopg.AsyncConnection.connect(platform.services_dsn("forgotten-migration"))
    try:
        await connection.execute("SET lock_timeout = '5s'")
        await connection.execute("LOCK TABLE purchase IN ACCESS EXCLUSIVE MODE")
    except psycopg.Error as exc:
        await connection.close()
        raise FaultError(f"the table purchase cannot be locked: {str(exc).strip()}") from exc
    platform.held["slow-queries"] = connection.close


async def _unlock_purchases(platform: "Platform") -> None:
    await let_go(platform, "slow-queries")


FAULTS = (
    Fault(
        "connections-exhausted",
        "INC-002",
        "postgres",
        "A leak takes every connection that PostgreSQL gives to the services.",
        _take_connections,
        _return_connections,
    ),
    Fault(
        "handshakes-stuck",
        "INC-002",
        "postgres",
        "Sockets that never finish their login hold PostgreSQL's slots: new connections time out.",
        _stick_handshakes,
        _drop_handshakes,
    ),
    Fault(
        "slow-queries",
        "INC-005",
        "analytics",
        "A forgotten migration holds the table purchase locked: every report over it waits.",
        _lock_purchases,
        _unlock_purchases,
    ),
)
