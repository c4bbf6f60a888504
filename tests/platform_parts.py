"""The platform as the tests see it: its services as real processes, its externals as real servers on a thread."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import uvicorn
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from starlette.types import ASGIApp

from services.cluster import free_port
from services.database import create_roles, migrate
from services.externals import bigquery, idp, sftp, smtp

ROOT = Path(__file__).resolve().parent.parent
USER, PASSWORD = "ops@platform.test", "right-horse"
TENANT, OTHER = "acme", "globex"
PORTS = {"auth": "services.auth_service:app", "data": "services.data_service:app", "analytics": "services.analytics_service:app"}


def until(condition: Callable[[], Any], what: str, within_s: float = 60) -> Any:
    """The first truthy value of ``condition``; fails after ``within_s``."""
    waiting, deadline = threading.Event(), time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        waiting.wait(0.05)
    return value


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """An ASGI app behind uvicorn on a thread; the value is its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the app serves")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass
class Externals:
    idp_url: str
    bigquery_url: str
    smtp_port: int
    sftp_port: int
    mailbox: smtp.Mailbox
    folder: Path

    def bigquery(self, mode: str) -> None:
        httpx2.post(f"{self.bigquery_url}/_control", json={"mode": mode}, trust_env=False).raise_for_status()

    def environ(self) -> dict[str, str]:
        return {
            "IDP_URL": self.idp_url,
            "BIGQUERY_URL": self.bigquery_url,
            "SFTP_HOST": "127.0.0.1",
            "SFTP_PORT": str(self.sftp_port),
            "SFTP_USER": "partner",
            "SFTP_PASSWORD": "sesame",
            "SFTP_KNOWN_HOSTS": str(self.folder / "known_hosts"),
        }


@contextmanager
def externals(folder: Path) -> Iterator[Externals]:
    """Identity provider, BigQuery, SMTP and SFTP."""
    users = [idp.User(USER, PASSWORD)]
    mailbox = smtp.Mailbox()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[smtp.MailServer, Any]:
        mails = await smtp.serve("127.0.0.1", 0, mailbox)
        return mails, await sftp.serve("127.0.0.1", 0, user="partner", password="sesame", state_dir=folder)

    async def stop() -> None:
        mails.close()
        files.close()
        await files.wait_closed()

    mails, files = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    try:
        with serving(idp.create_app(users)) as idp_url, serving(bigquery.create_app()) as bigquery_url:
            yield Externals(idp_url, bigquery_url, mails.port, files.get_port(), mailbox, folder)
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@dataclass
class Running:
    """One service process."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=20, trust_env=False, **options)

    def post(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, timeout=20, trust_env=False, **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


@dataclass
class Platform:
    """A migrated database with two tenants, and the environment that its services run in."""

    dsn: str
    environ: dict[str, str]
    folder: Path
    externals: Externals
    _running: list[Running] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return Path(self.environ["LOG_DIR"])

    def launch(self, name: str, **changes: str) -> Running:
        """Start a service and do not wait for it."""
        port = free_port()
        output = self.folder / f"{name}-{port}.out"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", PORTS[name], "--port", str(port), "--no-access-log"],
                cwd=ROOT,
                env={**self.environ, **changes},
                stdout=sink,
                stderr=sink,
            )
        running = Running(process, f"http://127.0.0.1:{port}", output)
        self._running.append(running)
        return running

    def start(self, name: str, **changes: str) -> Running:
        """Start a service; it answers when this returns."""
        running = self.launch(name, **changes)

        def answers() -> bool:
            assert running.process.poll() is None, running.output.read_text()
            try:
                return running.get("/health").status_code == 200
            except httpx2.TransportError:
                return False

        until(answers, f"{name} is healthy")
        return running

    def stop_all(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.end(signal.SIGKILL)

    def query(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def one(self, sql: str, **values: Any) -> Any:
        """The only value of the only row."""
        (row,) = self.query(sql, **values)
        (value,) = row.values()
        return value

    def script(self, name: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return run_script(name, *arguments, environ={**self.environ, **changes})

    def headers(self, tenant: str = TENANT) -> dict[str, str]:
        form = {"grant_type": "password", "username": USER, "password": PASSWORD, "tenant_id": tenant}
        token = httpx2.post(f"{self.externals.idp_url}/oauth/token", data=form, trust_env=False).json()["access_token"]
        return {"Authorization": f"Bearer {token}", "X-Tenant-Id": tenant}


def run_script(name: str, *arguments: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(program, cwd="/", env=dict(environ), capture_output=True, text=True, timeout=60, check=False)


def environ_of(dsn: str, **changes: str) -> dict[str, str]:
    """The environment of a service over that database: nothing of ours leaks in but the path."""
    where = conninfo_to_dict(dsn)
    return {
        "PATH": os.environ["PATH"],
        "POSTGRES_HOST": str(where["host"]),
        "POSTGRES_PORT": str(where["port"]),
        "POSTGRES_DB": str(where["dbname"]),
        "POSTGRES_USER": "analytics_user",
        "POSTGRES_PASSWORD": "services",
        **changes,
    }


@contextmanager
def platform(dsn: str, folder: Path) -> Iterator[Platform]:
    """The platform over an empty database (a superuser's DSN); services are started by the test, and stopped here."""
    create_roles(dsn, {"analytics_user": "services"})
    migrate(dsn)
    with externals(folder) as around:
        made = Platform(dsn, environ_of(dsn, LOG_DIR=str(folder / "logs"), **around.environ()), folder, around)
        mail = {"server": "127.0.0.1", "port": around.smtp_port, "from": "reports@shop.example"}
        for tenant in (TENANT, OTHER):
            made.query("INSERT INTO tenant_config (id, name, email_config) VALUES (%(id)s, %(id)s, %(mail)s)", id=tenant, mail=Jsonb(mail))
        try:
            yield made
        finally:
            made.stop_all()
