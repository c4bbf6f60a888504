"""Real standbys of a test's cluster: a base backup of the primary, started as a second server that streams from it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from services.cluster import Cluster, ClusterError


@contextmanager
def primary(like: Cluster, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A server of its own, of the version of ``like``, that may be replicated, stopped and filled."""
    folder = _folder()
    try:
        with Cluster(folder / "data", bin_dir=like._bin, settings={"max_connections": "20", **(settings or {})}) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def standby_of(primary: Cluster, name: str, *, slot: str = "", settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A standby that streams from ``primary`` under this application_name, through a new ``slot`` where one is named."""
    folder = _folder()
    data = folder / "data"
    data.mkdir(mode=0o700)
    if primary._user:
        shutil.chown(data, primary._user)
    through = ["-C", "-S", slot] if slot else []
    source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={name}"
    command = [
        str(primary._bin / "pg_basebackup"),
        "-D",
        str(data),
        "-d",
        source,
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
        "--no-sync",
        *through,
    ]
    try:
        done = subprocess.run(command, capture_output=True, user=primary._user, cwd="/", check=False)
        if done.returncode != 0:
            raise ClusterError(f"pg_basebackup failed: {done.stderr.decode(errors='replace').strip()[-800:]}")
        chosen = {**primary.settings, "wal_retrieve_retry_interval": "100ms", **(settings or {})}
        with Cluster(data, bin_dir=primary._bin, settings=chosen) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(dsn: str, condition: str, *, within_s: float = 15) -> None:
    """Until the SQL ``condition`` holds on that server. Raises ``AssertionError`` when it does not come true."""
    statement = f"SELECT coalesce(({condition}), false), clock_timestamp() > %s::timestamptz + make_interval(secs => %s)"
    with psycopg.connect(dsn, autocommit=True) as connection:
        (start,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        while True:
            holds, late = connection.execute(statement.encode(), (start, within_s)).fetchone() or (False, True)
            if holds:
                return
            assert not late, f"within {within_s:g} s it did not become true that {condition}"
            connection.execute("SELECT pg_sleep(0.05)")


def caught_up(primary: Cluster, standby: Cluster) -> None:
    """Wait until the standby has replayed all that the primary has written."""
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        (lsn,) = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("",)
    wait_for(standby.dsn(), f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn")


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="monitor-pg-"))
    folder.chmod(0o755)
    return folder
