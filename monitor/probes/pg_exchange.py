"""Statements of many checks in one round trip to a PostgreSQL server, on libpq's pipeline: cursors would cost more than the answers.

Requests that begin with the same statement share it and one transaction; each other is a transaction of its own, so that no lock of one
is held while another runs. What fails spoils nothing else: whom an error left out is asked again, alone.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import psycopg
from psycopg import errors, pq
from psycopg.adapt import PyFormat, Transformer

from monitor.probes_contract import Asked, Row

PREPARED_AT_MOST = 200
"""Statements that a server keeps planned for us; what comes later is planned each time."""

_STALE = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)
"""A table has changed since its statement was planned ("cached plan must not change result type"), or an error left out the planning."""

_ROWS, _DONE, _FAILED = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.FATAL_ERROR
_END = pq.ExecStatus.PIPELINE_SYNC

_LAST_WORDS = (b"FATAL", b"PANIC")
"""After these the server closes the connection: it was ended by an administrator, or goes down."""

_PLACEHOLDER = re.compile(r"%(?:%|\((\w+)\)s)")


@dataclass(slots=True, eq=False)
class Request:
    """What one caller asks, one statement at least, and the place of its answer: rows of each statement, or the error that ended it."""

    asked: Sequence[Asked]
    answer: "asyncio.Future[list[list[Row]]]"
    due: float
    """When the caller is told that no answer has come, by the loop's clock."""
    sent: bool = False


@dataclass(slots=True, eq=False)
class _Plan:
    """How a statement is asked: where it has a name, the server keeps it planned."""

    text: str
    types: tuple[int, ...]
    name: bytes = b""
    is_sent: bool = False
    """Whether the server was told to plan it."""
    is_awaited: bool = False
    """Whether that has a result, which is still to come: it is in front of the result of the first statement that uses the plan."""
    columns: tuple[str, ...] = ()
    """What its rows look like, as soon as that is known."""


_Command = tuple[_Plan, Sequence[object], Sequence[pq.Format]]
"""One statement to be sent: its values, and how they are written."""

_Answer = list[Row] | psycopg.Error | UnicodeError | None
"""Of one command: its rows, or its error, or nothing after the error of an earlier one."""


_Transaction = list[tuple[Request, list[_Command]]]
"""Requests, and what is sent for each: what all of them begin with, for the first alone."""

_ROWS_ONLY = frozenset({list})


