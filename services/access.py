"""The secrets of one start of the platform, random each time, and the variables that hand them to the services and to a monitor."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from services.database import ROLES
from services.ports import HOST, Ports

DATABASE = "google_analytics_db"
PROJECT = "analytics-project"
USERNAME = "ops@shop.example"
SFTP_USER = "platform"
FORGOTTEN_S = 6 * 3600
"""As when the runbook was written: nobody thought of a deadline for BigQuery, so a job can hang for hours."""


def _password() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may enter what. ``pagerduty_keys`` are routing keys by role."""

    roles: dict[str, str] = field(default_factory=lambda: {role: _password() for role in ROLES}, repr=False)
    """Passwords of PostgreSQL's roles."""
    user_password: str = field(default_factory=_password, repr=False)
    sftp_password: str = field(default_factory=_password, repr=False)
    slack_token: str = field(default_factory=lambda: f"xoxb-{_password()}", repr=False)
    pagerduty_keys: dict[str, str] = field(
        default_factory=lambda: {role: _password() for role in ("ONCALL", "TEAM_LEAD", "MANAGER")}, repr=False
    )

    def dsn(self, admin_dsn: str, role: str, **more: str) -> str:
        """The platform's database on the administrator's server, as that role."""
        return make_conninfo(admin_dsn, dbname=DATABASE, user=role, password=self.roles[role], **more)

    def for_monitor(self, admin_dsn: str) -> dict[str, str]:
        """The variables that a monitor's configuration asks for."""
        return {
            "MONITOR_POSTGRES_DSN": self.dsn(admin_dsn, "monitor_ro"),
            "MONITOR_POSTGRES_CANARY_DSN": self.dsn(admin_dsn, "monitor_canary"),
            "MONITOR_POSTGRES_FIX_DSN": self.dsn(admin_dsn, "monitor_fix"),
            "SLACK_BOT_TOKEN": self.slack_token,
            "SYNTHETIC_USER_PASSWORD": self.user_password,
            **{f"PAGERDUTY_{role}_KEY": key for role, key in self.pagerduty_keys.items()},
        }

    def for_services(self, admin_dsn: str, ports: Ports, *, known_hosts: Path, log_dir: Path) -> dict[str, str]:
        """Every variable of ``services.settings``, so that nothing is taken from a ``.env`` of the checkout."""
        server = conninfo_to_dict(admin_dsn)
        values = {
            "POSTGRES_HOST": server.get("host") or "localhost",
            "POSTGRES_PORT": server.get("port") or 5432,
            "POSTGRES_DB": DATABASE,
            "POSTGRES_USER": "analytics_user",
            "POSTGRES_PASSWORD": self.roles["analytics_user"],
            "POSTGRES_READ_HOST": "",
            "POSTGRES_READ_PORT": "",
            "DATABASE_POOL_SIZE": 5,
            "DATABASE_MAX_OVERFLOW": 3,
            "IDP_URL": f"http://{HOST}:{ports.idp}",
            "BIGQUERY_URL": f"http://{HOST}:{ports.bigquery}",
            "BIGQUERY_PROJECT": PROJECT,
            "BIGQUERY_TIMEOUT_S": FORGOTTEN_S,
            "LEASE_S": FORGOTTEN_S,
            "SFTP_HOST": HOST,
            "SFTP_PORT": ports.sftp,
            "SFTP_USER": SFTP_USER,
            "SFTP_PASSWORD": self.sftp_password,
            "SFTP_KNOWN_HOSTS": known_hosts,
            "LOG_DIR": log_dir,
        }
        return {name: str(value) for name, value in values.items()}
