"""Small PostgreSQL servers that a test may fill, freeze and stop."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from services.cluster import Cluster

PASSWORD = "correct-horse-7"


@contextmanager
def small_cluster(like: Cluster) -> Iterator[Cluster]:
    """A server of the version of ``like`` with 20 connections; every role but ``postgres`` needs its password."""
    folder = Path(tempfile.mkdtemp(prefix="monitor-pg-"))
    folder.chmod(0o755)
    try:
        with Cluster(folder / "data", bin_dir=like._bin, settings={"max_connections": "20"}, password_auth=True) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def execute(cluster: Cluster, *statements: str, database: str = "postgres") -> None:
    """Run statements as the superuser."""
    with psycopg.connect(cluster.dsn(database), autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())


@contextmanager
def leaked(dsn: str, *, at_most: int = 100) -> Iterator[int]:
    """Hold as many connections as the server gives, ``at_most`` so many; the value is their number."""
    held: list[psycopg.Connection] = []
    try:
        while len(held) < at_most:
            try:
                held.append(psycopg.connect(dsn))
            except psycopg.OperationalError:
                break
        yield len(held)
    finally:
        for connection in held:
            connection.close()
