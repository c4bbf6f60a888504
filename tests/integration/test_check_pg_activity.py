"""Long statements, idle transactions and lock chains on real servers, 15 and 18."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from checks.pg_blocking import pg_blocking
from checks.pg_idle_in_transaction import pg_idle_in_transaction
from checks.pg_long_queries import pg_long_queries
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, CheckContext, Service
from tests.support.looking import look, looking_at

ALL: tuple[AnyCheck, ...] = (pg_long_queries, pg_idle_in_transaction, pg_blocking)


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    async with looking_at(Service("postgres", dsn=SecretStr(database))) as found:
        yield found


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def value(observed: Observed, metric: str) -> float:
    return next(sample.value for sample in observed.samples if sample.metric.name == metric)


@contextmanager
def running(dsn: str, *statements: str, application: str = "report") -> Iterator[psycopg.Connection]:
    """A session that runs the last statement in a thread until the end of the block."""
    *before, last = statements
    with psycopg.connect(dsn, application_name=application) as connection:
        for statement in before:
            connection.execute(statement.encode())
        with busy(connection, last):
            yield connection
        connection.rollback()


@contextmanager
def busy(connection: psycopg.Connection, statement: str) -> Iterator[None]:
    """The session runs the statement in a thread, until the end of the block at most."""

    def run() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            connection.execute(statement.encode())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive():
            connection.cancel()
            thread.join(0.1)


async def until_found(check: AnyCheck, ctx: CheckContext, **config: object) -> Observed:
    async with asyncio.timeout(10):
        while True:
            observed = await look(check, ctx, **config)
            if observed.findings:
                return observed
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
async def test_a_quiet_server_is_well(check: AnyCheck, ctx: CheckContext) -> None:
    assert (await look(check, ctx)).findings == ()


async def test_a_long_statement_is_found_with_its_text_masked(database: str, ctx: CheckContext) -> None:
    with running(database, "SELECT pg_sleep(60), 'top secret' /* token=1 */, 4711") as session:
        observed = await until_found(pg_long_queries, ctx, long_after="200ms", slow_after="100ms", slow_count=50)
        assert kinds(observed) == ["LongQuery"]
        (finding,) = observed.findings
        told = str(finding)
        assert f"pid {session.info.backend_pid}" in told
        assert "SELECT pg_sleep(?), ?" in told
        assert "secret" not in told
        assert "token" not in told
        assert "4711" not in told
        assert finding.value is not None
        assert finding.value >= 0.2
        assert value(observed, "monitor_pg_slow_queries") == 1
        assert (await look(pg_long_queries, ctx, long_after="200ms", ignore_applications=["rep"])).findings == ()


async def test_maintenance_may_take_long(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database) as loading, loading.cursor() as cursor:
        cursor.execute("CREATE TABLE loaded (a int)")
        with cursor.copy("COPY loaded FROM STDIN") as copy:
            copy.write_row([1])
            with running(database, "SELECT pg_sleep(60)") as session:
                (finding,) = (await until_found(pg_long_queries, ctx, long_after="300ms", slow_after="300ms", slow_count=50)).findings
                assert [name for name, _ in finding.facts if name.startswith("pid")] == [f"pid {session.info.backend_pid}"]


async def test_many_slow_statements_at_once_are_found(database: str, ctx: CheckContext) -> None:
    with running(database, "SELECT pg_sleep(60)"), running(database, "SELECT pg_sleep(60)"):
        observed = await until_found(pg_long_queries, ctx, slow_after="100ms", slow_count=2)
        assert kinds(observed) == ["SlowQueries"]


async def test_a_short_statement_in_an_old_transaction_is_long(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database) as old:
        old.execute("SELECT 1")
        age = "SELECT extract(epoch FROM clock_timestamp() - xact_start) > 0.5 FROM pg_stat_activity WHERE pid = %(pid)s"
        async with asyncio.timeout(10):
            while True:
                with psycopg.connect(database, autocommit=True) as other:
                    if other.execute(age, {"pid": old.info.backend_pid}).fetchone() == (True,):
                        break
                await asyncio.sleep(0.05)

        def sleep() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                old.execute("SELECT pg_sleep(60)")

        thread = threading.Thread(target=sleep)
        thread.start()
        try:
            observed = await until_found(pg_long_queries, ctx, long_after="500ms", slow_after="10ms", slow_count=50)
        finally:
            old.cancel()
            await asyncio.to_thread(lambda: thread.join(10))
        assert kinds(observed) == ["LongQuery"]


async def test_a_forgotten_transaction_is_found_and_worse_when_it_blocks(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE orders (id int)")
    with psycopg.connect(database, application_name="shop\n\x1b[31m<b>") as forgotten:
        forgotten.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        observed = await until_found(pg_idle_in_transaction, ctx, idle_after="100ms")
        assert kinds(observed) == ["IdleInTransaction"]
        assert "\n" not in str(observed.findings[0].facts)
        assert "1 write locks" in str(observed.findings[0].facts)
        with running(database, "SELECT * FROM orders"):
            observed = await until_found(pg_idle_in_transaction, ctx, blocks_after="100ms")
            assert kinds(observed) == ["IdleTransactionBlocks"]
            assert "1 session waits" in observed.findings[0].summary
        forgotten.rollback()
    assert (await look(pg_idle_in_transaction, ctx)).findings == ()


async def test_the_root_of_a_chain_is_named(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE orders (id int)")
    with psycopg.connect(database) as root:
        root.execute("SELECT * FROM orders")
        lock = "LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"
        with running(database, lock, application="migration"):
            await until_found(pg_blocking, ctx, wait_after="50ms")
            with running(database, "SELECT * FROM orders", application="shop"):

                async def both() -> bool:
                    observed = await look(pg_blocking, ctx, wait_after="50ms")
                    return value(observed, "monitor_pg_blocked_sessions") == 2

                async with asyncio.timeout(10):
                    while not await both():
                        await asyncio.sleep(0.05)
                (finding,) = (await look(pg_blocking, ctx, wait_after="50ms")).findings
                assert f"because of pid {root.info.backend_pid}" in finding.summary
                assert dict(finding.facts)["to end the first root"] == f"SELECT pg_terminate_backend({root.info.backend_pid});"
                assert "AccessExclusiveLock on orders" in str(finding.facts)
                assert (await look(pg_blocking, ctx)).findings == ()  # nobody has waited for 30 s yet


UPDATE = "UPDATE orders SET n = n + 1 WHERE id = 1"
UPDATE_2 = "UPDATE orders SET n = n + 1 WHERE id = 2"


@pytest.fixture
def orders(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE orders (id int PRIMARY KEY, n int)")
        admin.execute("INSERT INTO orders VALUES (1, 0), (2, 0)")


async def until_waiting(ctx: CheckContext, number: int) -> Observed:
    """Look until so many sessions wait; what is then found."""
    async with asyncio.timeout(20):
        while value(observed := await look(pg_blocking, ctx, wait_after="1ms"), "monitor_pg_blocked_sessions") != number:
            await asyncio.sleep(0.05)
        return observed


@pytest.mark.usefixtures("orders")
async def test_a_crowd_that_updates_one_row_waits_for_one_root(database: str, ctx: CheckContext) -> None:
    """Each waits for all that are ahead of it too: so many ways lead to the root that nobody can walk them all."""
    with psycopg.connect(database) as root, ExitStack() as crowd:
        root.execute(UPDATE.encode())
        for _ in range(32):
            crowd.enter_context(running(database, UPDATE))
        (finding,) = (await until_waiting(ctx, 32)).findings
        assert f"because of pid {root.info.backend_pid}" in finding.summary
        assert dict(finding.facts)[f"pid {root.info.backend_pid}"].startswith("32 waiting")
        assert [name for name, _ in finding.facts if name.startswith("pid")] == [f"pid {root.info.backend_pid}"]


@pytest.mark.usefixtures("orders")
async def test_a_root_is_named_even_where_activities_are_not_tracked(database: str, ctx: CheckContext) -> None:
    """Who waits for whom is in the locks, whatever the server keeps of its sessions."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {conninfo_to_dict(database)['dbname']} SET track_activities = off".encode())
    with psycopg.connect(database) as root:
        root.execute(UPDATE.encode())
        with running(database, UPDATE):
            (finding,) = (await until_waiting(ctx, 1)).findings
            assert f"because of pid {root.info.backend_pid}" in finding.summary


