"""State databases for tests: a file, or a fresh database of a real server."""

from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from services.cluster import Cluster
from tests.conftest import fresh_database


def state_url(cluster: Cluster | None, folder: Path) -> Iterator[str]:
    """The URL of an empty state in a file, or on the cluster."""
    if cluster is None:
        yield f"sqlite:///{folder / 'state' / 'monitor.db'}"
        return
    for dsn in fresh_database(cluster):
        parts = conninfo_to_dict(dsn)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{parts['port']}/{parts['dbname']}"
