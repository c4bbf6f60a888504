"""The sentinel: one held connection per watched PostgreSQL, for reading only, and the canary login beside it.

Owns deadlines that hold even when the server is frozen, and the words that tell a person why we could not look.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psycopg
from psycopg import errors
from psycopg.sql import SQL
from pydantic import SecretStr

from monitor.clock import Clock
from monitor.errors import CannotLook
from monitor.probes.pg_exchange import Exchange, Request
from monitor.probes.pg_login import CURES, entrance, try_login
from monitor.probes_contract import Asked, Login, Row, Statement

STATEMENT_S = 3.0
"""A statement takes no longer than this, unless its check has more time."""
LOGIN_S = 3.0
"""A login takes no longer than this, whatever time a statement has."""
LOCK_TIMEOUT_S = 0.25
GRACE_S = 0.15
"""The server stops a statement at ``timeout_s`` by itself; so much later the caller is told, whatever the server does."""

# Set in the session and not at its start, so that pg_settings still shows (as reset_val) what the server's own sessions get.
TIMEOUTS = """
SELECT set_config('statement_timeout', %(timeout)s, false), set_config('idle_in_transaction_session_timeout', '15s', false)
"""

ASKED = SQL("SELECT * FROM (\n{query}\n) AS asked LIMIT %(limit)s")
"""With a parameter, the server takes one statement only."""

Held = psycopg.AsyncConnection[Row]
Answer = TypeVar("Answer")


def session_options() -> str:
    """What makes a session harmless from its first moment: it cannot write, and waits for no lock."""
    settings = {
        "lock_timeout": int(LOCK_TIMEOUT_S * 1000),
        "idle_session_timeout": 0,
        "default_transaction_read_only": "on",
        "search_path": "pg_catalog",
        "jit": "off",
        "max_parallel_workers_per_gather": 0,
        "work_mem": "4MB",
        "TimeZone": "UTC",
    }
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


@dataclass(slots=True)
class Cost:
    """What watching a server has cost it so far; all only grow."""

    statements: int = 0
    busy_s: float = 0.0
    """Spent waiting for its answers."""
    connects: int = 0
    """Connections opened to be held; canary logins are not among them."""
    logins: int = 0
    """Canary logins."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.statements + other.statements, self.busy_s + other.busy_s, self.connects + other.connects, self.logins + other.logins
        )


