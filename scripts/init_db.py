"""Bring the platform's database up to date: migrations, each once and in order. Repeat it as often as you like.

    python scripts/init_db.py [--seed] [--admin-dsn DSN]

Connects as the services do (POSTGRES_* in the environment or in .env). With --admin-dsn, a superuser's, it first makes the
database and the roles: analytics_user with POSTGRES_PASSWORD, and monitor_ro, monitor_canary and monitor_fix with the passwords
in MONITOR_RO_PASSWORD, MONITOR_CANARY_PASSWORD and MONITOR_FIX_PASSWORD, where they are set.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python scripts/init_db.py` works from a bare checkout

from services.database import ROLES, DatabaseError, create_database, create_roles, migrate, seed
from services.settings import SettingsError, environment, load_settings


def passwords_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The roles that have a password in the environment."""
    found = {role: environ.get("POSTGRES_PASSWORD" if role == "analytics_user" else f"{role.upper()}_PASSWORD", "") for role in ROLES}
    return {role: password for role, password in found.items() if password}


def email_config_of(environ: Mapping[str, str]) -> dict[str, object]:
    """The demo tenant's mail server: SMTP_HOST and SMTP_PORT, else localhost:1025."""
    port = environ.get("SMTP_PORT") or "1025"
    if not port.isdigit():
        raise SettingsError(f"SMTP_PORT: expected a number, found {port!r}")
    return {"server": environ.get("SMTP_HOST") or "localhost", "port": int(port), "from": "reports@shop.example"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Bring the platform's database up to date.")
    parser.add_argument("--seed", action="store_true", help="also make the tenant 'demo' with a week of events")
    parser.add_argument("--admin-dsn", metavar="DSN", help="a superuser's connection string: makes the database and the roles first")
    options = parser.parse_args()
    try:
        environ = environment()
        settings = load_settings(environ)
        if options.admin_dsn:
            _prepare(options.admin_dsn, settings.postgres_db, passwords_of(environ))
        dsn = settings.dsn("init-db")
        applied = migrate(dsn)
        print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date: nothing to apply")
        if options.seed:
            print(f"tenant demo is there; {seed(dsn, email_config=email_config_of(environ))} page views added")
    except (SettingsError, DatabaseError) as exc:
        sys.exit(f"init_db: {exc}")
    except psycopg.OperationalError as exc:
        sys.exit(
            f"init_db: cannot use the database: {str(exc).strip()}\nCheck POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD."
        )
    except psycopg.Error as exc:
        sys.exit(f"init_db: {str(exc).strip()}")


def _prepare(admin_dsn: str, database: str, passwords: Mapping[str, str]) -> None:
    try:
        print(f"database {database} {'created' if create_database(admin_dsn, database) else 'is there'}")
        created = create_roles(make_conninfo(admin_dsn, dbname=database), passwords)
    except psycopg.Error as exc:
        sys.exit(f"init_db: --admin-dsn: {str(exc).strip()}")
    for role in passwords:
        print(f"role {role} {'created' if role in created else 'is there; its password was set'}")


if __name__ == "__main__":
    main()
