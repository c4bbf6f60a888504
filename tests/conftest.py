"""Real parts for the tests: PostgreSQL clusters, and the tools that only some machines have."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from services.cluster import Cluster, debian_bin


def require(tool: str, found: object) -> None:
    """Skip with the reason on a laptop, fail in CI, when ``tool`` is not installed."""
    if found:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{tool} is not installed, and CI must have it")
    pytest.skip(f"{tool} is not installed")


def tool(name: str) -> str:
    """Path of a program, or skip (laptop) or fail (CI)."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    require(name, path)
    assert path
    return path


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing that it wrote there either."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="monitor-", dir=shared if shared.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pg18() -> Iterator[Cluster]:
    """PostgreSQL 18, 60 connections, superuser ``postgres``; transactions can be prepared, and changes decoded."""
    yield from _cluster(None)


@pytest.fixture(scope="session")
def pg15() -> Iterator[Cluster]:
    """Debian's PostgreSQL 15."""
    require("postgresql-15", debian_bin())
    yield from _cluster(debian_bin())


@pytest.fixture(scope="session", params=["pg18", "pg15"])
def pg_cluster(request: pytest.FixtureRequest) -> Cluster:
    """Both versions, one after the other."""
    cluster: Cluster = request.getfixturevalue(request.param)
    return cluster


@pytest.fixture
def database(pg_cluster: Cluster) -> Iterator[str]:
    """A fresh empty database on each version; the value is its superuser DSN."""
    yield from fresh_database(pg_cluster)


@pytest.fixture
def database18(pg18: Cluster) -> Iterator[str]:
    """A fresh empty database on PostgreSQL 18; the value is its superuser DSN."""
    yield from fresh_database(pg18)


def fresh_database(cluster: Cluster) -> Iterator[str]:
    name = f"t_{os.urandom(6).hex()}"
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield cluster.dsn(name)
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _cluster(bin_dir: Path | None) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="monitor-pg-"))
    folder.chmod(0o755)
    cluster = Cluster(folder / "data", bin_dir=bin_dir, settings={"max_prepared_transactions": "10", "wal_level": "logical"})
    try:
        yield cluster.start()
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