class Exchange:
    """One connection's pipeline, and what is prepared on it. One :meth:`run` at a time, and no cursor meanwhile."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._adapt = Transformer(connection)
        self._plans: dict[tuple[str, tuple[int, ...]], _Plan] = {}
        self._named = 0

    async def run(self, requests: Sequence[Request]) -> None:
        """Send all requests, and resolve each as its results arrive. Raises ``psycopg.OperationalError`` when the connection is lost."""
        self._pg.enter_pipeline_mode()
        if again := await self._run(requests):
            await self._run(again, alone=True)
        self._pg.exit_pipeline_mode()

    async def _run(self, requests: Sequence[Request], *, alone: bool = False) -> list[Request]:
        """Returns what must be asked again; nothing when each was ``alone``."""
        transactions = self._transactions(requests, alone=alone)
        for transaction in transactions:
            for _, commands in transaction:
                for command in commands:
                    self._send(*command)
            self._pg.pipeline_sync()
        again: list[Request] = []
        for transaction in transactions:
            results = iter(await self._results())
            shared: _Answer = None
            for request, commands in transaction:
                answers = [self._take(plan, results) for plan, _, _ in commands]
                if len(answers) == len(request.asked):
                    shared = answers[0]
                else:  # each gets what is shared for itself
                    answers.insert(0, list(map(dict, shared)) if isinstance(shared, list) else shared)
                if not _settle(request, answers, alone=alone):
                    again.append(request)
        return again

    # --- sending -----------------------------------------------------------------------------------------------------

    def _transactions(self, requests: Sequence[Request], *, alone: bool) -> list[_Transaction]:
        """The requests by transaction. What several begin with, such as the proof of rights, is asked by the first of them."""
        by_first: dict[object, _Transaction] = {}
        for request in requests:
            request.sent = True
            asked = request.asked
            first, params = asked[0] if isinstance(asked[0], tuple) else (asked[0], None)
            begin = request if alone or params or not isinstance(first, str) else first
            transaction = by_first.get(begin)
            try:
                commands = list(map(self._command, asked[1:] if transaction else asked))
            except (psycopg.Error, UnicodeError, KeyError) as exc:  # a value or name that cannot be written
                if not request.answer.done():
                    request.answer.set_exception(exc)
                continue
            if transaction:
                transaction.append((request, commands))
            else:
                by_first[begin] = [(request, commands)]
        return list(by_first.values())

    def _command(self, asked: Asked) -> _Command:
        if isinstance(asked, str):
            return self._plan(asked, ()), (), ()
        sql, params = asked if isinstance(asked, tuple) else (asked, None)
        text = sql if isinstance(sql, str) else sql.as_string(self._connection)
        if not params:
            return self._plan(text, ()), (), ()
        _, names = _numbered(text)
        values = self._adapt.dump_sequence(list(map(params.__getitem__, names)), [PyFormat.AUTO] * len(names))
        return self._plan(text, tuple(self._adapt.types or ())), values, self._adapt.formats or ()

    def _plan(self, text: str, types: tuple[int, ...]) -> _Plan:
        plan = self._plans.get((text, types))
        if plan is None:
            plan = _Plan(text, types)
            if len(self._plans) < PREPARED_AT_MOST:
                self._named += 1
                plan.name = b"monitor_%d" % self._named
                self._plans[text, types] = plan
        return plan

    def _send(self, plan: _Plan, values: Sequence[object], formats: Sequence[pq.Format]) -> None:
        if not plan.is_sent:
            query = _numbered(plan.text)[0] if plan.types else plan.text.encode()
            if not plan.name:
                self._pg.send_query_params(query, values, plan.types, formats)  # type: ignore[arg-type]
                return
            self._pg.send_prepare(plan.name, query, plan.types)
            plan.is_sent = plan.is_awaited = True
        self._pg.send_query_prepared(plan.name, values, formats)  # type: ignore[arg-type]

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def _results(self) -> list[pq.abc.PGresult]:
        """Of one transaction, in the order of its commands. Raises ``psycopg.OperationalError`` when they will not all come."""
        pg = self._pg
        results: list[pq.abc.PGresult] = []
        while True:
            if pg.is_busy():
                await self._until_come()
            result = pg.get_result()
            if result is None:
                pg.finish()
                raise psycopg.OperationalError("the server closed the connection")
            status = result.status
            if status == _END:
                return results
            if status == _FAILED:
                self._see_end(result)
            results.append(result)
            pg.get_result()  # the end of this command

    def _see_end(self, result: pq.abc.PGresult) -> None:
        """Raises ``psycopg.OperationalError`` when this error was the server's last word."""
        if result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in _LAST_WORDS:
            self._pg.finish()
        if self._pg.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the server closed the connection")

    def _take(self, plan: _Plan, results: Iterator[pq.abc.PGresult]) -> _Answer:
        result = next(results)
        if plan.is_awaited:
            plan.is_awaited = False
            if result.status != _DONE:
                self._forget(plan)
                next(results)  # left out
                return self._error(plan, result)
            result = next(results)
        status = result.status
        if status == _ROWS:
            try:
                return self._rows(plan, result) if result.ntuples else []
            except (psycopg.Error, UnicodeError) as exc:
                return exc
        return [] if status == _DONE else self._error(plan, result)

    def _error(self, plan: _Plan, result: pq.abc.PGresult) -> psycopg.Error | None:
        """None when it was left out after another one."""
        error = errors.error_from_result(result) if result.status == _FAILED else None
        if isinstance(error, _STALE):
            self._forget(plan)
        return error

    def _forget(self, plan: _Plan) -> None:
        self._plans.pop((plan.text, plan.types), None)

    def _rows(self, plan: _Plan, result: pq.abc.PGresult) -> list[Row]:
        columns = plan.columns
        if not columns:
            columns = plan.columns = tuple((result.fname(number) or b"").decode() for number in range(result.nfields))
        self._adapt.set_pgresult(result)
        return [dict(zip(columns, values, strict=True)) for values in self._adapt.load_rows(0, result.ntuples, tuple)]

    async def _until_come(self) -> None:
        """Until the next result has come as a whole."""
        while self._pg.is_busy():
            await self._until_ready(writing=self._pg.flush() == 1)
            self._pg.consume_input()

    async def _until_ready(self, *, writing: bool) -> None:
        """Until there is something to read, or room for what is still to be written."""
        loop, file = asyncio.get_running_loop(), self._pg.socket
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(file, wake)
        if writing:
            loop.add_writer(file, wake)
        try:
            await ready
        finally:
            loop.remove_reader(file)
            if writing:
                loop.remove_writer(file)


def _settle(request: Request, answers: list[_Answer], *, alone: bool) -> bool:
    """Answer it. False when it must be asked again: left out after an error of another, or planned for what has changed."""
    if _ROWS_ONLY.issuperset(map(type, answers)):
        if not request.answer.done():  # unless the caller has left
            request.answer.set_result(answers)  # type: ignore[arg-type]
        return True
    error = next(answer for answer in answers if not isinstance(answer, list))
    if not alone and (error is None or isinstance(error, _STALE)):
        return False
    if not request.answer.done():
        request.answer.set_exception(error or psycopg.DatabaseError("the statement was left out"))
    return True


@lru_cache(maxsize=512)
def _numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    """The statement with ``$1`` for ``%(name)s``, and the names in order."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match[1], len(names) + 1)}" if match[1] else "%"

    return _PLACEHOLDER.sub(number, text).encode(), tuple(names)
