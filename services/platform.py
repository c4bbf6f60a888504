"""The whole platform as one thing that starts and stops: PostgreSQL, the externals, the three services, nginx where it is there.

Owns every child process, the random passwords of this start, and what a monitor must be told to watch it.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

import httpx2
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from services import database, nginx, traffic
from services.access import DATABASE, SFTP_USER, USERNAME, Access
from services.cluster import Cluster, ClusterError
from services.control import Control
from services.database import DatabaseError
from services.database.seed import DEMO_TENANT
from services.faults import FaultError, requests
from services.ports import HOST, Ports
from services.processes import Child, Guard, ProcessError, in_thread, stop_all

__all__ = ["Platform", "PlatformError", "Ports"]

CODE = Path(__file__).resolve().parent.parent
SERVICES = ("auth", "data", "analytics")
EXTERNALS = ("idp", "bigquery", "smtp", "mailbox", "sftp", "pagerduty", "slack")
MAX_CONNECTIONS = 60
UP_WITHIN_S = 30.0
HEALTH_TIMEOUT_S = 1.0
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


class PlatformError(Exception):
    """The platform cannot be started; the message names what is wrong, and what to do."""


class Platform:
    """Start with ``await start()`` (or ``async with``), end with ``await stop()``; nothing it started outlives this process.

    ``root`` receives logs, certificates and the state file; ``dsn`` is an administrator's, of a server to use instead of an own one.
    ``urls`` are base URLs by listener, ``addresses`` those worth showing to people, ``environment`` what a monitor's configuration
    asks for. ``database_folder`` is where the own, throw-away server keeps its data.
    ``held`` are faults that hold something open, by name, with what lets go of it.
    """

    def __init__(
        self,
        root: Path,
        ports: Ports,
        *,
        dsn: str | None = None,
        on_progress: Callable[[str], None] = lambda _: None,
        traffic: bool = False,
    ) -> None:
        self.root = root.resolve()
        self.ports = ports
        self.log_dir = self.root / "logs"
        self.held: dict[str, Callable[[], Awaitable[None]]] = {}
        self.stuck_job: str | None = None
        self.database_folder: Path | None = None
        self.urls = {
            name: f"{'https' if name in ('pagerduty', 'slack') else 'http'}://{HOST}:{port}"
            for name, port in ports.by_name().items()
            if name not in ("postgres", "smtp", "sftp")
        }
        self.http: httpx2.AsyncClient
        self._run_dir = self.root / "run"
        self._admin_dsn = dsn
        self._on_progress = on_progress
        self._with_traffic = traffic
        self._nginx = nginx.find_nginx()
        self._access = Access()
        self._guard: Guard | None = None
        self._cluster: Cluster | None = None
        self._children: dict[str, Child] = {}
        self._traffic: asyncio.Task[None] | None = None
        self._control: Control | None = None
        self._began = 0.0

    # --- what others need to know ------------------------------------------------------------------------------------

    @property
    def pagerduty_url(self) -> str:
        return self.urls["pagerduty"]

    @property
    def slack_url(self) -> str:
        """The page; the Web API is at ``/api/``."""
        return self.urls["slack"]

    @property
    def smtp_port(self) -> int:
        return self.ports.smtp

    @property
    def ca_file(self) -> Path:
        """The authority that signed PagerDuty's and Slack's certificates."""
        return self.root / "externals" / "ca.pem"

    @property
    def has_nginx(self) -> bool:
        return self._nginx is not None

    @property
    def addresses(self) -> dict[str, str]:
        """What people may open in a browser, by name."""
        shown = {f"{name} service": f"{self.urls[name]}/docs" for name in SERVICES}
        front = {"nginx": f"{self.urls['nginx']}/"} if self.has_nginx else {}
        return {**shown, **front, "pager": f"{self.pagerduty_url}/", "slack": f"{self.slack_url}/", "mailbox": f"{self.urls['mailbox']}/"}

    @property
    def environment(self) -> dict[str, str]:
        """Variables with the secrets of this start, for the monitor's configuration. Only after ``start()``."""
        return self._access.for_monitor(self._admin())

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs."""
        found = {name: child.pid for name, child in self._children.items()}
        if self._cluster is not None:
            found["postgres"] = self._cluster.pid
        return {name: pid for name, pid in found.items() if pid is not None}

    @property
    def max_connections(self) -> int:
        """Connection slots of the own server."""
        return MAX_CONNECTIONS

    async def reseed(self) -> None:
        """Put back the demo tenant's events of the last week, where they are missing."""
        await in_thread(lambda: database.seed(make_conninfo(self._admin(), dbname=DATABASE), email_config=self._mail(), again=True))

    def _mail(self) -> dict[str, object]:
        return {"server": HOST, "port": self.ports.smtp, "from": "reports@shop.example"}

    def services_dsn(self, application_name: str) -> str:
        """A connection string with the services' own role."""
        return self._access.dsn(self._admin(), "analytics_user", application_name=application_name, connect_timeout="3")

    def child(self, name: str) -> Child:
        """``auth``, ``data``, ``analytics``, ``nginx`` or ``externals``. Raises ``KeyError``."""
        return self._children[name]

    async def log_in(self) -> dict[str, str]:
        """Log the demo user in through the auth service; returns the headers for a request. Raises ``httpx2.HTTPError``."""
        form = {"tenant_id": DEMO_TENANT, "username": USERNAME, "password": self._access.user_password}
        answer = await self.http.post(f"{self.urls['auth']}/api/v1/login", json=form)
        answer.raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access_token']}", "X-Tenant-Id": DEMO_TENANT}

    # --- start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything and return when it serves. Raises ``PlatformError``; nothing is left running then."""
        self._began = time.monotonic()
        self._refuse_bad_dsn()
        self._refuse_taken_ports()
        try:
            await self._start()
        except (ProcessError, ClusterError, DatabaseError, nginx.NginxError, psycopg.Error, OSError) as exc:
            await self.stop()
            raise PlatformError(str(exc).strip()) from exc
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop every child, give back what faults hold, delete the own database. Idempotent; a cancellation waits for it."""
        if self._traffic is not None:
            self._traffic.cancel()
            await asyncio.wait({self._traffic})
            self._traffic = None
        if self._control is not None:
            await self._control.stop()
            self._control = None
        try:
            while self.held:
                await self.held.popitem()[1]()
        finally:
            await in_thread(self._stop_processes)
        if hasattr(self, "http"):
            await self.http.aclose()

    async def __aenter__(self) -> "Platform":
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start_service(self, name: str) -> None:
        """Start one of the three services, unless it runs, and wait until it is healthy. Raises ``ProcessError``."""
        child = self._children[name]
        child.start()
        await child.wait_until(lambda: self._answers(f"{self.urls[name]}/health"), UP_WITHIN_S, "answer on /health")
        self._write_state()

    def _refuse_bad_dsn(self) -> None:
        try:
            conninfo_to_dict(self._admin_dsn or "")
        except psycopg.ProgrammingError:  # libpq's words may repeat a part of the password
            raise PlatformError(
                "the DSN is not one: expected host=… port=… user=… password=… or postgresql://USER:PASSWORD@HOST/"
            ) from None

    def _refuse_taken_ports(self) -> None:
        unused = {"postgres"} if self._admin_dsn else set()
        if not self.has_nginx:
            unused.add("nginx")
        taken = [f"{name} ({port})" for name, port in self.ports.taken() if name not in unused]
        if taken:
            raise PlatformError(
                f"ports of 127.0.0.1 are taken: {', '.join(taken)}. Stop who uses them (`ss -ltnp`), or choose other ports."
            )

    async def _start(self) -> None:
        for folder in (self.log_dir, self._run_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.http = httpx2.AsyncClient(timeout=5, trust_env=False)
        self._guard = Guard()
        self._tell("starting PostgreSQL, the externals and the services")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_externals())
                group.create_task(self._start_database_and_services())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        await self._start_nginx()
        self._control = Control(self.root, requests(self), (FaultError, ProcessError))
        await self._control.start()
        self._write_state()
        if self._with_traffic:
            front = {name: f"{self.urls['nginx']}/{name}" if self.has_nginx else self.urls[name] for name in SERVICES}
            self._traffic = asyncio.create_task(traffic.visit_forever(front, self.log_in))
        self._tell(f"the platform is up after {self._took_s():.1f} s")

    async def _start_externals(self) -> None:
        state_dir = self.root / "externals"
        state_dir.mkdir(exist_ok=True)
        ready = state_dir / "ready.json"
        ready.unlink(missing_ok=True)
        config = {
            "state_dir": str(state_dir),
            "ports": {name: port for name, port in self.ports.by_name().items() if name in EXTERNALS},
            "users": [{"username": USERNAME, "password": self._access.user_password, "tenants": [DEMO_TENANT]}],
            "sftp": {"user": SFTP_USER, "password": self._access.sftp_password},
            "tenants": [DEMO_TENANT],
        }
        path = self._run_dir / "externals.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        child = self._make_child("externals", [sys.executable, "-m", "services.externals", "--config", str(path)], {})

        async def is_ready() -> bool:
            return ready.exists()

        await child.wait_until(is_ready, UP_WITHIN_S, "ready file")
        self._tell(f"the externals are up ({self._took_s():.1f} s)")

    async def _start_database_and_services(self) -> None:
        if self._admin_dsn is None:
            self._admin_dsn = await in_thread(self._start_cluster)
            self._tell(f"PostgreSQL is up on port {self.ports.postgres} ({self._took_s():.1f} s)")
        known_hosts = self.root / "externals" / "known_hosts"
        environment = self._access.for_services(self._admin_dsn, self.ports, known_hosts=known_hosts, log_dir=self.log_dir)
        # The services come up while the schema is made: they wait for a database by themselves.
        for name in SERVICES:
            argv = [
                sys.executable,
                "-m",
                "uvicorn",
                f"services.{name}_service:app",
                "--host",
                HOST,
                "--port",
                str(getattr(self.ports, name)),
            ]
            self._make_child(name, [*argv, "--log-level", "warning"], environment)
        await in_thread(self._prepare_database)
        self._tell(f"the database is ready ({self._took_s():.1f} s)")
        for name in SERVICES:
            await self.start_service(name)
            self._tell(f"the {name} service is up ({self._took_s():.1f} s)")

    async def _start_nginx(self) -> None:
        if self._nginx is None:
            self._tell("nginx is not installed: the services are reached directly")
            return
        upstreams = {name: getattr(self.ports, name) for name in SERVICES}
        config = nginx.configure(self._run_dir / "nginx", self.log_dir, port=self.ports.nginx, upstreams=upstreams)
        command = await in_thread(lambda: nginx.command(str(self._nginx), config))
        child = self._make_child("nginx", list(command), {})
        await child.wait_until(lambda: self._answers(f"{self.urls['nginx']}/"), UP_WITHIN_S, "answer")
        self._tell(f"nginx is up on port {self.ports.nginx} ({self._took_s():.1f} s)")

    def _make_child(self, name: str, argv: list[str], environment: dict[str, str]) -> Child:
        assert self._guard is not None
        inherited = {variable: os.environ[variable] for variable in INHERITED if variable in os.environ}
        log = self._run_dir / f"{name}.out"
        log.unlink(missing_ok=True)
        child = Child(name, argv, log=log, environment={**inherited, **environment}, cwd=CODE, guard=self._guard)
        self._children[name] = child
        child.start()
        return child

    def _start_cluster(self) -> str:
        """In a throw-away folder that PostgreSQL's own account can enter, also when we are root and ``root`` is private."""
        assert self._guard is not None
        guard = self._guard
        folder = Path(tempfile.mkdtemp(prefix="platform-db-"))
        folder.chmod(0o755)
        guard.remove(folder)
        self.database_folder = folder
        self._cluster = Cluster(
            folder / "data",
            port=self.ports.postgres,
            password_auth=True,
            settings={"max_connections": str(MAX_CONNECTIONS)},
            on_spawn=lambda pid: guard.watch(pid, signal.SIGQUIT),
        )
        return self._cluster.start().dsn()

    def _prepare_database(self) -> None:
        database.create_database(self._admin(), DATABASE)
        dsn = make_conninfo(self._admin(), dbname=DATABASE)
        database.create_roles(dsn, self._access.roles)
        database.migrate(dsn)
        database.seed(dsn, email_config=self._mail())

    def _stop_processes(self) -> None:
        stop_all(self._children.values())
        self._children.clear()
        if self._cluster is not None:
            pid = self._cluster.pid
            self._cluster.stop()
            if pid is not None and self._guard is not None:
                self._guard.forget(pid)
            self._cluster = self._admin_dsn = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    # --- small parts -------------------------------------------------------------------------------------------------

    def _admin(self) -> str:
        if self._admin_dsn is None:
            raise PlatformError("the platform does not run: it has no database yet")
        return self._admin_dsn

    async def _answers(self, url: str) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return (await self.http.get(url, timeout=HEALTH_TIMEOUT_S)).status_code == 200
        return False

    def _write_state(self) -> None:
        if self._control is not None:
            self._control.write_state({"ports": self.ports.by_name(), "pids": self.pids})

    def _took_s(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, line: str) -> None:
        self._on_progress(line)