@pytest.mark.usefixtures("orders")
async def test_who_waits_for_two_is_one_that_waits(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as other:
        for reader in (one, other):
            reader.execute("SELECT * FROM orders WHERE id = 1 FOR SHARE")
        with running(database, "LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"):
            (finding,) = (await until_waiting(ctx, 1)).findings
            assert finding.summary.startswith("1 session waits")
            assert {name for name, _ in finding.facts if name.startswith("pid")} == {f"pid {s.info.backend_pid}" for s in (one, other)}


@pytest.mark.usefixtures("orders")
async def test_a_prepared_transaction_can_be_the_root(database: str, ctx: CheckContext) -> None:
    with psycopg.connect(database) as forgotten:
        forgotten.execute(UPDATE.encode())
        forgotten.execute("PREPARE TRANSACTION 'root'")
    try:
        with running(database, UPDATE), running(database, UPDATE):
            (finding,) = (await until_waiting(ctx, 2)).findings
            assert "2 sessions wait" in finding.summary
            assert "because of a prepared transaction" in finding.summary
            assert dict(finding.facts)["a prepared transaction"].startswith("2 waiting")
            assert "to end the first root" not in dict(finding.facts)
    finally:
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("ROLLBACK PREPARED 'root'")


@pytest.mark.usefixtures("orders")
async def test_who_waits_for_each_other_is_told_until_the_server_ends_it(database: str, ctx: CheckContext) -> None:
    """A circle has no root: it is no reason to see nothing, nor to look for ever."""
    with psycopg.connect(database) as one, psycopg.connect(database) as other:
        for session, update in ((one, UPDATE), (other, UPDATE_2)):
            session.execute("SET deadlock_timeout = '10min'")
            session.execute(update.encode())
        with busy(one, UPDATE_2), busy(other, UPDATE), running(database, "SET deadlock_timeout = '10min'", UPDATE_2):
            (finding,) = (await until_waiting(ctx, 3)).findings
            assert "3 sessions wait" in finding.summary
            assert "because of each other" in finding.summary
            assert "a deadlock" in dict(finding.facts)["each other"]
        for session in (one, other):
            session.rollback()


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
async def test_without_pg_monitor_they_are_blind_and_name_the_grant(check: AnyCheck, database: str) -> None:
    role = f"poor_{database.rpartition('t_')[2][:12]}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
        try:
            async with looking_at(Service("postgres", dsn=SecretStr(f"{database} user={role}"))) as poor:
                with pytest.raises(CannotLook, match=f"GRANT pg_monitor TO {role}"):
                    await look(check, poor)
        finally:
            admin.execute(f'DROP ROLE "{role}"'.encode())
