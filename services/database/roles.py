"""The roles of the platform and of its monitor, each with no more than it needs.

Tables may be made before or after the roles: both ``migrate`` and ``create_roles`` end by granting what is there.
"""

from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

SERVICES = "analytics_user"
READER = "monitor_ro"
CANARY = "monitor_canary"
FIXER = "monitor_fix"
ROLES: dict[str, tuple[str, ...]] = {SERVICES: (), READER: ("pg_monitor",), CANARY: (), FIXER: ("pg_signal_backend",)}
"""Each role with the predefined roles it is a member of. The canary may log in, and nothing else."""

NEWEST = "SELECT (tenant_id, event_date, event_timestamp)"
MAIL_JOBS = (
    "SELECT (job_id, tenant_id, status, total_emails, emails_sent, emails_failed, created_at, started_at, completed_at, error_message,"
    " heartbeat_at, lease_until, worker)"
)

GRANTS: tuple[tuple[str, str, str], ...] = (
    (READER, "SELECT", "processing_jobs"),
    (FIXER, "SELECT, UPDATE", "processing_jobs"),
    (READER, MAIL_JOBS, "email_sending_jobs"),
    (READER, "SELECT (tenant_id, status, sent_at)", "email_send_history"),
    (READER, "SELECT (id, is_active)", "tenant_config"),
    (READER, "SELECT", "mail_servers"),
    (READER, NEWEST, "purchase"),
    (READER, NEWEST, "add_to_cart"),
    (READER, NEWEST, "page_view"),
)
"""What the monitor may do: look after jobs, see which tenants there are, where their mail goes, how much of it arrived and when their
newest rows came; but not what is in the rows and mails, and no password. To let it prove the tenants' mail logins as well, which takes
their passwords: ``GRANT SELECT ON mail_logins TO monitor_ro``."""

FUNCTIONS = Path(__file__).with_name("platmon.sql")
"""What the monitor documents for databases that it watches; a superuser's task."""

# What the connecting role made itself and may hand over.
OWN_TABLES = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'v') AND pg_get_userbyid(c.relowner) = current_user
  AND current_user <> %(owner)s AND pg_has_role(current_user, %(owner)s, 'MEMBER')
"""


def create_roles(admin_dsn: str, passwords: Mapping[str, str]) -> list[str]:
    """Create the roles that ``passwords`` names, or give them these passwords anew; returns the names that were created.

    ``admin_dsn`` is a superuser's, of the platform's own database. Raises ``ValueError`` for a name that is not in ``ROLES``.
    """
    unknown = sorted(set(passwords) - set(ROLES))
    if unknown:
        raise ValueError(f"no such role of the platform: {', '.join(unknown)}; expected some of {', '.join(ROLES)}")
    with psycopg.connect(make_conninfo(admin_dsn, connect_timeout=5)) as connection:
        present = _present(connection)
        for role, password in passwords.items():
            verb = "ALTER" if role in present else "CREATE"
            # Hashed on this side, so that the password appears in no log of the server.
            hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
            connection.execute(sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), hashed))
            for parent in ROLES[role]:
                connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(parent), sql.Identifier(role)))
        if SERVICES in passwords:
            connection.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(sql.Identifier(SERVICES)))
        if READER in passwords:
            connection.execute(FUNCTIONS.read_bytes())
        grant_tables(connection)
        return [role for role in passwords if role not in present]


def grant_tables(connection: psycopg.Connection) -> None:
    """Give the platform's tables to the services' role, and the monitor its share; for the roles and tables that exist."""
    present = _present(connection)
    if SERVICES in present:
        for (table,) in connection.execute(OWN_TABLES, {"owner": SERVICES}).fetchall():
            connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier("public", table), sql.Identifier(SERVICES)))
    tables = {name for (name,) in connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()}
    for role, rights, table in GRANTS:
        if role in present and table in tables:
            connection.execute(sql.SQL("GRANT " + rights + " ON {} TO {}").format(sql.Identifier("public", table), sql.Identifier(role)))


def _present(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%(roles)s)", {"roles": list(ROLES)}).fetchall()
    return {role for (role,) in rows}
