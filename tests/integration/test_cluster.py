"""The clusters that all other tests stand on."""

import psycopg

from services.cluster import Cluster


def test_serves_its_version(pg_cluster: Cluster, database: str) -> None:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT current_setting('server_version_num')::int / 10000").fetchone()
    assert row is not None
    assert row[0] in (15, 18)