class PgSentinel:
    """Implements :class:`monitor.probes_contract.Postgres`. Opened at the first use, opened again after a loss.

    One statement (or one pipeline) runs at a time. A call never takes longer than ``timeout_s`` and a fifth of a second: when the
    server is silent, the caller is told and the statement is left behind; when it stays silent, its socket is cut.
    """

    def __init__(
        self,
        dsn: SecretStr,
        canary_dsn: SecretStr | None,
        clock: Clock,
        *,
        application_name: str = "monitor",
        timeout_s: float = STATEMENT_S,
        held_s: float | None = None,
    ) -> None:
        """Raises ``CannotLook`` when a dsn is not a connection string.

        ``timeout_s`` is what one statement may take. The connection is given back after ``held_s`` without work; None: never.
        """
        self._clock = clock
        self._timeout_s = timeout_s
        self._login_s = min(timeout_s, LOGIN_S)
        self._held_s = held_s
        self._rest: asyncio.TimerHandle | None = None
        """When the unused connection is given back."""
        self._where = entrance(dsn, application_name=application_name, options=session_options())
        self._canary = entrance(canary_dsn or dsn, application_name=f"{application_name}-canary")
        self.cost = Cost()
        self._turn = asyncio.Lock()
        self._connection: Held | None = None
        self._exchange: Exchange | None = None
        """Of the held connection, from its first exchange on."""
        self._waiting: list[Request] = []
        """What goes with the next exchange."""
        self._asked: list[Request] = []
        """What went with this one."""
        self._deadline: asyncio.TimerHandle | None = None
        """When the next of these is due, while there are any."""
        self._exchanging: asyncio.Task[None] | None = None
        self._task: asyncio.Task[object] | None = None
        self._was_cut = False
        self._closed = False

    async def fetch(self, sql: Statement, params: Mapping[str, object] | None = None) -> list[Row]:
        """Run one statement. Raises ``CannotLook`` naming cause and cure."""
        return (await self.fetch_many([(sql, params or {})]))[0]

    async def fetch_many(self, statements: Sequence[Asked]) -> list[list[Row]]:
        """Run several statements in one transaction and one snapshot of the activity views. Raises ``CannotLook``.

        What is asked in the same turn of the loop, or while an exchange is under way, shares one round trip.
        """
        if self._closed:
            raise CannotLook(f"{self._where.place}: the connection was closed")
        if not statements:
            return []
        loop = asyncio.get_running_loop()
        request = Request(statements, loop.create_future(), loop.time() + self._timeout_s + GRACE_S)
        self._waiting.append(request)
        if self._exchanging is None:
            self._exchanging = loop.create_task(self._exchange_waiting())
        if self._deadline is None:
            self._deadline = loop.call_at(request.due, self._give_up)
        try:
            return await request.answer
        except (psycopg.Error, UnicodeError) as exc:
            raise CannotLook(f"{self._where.place}: {self._explain(exc)}") from exc

    async def ask(self, query: str, *, limit: int) -> list[Row]:
        """Run one SELECT that is not ours and return its first ``limit`` rows. Raises ``CannotLook``.

        As a subquery it cannot change rows, with a parameter the server takes no second statement, and what it may have set or locked is
        undone.
        """
        text = query.strip().removesuffix(";").replace("%", "%%")
        asked = ASKED.format(query=SQL(text))  # the operator's own words, which is what the fences are for

        async def work(connection: Held) -> list[Row]:
            await connection.execute("BEGIN TRANSACTION READ ONLY")
            try:
                return await (await connection.execute(asked, {"limit": limit}, prepare=False)).fetchall()
            finally:
                if not connection.closed:
                    await connection.rollback()
                    await connection.execute("SELECT pg_advisory_unlock_all()")

        return await self._run(work, statements=4)

    async def version(self) -> int:
        """The server's version as ``server_version_num``; asks nothing while a connection is held. Raises ``CannotLook``."""

        held = self._connection
        if held is not None and not held.closed:
            return held.pgconn.server_version

        async def work(connection: Held) -> int:
            return connection.pgconn.server_version

        return await self._run(work, statements=0)

    async def login(self) -> Login:
        """Open and close one fresh connection as the canary role, within ``LOGIN_S``. Failures are values."""
        self.cost.logins += 1
        connection, login = await try_login(self._canary, self._clock, timeout_s=self._login_s)
        if connection is not None:
            await connection.close()
        return login

    async def close(self) -> None:
        """Drop the connection, and whatever still runs on it."""
        self._closed = True
        if self._task is not None and not self._task.done():
            if self._connection is None:
                self._task.cancel()  # it is opening one
            self._cut()
            await asyncio.wait({self._task}, timeout=self._login_s)
        self._stay()
        await self._drop()

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[Held], Awaitable[Answer]], *, statements: int) -> Answer:
        """Do ``work`` on the held connection in its turn. A cancelled or late caller leaves; the statement ends by itself."""
        if self._closed:
            raise CannotLook(f"{self._where.place}: the connection was closed")
        in_turn = False
        try:
            async with asyncio.timeout(self._timeout_s + GRACE_S):
                await self._turn.acquire()
                in_turn = True
                self.cost.statements += statements
                task = asyncio.create_task(self._work_with_guard(work))
                task.add_done_callback(self._end_turn)
                self._task = task
                return await asyncio.shield(task)
        except TimeoutError:
            raise self._no_answer(in_turn=in_turn) from None

    async def _exchange_waiting(self) -> None:
        """Exchange what waits, and what comes meanwhile, until nothing does. No caller is left without an answer."""

        async def work(connection: Held) -> None:
            if self._exchange is None:
                self._exchange = Exchange(connection)
            await self._exchange.run([request for request in self._asked if not request.answer.done()])

        try:
            while self._waiting:
                await self._turn.acquire()
                try:
                    self._asked, self._waiting = self._waiting, []
                    self.cost.statements += sum([len(request.asked) for request in self._asked])
                    self._task = self._exchanging
                    try:
                        await self._work_with_guard(work)
                    except CannotLook as exc:
                        _answer_with(exc, self._asked)
                finally:
                    self._turn.release()
        except BaseException:
            _answer_with(CannotLook(f"{self._where.place}: the connection was closed"), (*self._asked, *self._waiting))
            raise
        finally:
            self._asked, self._waiting, self._exchanging = [], [], None
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    def _give_up(self) -> None:
        """Tell whoever has waited for too long; the first to ask is the first to be due."""
        loop = asyncio.get_running_loop()
        self._deadline = None
        for request in (*self._asked, *self._waiting):
            if request.answer.done():
                continue
            if request.due > loop.time():
                self._deadline = loop.call_at(request.due, self._give_up)
                return
            _answer_with(self._no_answer(in_turn=request.sent), [request])

    def _no_answer(self, *, in_turn: bool) -> CannotLook:
        why = "no answer from the server" if in_turn else "an earlier statement of the monitor still has no answer"
        return CannotLook(f"{self._where.place}: {why} after {self._timeout_s:g} s: is the server frozen or overloaded?")

    def _end_turn(self, task: "asyncio.Task[Answer]") -> None:
        self._turn.release()
        if not task.cancelled():
            task.exception()  # seen, even when the caller has left

    async def _work_with_guard(self, work: Callable[[Held], Awaitable[Answer]]) -> Answer:
        self._stay()
        loop = asyncio.get_running_loop()
        guard = loop.call_later(2 * self._timeout_s, self._cut)
        began = self._clock.monotonic()
        try:
            return await self._work(work)
        except (psycopg.Error, UnicodeError) as exc:
            raise CannotLook(f"{self._where.place}: {self._explain(exc)}") from exc
        finally:
            guard.cancel()
            self.cost.busy_s += self._clock.monotonic() - began
            if self._was_cut or (self._connection is not None and self._connection.closed):
                await self._drop()
            if self._held_s is not None and not self._closed:
                self._rest = loop.call_later(self._held_s, self._give_back)

    def _give_back(self) -> None:
        """Nobody has needed the connection for a while: it is closed, and opened again by the next statement."""
        self._rest = None
        if self._connection is not None:
            self._connection.pgconn.finish()

    def _stay(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    async def _work(self, work: Callable[[Held], Awaitable[Answer]]) -> Answer:
        """Work on the held connection; once more on a new one when it was lost meanwhile."""
        held = self._connection
        if held is not None:
            try:
                return await work(held)
            except psycopg.OperationalError:
                if self._was_cut or not held.closed:
                    raise
                await self._drop()
        return await work(await self._open())

    async def _open(self) -> Held:
        if self._closed:
            raise CannotLook(f"{self._where.place}: the connection was closed")
        self.cost.connects += 1
        connection, login = await try_login(self._where, self._clock, timeout_s=self._login_s)
        if connection is None:
            raise CannotLook(f"{self._where.place}: {CURES[login.state]}: {login.detail}")
        self._connection = connection
        await connection.execute(TIMEOUTS, {"timeout": f"{int(self._timeout_s * 1000)}ms"})
        return connection

    def _cut(self) -> None:
        """Shut the socket under the driver: its wait ends at once. (Cancelling it would ask the frozen server, and wait.)"""
        connection = self._connection
        if connection is None or connection.closed:
            return
        self._was_cut = True
        with socket.socket(fileno=os.dup(connection.fileno())) as shared:
            try:
                shared.shutdown(socket.SHUT_RDWR)
            except OSError:  # it is gone already
                return

    async def _drop(self) -> None:
        connection, self._connection, self._exchange, self._was_cut = self._connection, None, None, False
        if connection is not None:
            await connection.close()

    def _explain(self, exc: Exception) -> str:
        words = self._where.safe(str(exc))
        stories: dict[type[Exception], str] = {
            errors.QueryCanceled: f"a statement was stopped after {self._timeout_s:g} s: the server is overloaded, it was cancelled, "
            "or the check needs a longer timeout",
            errors.LockNotAvailable: f"a table is locked by another session for longer than {LOCK_TIMEOUT_S:g} s: find it in pg_locks",
            errors.InsufficientPrivilege: f"the role {self._where.user} lacks a privilege: GRANT it SELECT on what is named, or pg_monitor",
            errors.ReadOnlySqlTransaction: "the statement would change something, and the monitor only reads",
        }
        for kind, story in stories.items():
            if isinstance(exc, kind):
                return f"{story} ({words})"
        if isinstance(exc, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
            return f"the database does not have what is asked for: {words}"
        if isinstance(exc, UnicodeError):
            return f"the server sent text that is not UTF-8: {words}"
        return f"the statement failed: {words}"


def _answer_with(error: CannotLook, requests: Sequence[Request]) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
