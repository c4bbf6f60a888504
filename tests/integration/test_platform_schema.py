"""The schema: migrations once and in order, the runbook's own statements, the roles, and the scripts around them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from services.cluster import Cluster, free_port
from services.database import ROLES, DatabaseError, create_database, create_roles, migrate, seed
from tests.platform_parts import environ_of, run_script

ALL = ["001_platform.sql", "002_for_the_monitor.sql"]

RUNBOOK = """
SELECT job_id, status, created_at, started_at, error_message FROM processing_jobs WHERE status = 'processing' AND started_at < now() - interval '30 minutes'
UPDATE processing_jobs SET status = 'failed', error_message = 'Manually cancelled - stuck', completed_at = now() WHERE job_id = 'job_id_here'
SELECT job_id, status, total_emails, emails_sent, emails_failed, error_message FROM email_sending_jobs ORDER BY created_at DESC LIMIT 5
SELECT status, count(*) FROM email_send_history WHERE sent_at > now() - interval '1 day' GROUP BY status
SELECT id, name, email_config->>'server' as smtp_server FROM tenant_config WHERE id = 'tenant_id_here'
UPDATE email_sending_jobs SET status = 'queued', error_message = NULL WHERE job_id = 'job_id_here'
SELECT id, name, is_active FROM tenant_config WHERE id = 'tenant_id_here'
UPDATE tenant_config SET is_active = true WHERE id = 'tenant_id_here'
DELETE FROM processing_jobs WHERE created_at < now() - interval '90 days'
DELETE FROM email_send_history WHERE sent_at < now() - interval '1 year'
VACUUM ANALYZE purchase
VACUUM ANALYZE add_to_cart
VACUUM ANALYZE page_view
VACUUM ANALYZE processing_jobs
VACUUM ANALYZE email_send_history
SELECT job_id, tenant_id, status, data_types, start_date, end_date, created_at, started_at FROM processing_jobs WHERE status IN ('queued', 'processing') ORDER BY created_at DESC
SELECT job_id, tenant_id, status, total_emails, emails_sent, created_at FROM email_sending_jobs WHERE status IN ('queued', 'processing') ORDER BY created_at DESC
""".strip().splitlines()  # noqa: E501 - the runbook's own lines


def as_user(dsn: str, user: str) -> psycopg.Connection:
    return psycopg.connect(make_conninfo(dsn, user=user, password="x"), autocommit=True)


def test_migrations_are_applied_once(database: str) -> None:
    assert migrate(database) == ALL
    assert migrate(database) == []


def test_migrating_at_the_same_time_applies_once(database18: str) -> None:
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda _: migrate(database18), range(5)))
    assert sorted(results) == [[], [], [], [], ALL]


def test_migrations_run_in_order_and_a_failing_one_leaves_nothing(database18: str, tmp_path: Path) -> None:
    (tmp_path / "002_second.sql").write_text("ALTER TABLE a ADD COLUMN y int; SELECT 1;")
    (tmp_path / "001_first.sql").write_text("CREATE TABLE a (x int);")
    broken = tmp_path / "003_broken.sql"
    broken.write_text("CREATE TABLE b (x int); SELECT nonsense;")
    with pytest.raises(DatabaseError, match=r"003_broken\.sql: column \"nonsense\" does not exist"):
        migrate(database18, folder=tmp_path)
    with psycopg.connect(database18) as connection:
        assert connection.execute("SELECT to_regclass('a') IS NOT NULL, to_regclass('b') IS NULL").fetchone() == (True, True)
    broken.write_text("CREATE TABLE b (x int);")
    assert migrate(database18, folder=tmp_path) == ["003_broken.sql"]
    (tmp_path / "001_first.sql").write_text("CREATE TABLE a (z int);")
    with pytest.raises(DatabaseError, match=r"001_first\.sql: changed after it was applied"):
        migrate(database18, folder=tmp_path)


@pytest.mark.parametrize("roles_first", [True, False])
def test_every_statement_of_the_runbook_runs_as_the_services_role(database18: str, roles_first: bool) -> None:
    steps = [lambda: create_roles(database18, {"analytics_user": "x"}), lambda: migrate(database18)]
    for step in steps if roles_first else reversed(steps):
        step()
    seed(database18)
    with as_user(database18, "analytics_user") as connection:
        notices: list[str] = []
        connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        for statement in RUNBOOK:
            connection.execute(statement.encode())
    assert notices == []  # VACUUM only warns where it may not


def test_the_services_role_can_migrate_by_itself(database18: str) -> None:
    create_roles(database18, {"analytics_user": "x"})
    dsn = make_conninfo(database18, user="analytics_user", password="x")
    assert migrate(dsn) == ALL
    assert migrate(database18) == []


def test_each_role_may_do_its_part_and_no_more(database: str) -> None:
    migrate(database)
    create_roles(database, dict.fromkeys(ROLES, "x"))
    assert create_roles(database, dict.fromkeys(ROLES, "y")) == []
    look, fix, other = "SELECT * FROM processing_jobs", "UPDATE processing_jobs SET status = status", "SELECT * FROM tenant_config"
    monitoring = "SELECT 1 WHERE pg_has_role(current_user, 'pg_monitor', 'USAGE')"
    may = {"monitor_ro": (True, False, False), "monitor_canary": (False, False, False), "monitor_fix": (True, True, False)}
    for role, rights in may.items():
        with as_user(database, role) as connection:
            assert tuple(_allowed(connection, statement) for statement in (look, fix, other)) == rights, role
            assert bool(connection.execute(monitoring).fetchone()) is (role == "monitor_ro")
    with psycopg.connect(database) as connection:
        stored = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = ANY(%s)", (list(ROLES),)).fetchall()
    assert all(password.startswith("SCRAM-SHA-256$") for (password,) in stored)
    with pytest.raises(ValueError, match="no such role of the platform: monitor_rw"):
        create_roles(database, {"monitor_rw": "x"})


def _allowed(connection: psycopg.Connection, statement: str) -> bool:
    try:
        connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def test_seeding_twice_adds_nothing(database18: str) -> None:
    migrate(database18)
    assert seed(database18) == 7 * 24 * 6
    assert seed(database18, email_config={"server": "mail", "port": 25, "from": "a@b"}) == 0
    with psycopg.connect(database18) as connection:
        counts = "SELECT (SELECT count(*) FROM page_view), (SELECT count(*) FROM add_to_cart), (SELECT count(*) FROM purchase)"
        assert connection.execute(counts).fetchone() == (1008, 336, 168)
        assert connection.execute("SELECT email_config->>'server' FROM tenant_config WHERE id = 'demo'").fetchone() == ("mail",)


def test_init_db_makes_everything_from_nothing_and_says_so(pg18: Cluster) -> None:
    name = f"shop_{free_port()}"
    environ = {**environ_of(pg18.dsn(name)), "MONITOR_RO_PASSWORD": "ro-secret"}
    try:
        first = run_script("init_db.py", "--admin-dsn", pg18.dsn(), "--seed", environ=environ)
        assert first.returncode == 0, first.stderr
        for said in (f"database {name} created", "role analytics_user", "applied 001_platform.sql", "1008 page views added"):
            assert said in first.stdout
        again = run_script("init_db.py", "--seed", environ=environ)
        assert again.stdout == "the schema is up to date: nothing to apply\ntenant demo is there; 0 page views added\n"
        assert "secret" not in first.stdout + first.stderr
        assert create_database(pg18.dsn(), name) is False
    finally:
        with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.mark.parametrize("script", ["init_db.py", "cancel_running_jobs.py"])
def test_scripts_say_one_thing_when_the_database_is_away(database18: str, script: str) -> None:
    create_roles(database18, {"analytics_user": "x"})  # else the missing role is what the server complains of
    environ = environ_of(database18)
    away = run_script(script, environ={**environ, "POSTGRES_PORT": str(free_port())})
    assert away.returncode == 1
    assert "cannot use the database" in away.stderr
    assert "Check POSTGRES_HOST" in away.stderr
    wrong = run_script(script, environ={**environ, "POSTGRES_PORT": "five"})
    assert wrong.returncode == 1
    assert wrong.stderr.strip().endswith("POSTGRES_PORT: expected a number, found 'five'")
    missing = run_script(script, environ={**environ, "POSTGRES_DB": "nowhere"})
    assert 'database "nowhere" does not exist' in missing.stderr
    assert "Traceback" not in away.stderr + wrong.stderr + missing.stderr


def test_cancelling_without_the_table_says_what_to_do(database18: str) -> None:
    create_roles(database18, {"analytics_user": "x"})
    done = run_script("cancel_running_jobs.py", environ=environ_of(database18))
    assert done.returncode == 1
    assert "run scripts/init_db.py" in done.stderr
