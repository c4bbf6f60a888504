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

_LAST_WORDS = (b"FATAL", b"PANIC")
"""After these the server closes the connection: it was ended by an administrator, or goes down."""

_PLACEHOLDER = re.compile(r"%(?:%|\((\w+)\)s)")

Asked = Sequence[tuple[Statement, Mapping[str, object]]]


@dataclass(slots=True, eq=False)
class Request:
    """What one caller asks, and the place of its answer: rows of each statement, or the error that ended it."""

    asked: Asked
    answer: "asyncio.Future[list[list[Row]]]"
    sent: bool = False


@dataclass(slots=True, eq=False)
class _Step:
    """One statement on its way. ``rows`` or ``error`` come with its results; neither where an earlier one failed."""

    query: bytes
    values: Sequence[object]
    types: tuple[int, ...]
    formats: Sequence[pq.Format]
    name: bytes | None = None
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

    @property
    def must_be_asked_again(self) -> bool:
        """Whether it says nothing yet: left out after an error of another, or planned for what has changed since."""
        for step in self.steps:
            if step.rows is None:
                return step.error is None or isinstance(step.error, _STALE)
        return False


class Exchange:
    """One connection's pipeline, and what is prepared on it. One :meth:`run` at a time, and no cursor meanwhile."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._adapt = Transformer(connection)
        self._prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._columns: dict[bytes, tuple[str, ...]] = {}
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
        again = []
        for transaction in transactions:
            for one in transaction:
                await self._receive(one)
            await self._result()  # the end of the transaction
            for one in transaction:
                if not alone and one.must_be_asked_again:
                    again.append(one.request)
                else:
                    self._resolve(one)
        return again

    # --- sending -----------------------------------------------------------------------------------------------------

    def _transactions(self, requests: Sequence[Request], *, alone: bool) -> list[list[_Sent]]:
        """The requests by transaction. What several begin with, such as the proof of rights, is asked by the first of them."""
        by_first: dict[object, list[_Sent]] = {}
        for request in requests:
            request.sent = True
            try:
                steps = [self._encode(*one) for one in request.asked]
            except (psycopg.Error, UnicodeError, KeyError) as exc:  # a value or name that cannot be written
                if not request.answer.done():
                    request.answer.set_exception(exc)
                continue
            shares = bool(steps) and not steps[0].values and not alone
            transaction = by_first.setdefault(steps[0].query if shares else request, [])
            if transaction:
                transaction.append(_Sent(request, [transaction[0].steps[0], *steps[1:]], steps[1:]))
            else:
                transaction.append(_Sent(request, steps, steps))
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
        step.name = self._prepared.get(key)
        if step.name is None:
            if len(self._prepared) >= PREPARED_AT_MOST:
                self._pg.send_query_params(step.query, step.values, step.types, step.formats)  # type: ignore[arg-type]
                return
            self._named += 1
            step.name = self._prepared[key] = b"monitor_%d" % self._named
            self._pg.send_prepare(step.name, step.query, step.types)
            step.results = 2
        self._pg.send_query_prepared(step.name, step.values, step.formats)  # type: ignore[arg-type]

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def _receive(self, one: _Sent) -> None:
        for step in one.own:
            for number in range(step.results):
                result = await self._result()
                if result is not None:
                    self._take(step, result, is_plan=number < step.results - 1)
                    await self._result()  # the end of this command

    def _take(self, step: _Step, result: pq.abc.PGresult, *, is_plan: bool) -> None:
        status = result.status
        if status == pq.ExecStatus.TUPLES_OK:
            try:
                step.rows = self._rows(step, result)
            except (psycopg.Error, UnicodeError) as exc:
                step.error = exc
        elif status == pq.ExecStatus.COMMAND_OK:
            if not is_plan:
                step.rows = []
        else:  # an error, or left out after one
            if status == pq.ExecStatus.FATAL_ERROR and step.error is None:
                step.error = errors.error_from_result(result)
            if is_plan or isinstance(step.error, _STALE):
                self._prepared.pop((step.query, step.types), None)

    def _rows(self, step: _Step, result: pq.abc.PGresult) -> list[Row]:
        columns = self._columns.get(step.name or b"")
        if columns is None:
            columns = tuple((result.fname(number) or b"").decode() for number in range(result.nfields))
            if step.name:
                self._columns[step.name] = columns
        self._adapt.set_pgresult(result)
        return self._adapt.load_rows(0, result.ntuples, lambda values: dict(zip(columns, values, strict=True)))

    def _resolve(self, one: _Sent) -> None:
        answer = one.request.answer
        if answer.done():  # the caller has left
            return
        error = next((step.error for step in one.steps if step.error is not None), None)
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result([list(map(dict, step.rows or ())) if step not in one.own else step.rows or [] for step in one.steps])

    async def _result(self) -> pq.abc.PGresult | None:
        while self._pg.is_busy():
            await self._until_ready(writing=self._pg.flush() == 1)
            self._pg.consume_input()
        result = self._pg.get_result()
        if result is not None and result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in _LAST_WORDS:
            self._pg.finish()
        if self._pg.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the server closed the connection")
        return result

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
