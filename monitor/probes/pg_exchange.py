"""Statements of many checks in one round trip to a PostgreSQL server, on libpq's pipeline: cursors would cost more than the answers.

Requests that begin with the same statement share it and one transaction; each other is a transaction of its own, so that no lock of one
is held while another runs. What fails spoils nothing else: whom an error left out is asked again, alone.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import psycopg
from psycopg import errors, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.sql import Composed

from monitor.probes_contract import Row, Statement

PREPARED_AT_MOST = 200
"""Statements that a server keeps planned for us; what comes later is planned each time."""

_STALE = (errors.InvalidSqlStatementName, errors.FeatureNotSupported)
"""A table has changed since its statement was planned ("cached plan must not change result type"), or an error left out the planning."""

_ROWS, _DONE, _FAILED = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.FATAL_ERROR

_LAST_WORDS = (b"FATAL", b"PANIC")
"""After these the server closes the connection: it was ended by an administrator, or goes down."""

_PLACEHOLDER = re.compile(r"%(?:%|\((\w+)\)s)")

Asked = Sequence[tuple[Statement, Mapping[str, object]]]


@dataclass(slots=True, eq=False)
class Request:
    """What one caller asks, one statement at least, and the place of its answer: rows of each statement, or the error that ended it."""

    asked: Asked
    answer: "asyncio.Future[list[list[Row]]]"
    sent: bool = False


@dataclass(slots=True, eq=False)
class _Plan:
    """A statement that the server keeps planned, and what its rows look like as soon as that is known."""

    name: bytes
    columns: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Step:
    """One statement on its way. ``rows`` or ``error`` come with its results; neither where an earlier one failed."""

    query: bytes
    values: Sequence[object]
    types: tuple[int, ...]
    formats: Sequence[pq.Format]
    plan: _Plan | None = None
    results: int = 1
    """Results that it will bring: two when it is prepared on the way."""
    rows: list[Row] | None = None
    error: psycopg.Error | UnicodeError | None = None


@dataclass(slots=True)
class _Sent:
    request: Request
    steps: list[_Step]
    own: list[_Step]
    """Of the steps, those that are sent for this request itself."""


class Exchange:
    """One connection's pipeline, and what is prepared on it. One :meth:`run` at a time, and no cursor meanwhile."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._adapt = Transformer(connection)
        self._plans: dict[tuple[bytes, tuple[int, ...]], _Plan] = {}
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
            for one in transaction:
                for step in one.own:
                    self._queue(step)
            self._pg.pipeline_sync()
        again: list[Request] = []
        for transaction in transactions:
            for one in transaction:
                for step in one.own:
                    await self._receive(step)
            await self._until_come()
            self._next()  # the end of the transaction
            again += [one.request for one in transaction if not self._settle(one, alone=alone)]
        return again

    # --- sending -----------------------------------------------------------------------------------------------------

    def _transactions(self, requests: Sequence[Request], *, alone: bool) -> list[list[_Sent]]:
        """The requests by transaction. What several begin with, such as the proof of rights, is asked by the first of them."""
        by_first: dict[object, list[_Sent]] = {}
        for request in requests:
            request.sent = True
            first, params = request.asked[0]
            begin = request if alone or params or not isinstance(first, str) else first
            transaction = by_first.get(begin)
            try:
                own = [self._encode(sql, values) for sql, values in (request.asked[1:] if transaction else request.asked)]
            except (psycopg.Error, UnicodeError, KeyError) as exc:  # a value or name that cannot be written
                if not request.answer.done():
                    request.answer.set_exception(exc)
                continue
            if transaction:
                transaction.append(_Sent(request, [transaction[0].steps[0], *own], own))
            else:
                by_first[begin] = [_Sent(request, own, own)]
        return list(by_first.values())

    def _encode(self, sql: Statement, params: Mapping[str, object]) -> _Step:
        text = sql.as_string(self._connection) if isinstance(sql, Composed) else sql
        if not params:
            return _Step(_encoded(text), (), (), ())
        query, names = _numbered(text)
        values = self._adapt.dump_sequence([params[name] for name in names], [PyFormat.AUTO] * len(names))
        return _Step(query, values, tuple(self._adapt.types or ()), list(self._adapt.formats or ()))

    def _queue(self, step: _Step) -> None:
        key = (step.query, step.types)
        step.plan = self._plans.get(key)
        if step.plan is None:
            if len(self._plans) >= PREPARED_AT_MOST:
                self._pg.send_query_params(step.query, step.values, step.types, step.formats)  # type: ignore[arg-type]
                return
            self._named += 1
            step.plan = self._plans[key] = _Plan(b"monitor_%d" % self._named)
            self._pg.send_prepare(step.plan.name, step.query, step.types)
            step.results = 2
        self._pg.send_query_prepared(step.plan.name, step.values, step.formats)  # type: ignore[arg-type]

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def _receive(self, step: _Step) -> None:
        pg = self._pg
        for number in range(step.results):
            if pg.is_busy():
                await self._until_come()
            result = self._next()
            if result is not None:
                self._take(step, result, is_plan=number < step.results - 1)
                if pg.is_busy():
                    await self._until_come()
                pg.get_result()  # the end of this command

    def _take(self, step: _Step, result: pq.abc.PGresult, *, is_plan: bool) -> None:
        status = result.status
        if status == _ROWS:
            try:
                step.rows = self._rows(step, result) if result.ntuples else []
            except (psycopg.Error, UnicodeError) as exc:
                step.error = exc
        elif status == _DONE:
            if not is_plan:
                step.rows = []
        else:  # an error, or left out after one
            if status == _FAILED and step.error is None:
                step.error = errors.error_from_result(result)
            if is_plan or isinstance(step.error, _STALE):
                self._plans.pop((step.query, step.types), None)

    def _rows(self, step: _Step, result: pq.abc.PGresult) -> list[Row]:
        columns = step.plan.columns if step.plan else ()
        if not columns:
            columns = tuple((result.fname(number) or b"").decode() for number in range(result.nfields))
            if step.plan:
                step.plan.columns = columns
        self._adapt.set_pgresult(result)
        return self._adapt.load_rows(0, result.ntuples, lambda values: dict(zip(columns, values, strict=True)))

    def _settle(self, one: _Sent, *, alone: bool) -> bool:
        """Answer the request. False when it must be asked again: left out after an error of another, or planned for what has changed."""
        answers = [step.rows for step in one.steps if step.rows is not None]
        if len(answers) < len(one.steps):
            error = next(step.error for step in one.steps if step.rows is None)
            if not alone and (error is None or isinstance(error, _STALE)):
                return False
            if not one.request.answer.done():  # unless the caller has left
                one.request.answer.set_exception(error or psycopg.DatabaseError("the statement was left out"))
            return True
        if len(one.own) < len(answers):  # what is shared, each gets for itself
            answers[0] = list(map(dict, answers[0]))
        if not one.request.answer.done():
            one.request.answer.set_result(answers)
        return True

    def _next(self) -> pq.abc.PGresult | None:
        """The next result, which has come. Raises ``psycopg.OperationalError`` when there will be no other."""
        result = self._pg.get_result()
        if result is None or result.status == _FAILED:
            if result is not None and result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in _LAST_WORDS:
                self._pg.finish()
            if self._pg.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError("the server closed the connection")
        return result

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


@lru_cache(maxsize=512)
def _encoded(text: str) -> bytes:
    return text.encode()


@lru_cache(maxsize=512)
def _numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    """The statement with ``$1`` for ``%(name)s``, and the names in order."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match[1], len(names) + 1)}" if match[1] else "%"

    return _PLACEHOLDER.sub(number, text).encode(), tuple(names)
