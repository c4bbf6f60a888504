"""The platform's own tables with its roles, for checks that look as the monitor's role does."""

from collections.abc import Mapping

import psycopg
from psycopg.conninfo import make_conninfo

from services.database import ROLES, create_roles, migrate

PASSWORD = "x"


def platform_database(dsn: str) -> str:
    """Make the platform's tables and roles in the database; returns the DSN of the monitor's role, as in production."""
    migrate(dsn)
    create_roles(dsn, dict.fromkeys(ROLES, PASSWORD))
    return make_conninfo(dsn, user="monitor_ro", password=PASSWORD)


def run_sql(dsn: str, *statements: str, **values: object) -> None:
    """Run statements as who the DSN names, each by itself. With values, they are parameters."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode(), values or None)


def add_tenants(dsn: str, *tenants: str, is_active: bool = True) -> None:
    run_sql(
        dsn,
        "INSERT INTO tenant_config (id, name, is_active) SELECT t, t, %(active)s FROM unnest(%(tenants)s::text[]) t",
        tenants=list(tenants),
        active=is_active,
    )


def add_job(dsn: str, job: str, tenant: str, **columns: object) -> None:
    """One row of ``processing_jobs``; ``*_ago`` are intervals before now."""
    _add(dsn, "processing_jobs", {"job_id": job, "tenant_id": tenant, "data_types": ["events"]}, columns)


def add_mail_job(dsn: str, job: str, tenant: str, **columns: object) -> None:
    """One row of ``email_sending_jobs``; ``*_ago`` are intervals before now."""
    base = {"job_id": job, "tenant_id": tenant, "recipients": ["a@shop.example"], "subject": "s", "report": "revenue", "total_emails": 1}
    _add(dsn, "email_sending_jobs", base, columns)


def _add(dsn: str, table: str, base: Mapping[str, object], columns: Mapping[str, object]) -> None:
    values = {**base, "start_date": "2026-01-01", "end_date": "2026-01-01", **columns}
    names = [name.replace("_ago", "_at") for name in values]
    given = [f"now() - %({name})s::interval" if name.endswith("_ago") else f"%({name})s" for name in values]
    run_sql(dsn, f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(given)})", **values)
