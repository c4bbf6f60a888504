"""The sentinel and the canary on real servers: 15 and 18, healthy, frozen, gone, full, and with too few rights."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import LiteralString

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from pydantic import SecretStr

from monitor.clock import SystemClock
from monitor.errors import CannotLook
from monitor.probes.postgres import PgSentinel
from monitor.probes_contract import LoginState
from services.cluster import Cluster, free_port
from tests.support.postgres import PASSWORD, leaked, small_cluster


@asynccontextmanager
async def watching(dsn: str | SecretStr, canary: SecretStr | None = None, *, timeout_s: float = 3.0) -> AsyncIterator[PgSentinel]:
    secret = dsn if isinstance(dsn, SecretStr) else SecretStr(dsn)
    sentinel = PgSentinel(secret, canary, SystemClock(), timeout_s=timeout_s)
    try:
        yield sentinel
    finally:
        await sentinel.close()


async def backend_pid(sentinel: PgSentinel) -> int:
    return int((await sentinel.fetch("SELECT pg_backend_pid() AS pid"))[0]["pid"])


@pytest.fixture
def own_cluster(pg_cluster: Cluster) -> Iterator[Cluster]:
    with small_cluster(pg_cluster) as cluster:
        yield cluster


async def test_statements_return_rows_by_name(database: str) -> None:
    async with watching(database) as sentinel:
        assert await sentinel.fetch("SELECT 1 AS one, NULL AS nothing") == [{"one": 1, "nothing": None}]
        assert await sentinel.fetch("SELECT %(a)s::int + 1 AS b", {"a": 1}) == [{"b": 2}]
        assert await sentinel.fetch("SELECT 'x' LIKE '%' AS found", {}) == [{"found": True}]
        table = SQL("SELECT count(*) AS n FROM {}").format(Identifier("pg_catalog", "pg_class"))
        assert (await sentinel.fetch(table))[0]["n"] > 100


async def test_several_statements_go_in_one_round_trip(database: str) -> None:
    async with watching(database) as sentinel:
        pairs = [("SELECT %(n)s::int AS n", {"n": number}) for number in range(5)]
        assert await sentinel.fetch_many(pairs) == [[{"n": number}] for number in range(5)]
        with pytest.raises(CannotLook, match="division by zero"):
            await sentinel.fetch_many([("SELECT 1 AS a", {}), ("SELECT 1/0 AS b", {}), ("SELECT 2 AS c", {})])
        assert await sentinel.fetch("SELECT 3 AS d") == [{"d": 3}]


async def test_what_fails_in_a_shared_round_trip_spoils_nothing_else(database: str) -> None:
    async with watching(database) as sentinel:
        answers = await asyncio.gather(
            sentinel.fetch_many([("SELECT 1 AS a", {}), ("SELECT 2 AS b", {})]),
            sentinel.fetch("SELECT 1/0 AS a"),
            sentinel.fetch_many([("SELECT 1 AS a", {}), ("SELECT a FROM public.nowhere", {}), ("SELECT 3 AS c", {})]),
            sentinel.fetch("SELECT %(n)s::int AS n", {"n": object()}),
            sentinel.fetch_many([("SELECT 1 AS a", {}), ("SELECT 3 AS c", {})]),
            sentinel.fetch_many([("SELECT 1/0 AS a", {}), ("SELECT 4 AS d", {})]),
            return_exceptions=True,
        )
        assert [answer for answer in answers if not isinstance(answer, BaseException)] == [
            [[{"a": 1}], [{"b": 2}]],
            [[{"a": 1}], [{"c": 3}]],
        ]
        told = [str(answer) for answer in answers if isinstance(answer, CannotLook)]
        assert ["division by zero" in words for words in told] == [True, False, False, True]
        assert "nowhere" in told[1]
        assert sentinel.cost.connects == 1


async def test_what_several_begin_with_is_asked_once_and_given_to_each_by_itself(database: str) -> None:
    first: tuple[LiteralString, dict[str, object]] = ("SELECT clock_timestamp() AS at, txid_current_if_assigned() AS id", {})
    async with watching(database) as sentinel:
        one, other = await asyncio.gather(*(sentinel.fetch_many([first, ("SELECT 1 AS a", {})]) for _ in range(2)))
        assert one == other
        one[0][0].clear()
        assert other[0][0]


async def test_a_statement_that_waits_for_a_lock_or_too_long_delays_the_others_and_fails_alone(database: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute("CREATE TABLE public.held (a int)")
        owner.commit()
        owner.execute("LOCK TABLE public.held IN ACCESS EXCLUSIVE MODE")
        async with watching(database, timeout_s=1) as sentinel:
            slow, locked, good = await asyncio.gather(
                sentinel.fetch("SELECT pg_sleep(0.6)"), sentinel.fetch("SELECT a FROM public.held"), sentinel.fetch("SELECT 1 AS a"),
                return_exceptions=True,
            )  # fmt: skip
    assert isinstance(slow, list)
    assert "locked by another session" in str(locked)
    assert good == [{"a": 1}]


async def test_a_connection_lost_under_shared_work_costs_nobody_the_answer(database: str) -> None:
    async with watching(database) as sentinel:
        pid = await backend_pid(sentinel)
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        answers = await asyncio.gather(*(sentinel.fetch("SELECT %(n)s::int AS n", {"n": n}) for n in range(5)))
        assert answers == [[{"n": n}] for n in range(5)]
        assert sentinel.cost.connects == 2


async def test_a_plan_that_an_error_left_out_is_made_when_it_is_needed(database: str) -> None:
    async with watching(database) as sentinel:
        for _ in range(2):
            spoilt, good = await asyncio.gather(
                sentinel.fetch_many([("SELECT 1/0 AS a", {}), ("SELECT 'late' AS b", {})]), sentinel.fetch("SELECT 'late' AS b"),
                return_exceptions=True,
            )  # fmt: skip
            assert "division by zero" in str(spoilt)
            assert good == [{"b": "late"}]


async def test_the_version_is_known_without_asking(database: str) -> None:
    async with watching(database) as sentinel:
        (row,) = await sentinel.fetch("SELECT current_setting('server_version_num')::int AS number")
        assert await sentinel.version() == row["number"]
        assert sentinel.cost.statements == 1
    async with watching(database) as fresh:
        assert await fresh.version() == row["number"]
        assert (fresh.cost.statements, fresh.cost.connects) == (0, 1)


async def test_one_connection_is_held_under_our_name_with_safe_settings(database: str) -> None:
    settings = ("statement_timeout", "lock_timeout", "default_transaction_read_only", "search_path", "application_name", "TimeZone")
    async with watching(database) as sentinel:
        pid = await backend_pid(sentinel)
        rows = await sentinel.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY(%(names)s)", {"names": list(settings)})
        assert {row["name"]: row["setting"] for row in rows} == {
            "statement_timeout": "3000",
            "lock_timeout": "250",
            "default_transaction_read_only": "on",
            "search_path": "pg_catalog",
            "application_name": "monitor",
            "TimeZone": "UTC",
        }
        assert await backend_pid(sentinel) == pid
        with pytest.raises(CannotLook, match="read-only"):
            await sentinel.fetch("CREATE TABLE public.x (a int)")


async def test_a_lost_connection_is_opened_again_without_a_blind_run(database: str) -> None:
    async with watching(database) as sentinel:
        pid = await backend_pid(sentinel)
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert await backend_pid(sentinel) != pid


async def test_a_connection_that_is_not_to_be_kept_is_given_back_and_opened_again(database: str) -> None:
    sentinel = PgSentinel(SecretStr(database), None, SystemClock(), held_s=0.2)
    with psycopg.connect(database, autocommit=True) as admin:
        try:
            for number in (1, 2):
                pid = await backend_pid(sentinel)
                assert await backend_pid(sentinel) == pid
                async with asyncio.timeout(10):
                    while admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is not None:
                        await asyncio.sleep(0.05)
                assert sentinel.cost.connects == number
        finally:
            await sentinel.close()


async def test_what_is_asked_often_is_planned_once_and_anew_when_the_table_changes(database: str) -> None:
    async with watching(database) as sentinel:
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("CREATE TABLE changing (a int)")
            for _ in range(4):
                assert await sentinel.fetch("SELECT * FROM public.changing") == []
                assert await sentinel.fetch_many([("SELECT * FROM public.changing WHERE a > %(a)s", {"a": 1})]) == [[]]
            planned = "SELECT count(*) AS n FROM pg_prepared_statements WHERE statement LIKE 'SELECT * FROM public.changing%'"
            (row,) = await sentinel.fetch(planned)
            assert row["n"] == 2
            other.execute("ALTER TABLE changing ADD COLUMN b text")
            other.execute("INSERT INTO changing VALUES (5, 'x')")
        assert await sentinel.fetch("SELECT * FROM public.changing") == [{"a": 5, "b": "x"}]
        assert await sentinel.fetch_many([("SELECT * FROM public.changing WHERE a > %(a)s", {"a": 1})]) == [[{"a": 5, "b": "x"}]]


async def test_a_statement_that_fails_whenever_it_runs_is_planned_once(database: str) -> None:
    async with watching(database) as sentinel:
        for _ in range(3):
            with pytest.raises(CannotLook, match="division by zero"):
                await sentinel.fetch("SELECT 1 / %(zero)s AS never", {"zero": 0})
        planned = await sentinel.fetch("SELECT count(*) AS plans FROM pg_prepared_statements WHERE statement LIKE '% AS never'")
        assert planned == [{"plans": 1}]


async def test_what_watching_costs_is_counted(database: str) -> None:
    async with watching(database) as sentinel:
        pid = await backend_pid(sentinel)
        await sentinel.fetch_many([("SELECT pg_sleep(0.2)", {}), ("SELECT 2", {})])
        assert (await sentinel.login()).state is LoginState.OK
        cost = sentinel.cost
        assert (cost.statements, cost.connects, cost.logins) == (3, 1, 1)
        assert 0.2 <= cost.busy_s < 5
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        await backend_pid(sentinel)
        assert (cost.statements, cost.connects) == (4, 2)


async def test_a_slow_statement_is_stopped_by_the_server_and_the_connection_stays(database: str) -> None:
    async with watching(database, timeout_s=0.5) as sentinel:
        pid = await backend_pid(sentinel)
        started = time.monotonic()
        with pytest.raises(CannotLook, match=r"stopped after 0\.5 s"):
            await sentinel.fetch("SELECT pg_sleep(60)")
        assert time.monotonic() - started < 0.7
        assert await backend_pid(sentinel) == pid


async def test_a_locked_table_is_told_quickly(database: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute("CREATE TABLE public.t (a int)")
        owner.commit()
        owner.execute("LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE")
        async with watching(database) as sentinel:
            started = time.monotonic()
            with pytest.raises(CannotLook, match="locked by another session"):
                await sentinel.fetch("SELECT a FROM public.t")
            assert time.monotonic() - started < 1


async def test_a_frozen_backend_cannot_hold_its_caller_beyond_the_deadline(database: str) -> None:
    async with watching(database, timeout_s=0.6) as sentinel:
        pid = await backend_pid(sentinel)
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(CannotLook, match="no answer from the server"):
                await sentinel.fetch("SELECT 1 AS a")
            assert time.monotonic() - started < 0.8
            async with asyncio.timeout(5):
                while True:  # once its socket is cut, a new connection is opened
                    try:
                        assert await backend_pid(sentinel) != pid
                        break
                    except CannotLook:
                        continue
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_who_asks_later_is_told_later(database: str) -> None:
    async with watching(database, timeout_s=0.6) as sentinel:
        pid = await backend_pid(sentinel)
        os.kill(pid, signal.SIGSTOP)

        async def told_after_s() -> float:
            started = time.monotonic()
            with pytest.raises(CannotLook, match=r"no answer from the server|still has no answer"):
                await sentinel.fetch("SELECT 1 AS a")
            return time.monotonic() - started

        try:
            first = asyncio.create_task(told_after_s())
            await asyncio.wait({first}, timeout=0.3)
            later = await told_after_s()
            assert 0.7 < await first < 0.95
            assert 0.7 < later < 0.95
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_close_does_not_wait_for_a_frozen_backend(database: str) -> None:
    sentinel = PgSentinel(SecretStr(database), None, SystemClock(), timeout_s=0.5)
    pid = await backend_pid(sentinel)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(CannotLook):
            await sentinel.fetch("SELECT 1 AS a")
        started = time.monotonic()
        await sentinel.close()
        assert time.monotonic() - started < 0.3
        with pytest.raises(CannotLook, match="was closed"):
            await sentinel.fetch("SELECT 1 AS a")
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_cancelled_caller_leaves_the_connection_usable(database: str) -> None:
    async with watching(database, timeout_s=2) as sentinel:
        pid = await backend_pid(sentinel)
        slow = asyncio.create_task(sentinel.fetch("SELECT pg_sleep(0.5)"))
        await asyncio.sleep(0)
        started = time.monotonic()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert time.monotonic() - started < 0.2
        assert await backend_pid(sentinel) == pid


async def test_calls_take_turns(database: str) -> None:
    async with watching(database) as sentinel:
        answers = await asyncio.gather(*(sentinel.fetch("SELECT %(n)s::int AS n, pg_backend_pid() AS pid", {"n": n}) for n in range(20)))
    assert [answer[0]["n"] for answer in answers] == list(range(20))
    assert len({answer[0]["pid"] for answer in answers}) == 1


async def test_a_stopped_server_is_told_by_both_and_found_again(own_cluster: Cluster) -> None:
    async with watching(own_cluster.dsn(), timeout_s=1) as sentinel:
        await sentinel.fetch("SELECT 1 AS a")
        assert (await sentinel.login()).state is LoginState.OK
        own_cluster.stop()
        with pytest.raises(CannotLook, match="down, starting or stopping"):
            await sentinel.fetch("SELECT 1 AS a")
        assert (await sentinel.login()).state is LoginState.DOWN
        own_cluster.start()
        assert await sentinel.fetch("SELECT 1 AS a") == [{"a": 1}]
        assert (await sentinel.login()).state is LoginState.OK


async def test_a_frozen_server_gets_a_stuck_handshake_within_the_deadline(own_cluster: Cluster) -> None:
    assert own_cluster.pid
    os.kill(own_cluster.pid, signal.SIGSTOP)  # the kernel still accepts for it
    try:
        files = len(os.listdir("/proc/self/fd"))
        async with watching(own_cluster.dsn(), timeout_s=0.6) as sentinel:
            started = time.monotonic()
            login = await sentinel.login()
            assert login.state is LoginState.HANDSHAKE_STUCK
            assert "TCP connects" in login.detail
            with pytest.raises(CannotLook, match="does not answer"):
                await sentinel.fetch("SELECT 1 AS a")
            assert time.monotonic() - started < 1.5
        assert len(os.listdir("/proc/self/fd")) <= files
    finally:
        os.kill(own_cluster.pid, signal.SIGCONT)


async def test_an_address_where_nothing_listens_is_down() -> None:
    async with watching(f"host=127.0.0.1 port={free_port()} dbname=x user=x", timeout_s=1) as sentinel:
        login = await sentinel.login()
        assert login.state is LoginState.DOWN
        with pytest.raises(CannotLook, match="down, starting or stopping"):
            await sentinel.fetch("SELECT 1 AS a")


async def test_an_unknown_host_name_is_not_called_down() -> None:
    async with watching("host=no-such-host.invalid dbname=x user=x", timeout_s=2) as sentinel:
        assert (await sentinel.login()).state is LoginState.UNCLASSIFIED


async def test_refused_logins_are_our_own_configuration_and_never_show_the_password(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    wrong = f"wrong-{PASSWORD}"
    for dsn in (
        own_cluster.dsn(user="app", password=wrong),
        own_cluster.dsn(user="nobody", password=wrong),
        own_cluster.dsn(database="no_such_db", user="app", password=PASSWORD),
        own_cluster.dsn(user="app"),
    ):
        async with watching(dsn) as sentinel:
            login = await sentinel.login()
            assert login.state is LoginState.REJECTED, login
            with pytest.raises(CannotLook, match="refused the login: look at user, password") as caught:
                await sentinel.fetch("SELECT 1 AS a")
            assert PASSWORD not in login.detail + str(caught.value) + repr(sentinel.__dict__)


def test_a_dsn_that_cannot_be_parsed_is_not_shown() -> None:
    with pytest.raises(CannotLook, match="not a PostgreSQL connection string") as caught:
        PgSentinel(SecretStr(f"host=127.0.0.1 password {PASSWORD}"), None, SystemClock())
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_missing_privilege_names_role_and_grant(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE watcher LOGIN PASSWORD '{PASSWORD}'")
        admin.execute("CREATE TABLE public.secrets (a int)")
    async with watching(own_cluster.dsn(user="watcher", password=PASSWORD)) as sentinel:
        with pytest.raises(CannotLook, match=r"watcher lacks a privilege: GRANT .*secrets"):
            await sentinel.fetch("SELECT a FROM public.secrets")
        with pytest.raises(CannotLook, match="does not have what is asked for"):
            await sentinel.fetch("SELECT a FROM public.nothing")


async def test_when_all_slots_are_gone_the_held_connection_still_works_and_the_canary_tells(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    app = own_cluster.dsn(user="app", password=PASSWORD)
    async with watching(app) as held, watching(app) as late:
        await held.fetch("SELECT 1 AS a")
        with leaked(app):
            assert (await held.fetch("SELECT count(*) AS n FROM pg_stat_activity"))[0]["n"] > 10
            login = await held.login()
            assert login.state is LoginState.EXHAUSTED, login
            with pytest.raises(CannotLook, match="no connection slot is left"):
                await late.fetch("SELECT 1 AS a")
            assert (await late.login()).state is LoginState.EXHAUSTED
            with leaked(own_cluster.dsn()):  # the superuser's reserve too: other words of the server
                assert (await late.login()).state is LoginState.EXHAUSTED
        await _until_login(late, LoginState.OK)


async def test_limits_of_role_and_database_are_told_apart(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE limited LOGIN CONNECTION LIMIT 1 PASSWORD '{PASSWORD}'")
        admin.execute(f"CREATE ROLE free LOGIN PASSWORD '{PASSWORD}'")
        admin.execute("CREATE DATABASE small CONNECTION LIMIT 1")
    limited = own_cluster.dsn(user="limited", password=PASSWORD)
    small = own_cluster.dsn(database="small", user="free", password=PASSWORD)
    for dsn, state in ((limited, LoginState.ROLE_LIMIT), (small, LoginState.DATABASE_LIMIT)):
        with psycopg.connect(dsn):
            async with watching(own_cluster.dsn(), SecretStr(dsn)) as sentinel:
                login = await sentinel.login()
                assert login.state is state, login


async def test_the_canary_goes_in_by_its_own_dsn(own_cluster: Cluster) -> None:
    wrong = SecretStr(own_cluster.dsn(user="nobody", password=PASSWORD))
    async with watching(own_cluster.dsn(), wrong) as sentinel:
        assert await sentinel.fetch("SELECT 1 AS a") == [{"a": 1}]
        assert (await sentinel.login()).state is LoginState.REJECTED


async def _until_login(sentinel: PgSentinel, state: LoginState) -> None:
    async with asyncio.timeout(10):
        while (await sentinel.login()).state is not state:
            continue
