"""One collection of a PostgreSQL server's facts, beside postgres_exporter with its table statistics: CPU of client and server.

Both are asked for the same facts each time; ours keeps one connection, sends its statements in one pipeline and judges what it sees.
Beside that, ten minutes of all our PostgreSQL checks as shipped, with what the exporter does not know.
"""

import os
import shutil
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from bench.http_probe import version_of
from bench.measure import BenchError, Cell, Figure, cost, tree_cpu_s
from bench.pg_collecting import FACTS, shipped_checks
from bench.plan import Plan
from bench.processes import Program, Worker, free_port
from checks import pg_helpers
from services.cluster import Cluster

EXPORTER = ("prometheus-postgres-exporter", "postgres_exporter")
TABLE_COUNTS = (10, 2_000)
COLLECTIONS = {10: (900, 600), 2_000: (400, 30)}
"""Of ours and of the exporter's in each cell: each side so many that the processor is busy for a second."""
SCHEDULE_S = 600
SCHEDULES = {10: (20, 10), 2_000: (20, 2)}
"""Ten minutes, so many times in each cell."""
SCRAPE_EVERY_S = 15
"""The exporter collects everything at each scrape of Prometheus."""
MAKE_TABLES = """
DO $$ BEGIN FOR n IN 1..%d LOOP
  EXECUTE format('CREATE TABLE t%%s (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now(), note text)', n);
  EXECUTE format('INSERT INTO t%%s (note) SELECT repeat(''x'', 50) FROM generate_series(1, 100)', n);
  IF n %% 100 = 0 THEN COMMIT; END IF;
END LOOP; END $$
"""
# The exporter's own example queries of table statistics, in the shape it wants.
QUERIES = """
pg_stat_user_tables:
  query: "SELECT current_database() datname, schemaname, relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch, n_tup_ins, n_tup_upd, \
n_tup_del, n_tup_hot_upd, n_live_tup, n_dead_tup, n_mod_since_analyze, COALESCE(last_vacuum, '1970-01-01Z') AS last_vacuum, \
COALESCE(last_autovacuum, '1970-01-01Z') AS last_autovacuum, COALESCE(last_analyze, '1970-01-01Z') AS last_analyze, \
COALESCE(last_autoanalyze, '1970-01-01Z') AS last_autoanalyze, vacuum_count, autovacuum_count, analyze_count, autoanalyze_count \
FROM pg_stat_user_tables"
  metrics:
    - {datname: {usage: "LABEL", description: "database"}}
    - {schemaname: {usage: "LABEL", description: "schema"}}
    - {relname: {usage: "LABEL", description: "table"}}
"""
COUNTERS = ("seq_scan", "seq_tup_read", "idx_scan", "idx_tup_fetch", "n_tup_ins", "n_tup_upd", "n_tup_del", "n_tup_hot_upd",
            "vacuum_count", "autovacuum_count", "analyze_count", "autoanalyze_count")  # fmt: skip
GAUGES = ("n_live_tup", "n_dead_tup", "n_mod_since_analyze", "last_vacuum", "last_autovacuum", "last_analyze", "last_autoanalyze")


@dataclass(frozen=True, slots=True)
class _Cost:
    client: Cell
    server: Cell
    series: int = 0
    logins: float = 0.0
    """Canary logins, of each thing done."""


def run(plan: Plan) -> list[Figure]:
    figures = []
    for tables in TABLE_COUNTS[: 1 if plan.quick else 2]:
        figures += _compare(plan, tables)
    return figures


def _compare(plan: Plan, tables: int) -> list[Figure]:
    ours_count, theirs_count = (5, 5) if plan.quick else COLLECTIONS[tables]
    ours_times, theirs_times = (1, 1) if plan.quick else SCHEDULES[tables]
    folder = plan.folder / f"pg_facts_{tables}"
    folder.mkdir()
    data = folder / "pg"
    data.mkdir()
    plan.folder.chmod(0o755)  # PostgreSQL's own account must enter
    folder.chmod(0o755)
    data.chmod(0o755)
    program = next(filter(None, map(shutil.which, EXPORTER)), None)
    taken: dict[str, list[_Cost]] = {"monitor": [], "exporter": []}
    scheduled: dict[str, list[_Cost]] = {"monitor": [], "exporter": []}
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(data / "cluster"))
        dsn = _prepare(cluster, tables)
        secret = folder / "dsn"
        secret.touch(mode=0o600)
        secret.write_text(dsn)
        facts, shipped = (stack.enter_context(_worker(folder / way, secret, way)) for way in ("facts", "shipped"))
        exporter = _start_exporter(stack, program, folder, dsn) if program else None
        for number in range(plan.pairs + 1):
            plan.say(f"pg_facts, {tables} tables: pair {number} of {plan.pairs}")
            warm = number == 0
            ours = _ours(facts, cluster, 5 if warm else ours_count)
            theirs = _theirs(*exporter, cluster, 5 if warm else theirs_count) if exporter else None
            if number:
                taken["monitor"].append(ours)
                taken["exporter"] += [theirs] if theirs else []
                scheduled["monitor"].append(_ours_on_schedule(shipped, cluster, ours_times))
                scheduled["exporter"] += [_theirs_on_schedule(*exporter, cluster, theirs_times)] if exporter else []
    peer = f"postgres_exporter {version_of(program)}" if program else "postgres_exporter is not installed"
    return [*_figures(plan, tables, taken, peer), *_schedule_figures(plan, tables, scheduled, peer)]


def _worker(folder: Path, secret: Path, way: str) -> Worker:
    folder.mkdir()
    return Worker("bench.pg_collecting", folder, secret, way)


def _schedule_figures(plan: Plan, tables: int, taken: dict[str, list[_Cost]], peer: str) -> list[Figure]:
    """What ten minutes cost, on the shipped schedule, beside a scrape every fifteen seconds."""
    figures = []
    for what in ("client", "server"):
        sides = {
            name: cost([getattr(one, what) for one in costs], per=1, scale=1000, quick=plan.quick) for name, costs in taken.items() if costs
        }
        logins = taken["monitor"][-1].logins
        notes = (
            f"{len(shipped_checks())} checks as often as config.toml says, with {logins:g} canary logins, "
            f"beside {SCHEDULE_S // SCRAPE_EVERY_S} scrapes",
        )
        figures.append(
            Figure(f"pg_facts {what}, {tables:,} tables, 10 min", "CPU-ms", sides["monitor"], sides.get("exporter"), peer, notes)
        )
    return figures


def _figures(plan: Plan, tables: int, taken: dict[str, list[_Cost]], peer_name: str) -> list[Figure]:
    figures = []
    for what in ("client", "server"):
        sides = {
            name: cost([getattr(one, what) for one in costs], per=1, scale=1000, quick=plan.quick) for name, costs in taken.items() if costs
        }
        series = ", ".join(f"{name} {costs[-1].series} series" for name, costs in taken.items() if costs)
        notes = (
            f"{series}; ours: {_parts()}, with judgement; omits the exporter's pg_settings, pg_locks by mode, and tables beyond the top",
        )
        name = f"pg_facts {what}, {tables:,} tables"
        figures.append(Figure(name, "CPU-ms / collection", sides["monitor"], sides.get("exporter"), peer_name, notes))
    return figures


def _parts() -> str:
    """The checks, and how they are set where they are not as shipped."""
    return ", ".join(f"{name} {dict(settings)}" if settings else name for name, settings in FACTS.items())


def _prepare(cluster: Cluster, tables: int) -> str:
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE shop")
        admin.execute("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
    with psycopg.connect(cluster.dsn("shop"), autocommit=True) as admin:
        admin.execute((MAKE_TABLES % tables).encode())
        admin.execute(pg_helpers.INSTALL.encode())
        admin.execute("ANALYZE")
    return make_conninfo(cluster.dsn("shop"), user="watcher")


def _start_exporter(stack: ExitStack, program: str, folder: Path, dsn: str) -> tuple[Program, str]:
    metrics = [f'    - {{{name}: {{usage: "COUNTER", description: "{name}"}}}}' for name in COUNTERS]
    metrics += [f'    - {{{name}: {{usage: "GAUGE", description: "{name}"}}}}' for name in GAUGES]
    queries = folder / "queries.yaml"
    queries.write_text(QUERIES + "\n".join(metrics) + "\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    source = f"postgresql://watcher@127.0.0.1:{parts['port']}/shop?sslmode=disable"
    command = [program, f"--web.listen-address=127.0.0.1:{port}", f"--extend.query-path={queries}", "--log.level=error"]
    environment = {**os.environ, "DATA_SOURCE_NAME": source}
    server = stack.enter_context(Program(command, url=f"{url}/", log=folder / "exporter.log", environment=environment))
    return server, f"{url}/metrics"


def _ours(monitor: Worker, cluster: Cluster, count: int) -> _Cost:
    client_s, server_s = monitor.cpu_s(), _server_s(cluster)
    answer = monitor.ask(count=count)
    if answer["blind"]:
        raise BenchError(f"checks could not look: {answer['blind']}")
    return _Cost(Cell(monitor.cpu_s() - client_s, count), Cell(_server_s(cluster) - server_s, count), answer["series"])


def _ours_on_schedule(monitor: Worker, cluster: Cluster, times: int) -> _Cost:
    client_s, server_s = monitor.cpu_s(), _server_s(cluster)
    answer = monitor.ask(seconds=SCHEDULE_S * times)
    if answer["blind"]:
        raise BenchError(f"checks could not look: {answer['blind']}")
    client, server = Cell(monitor.cpu_s() - client_s, times), Cell(_server_s(cluster) - server_s, times)
    return _Cost(client, server, answer["series"], answer["logins"] / times)


def _theirs_on_schedule(exporter: Program, url: str, cluster: Cluster, times: int) -> _Cost:
    spent = _theirs(exporter, url, cluster, times * SCHEDULE_S // SCRAPE_EVERY_S)
    return _Cost(Cell(spent.client.cpu_s, times), Cell(spent.server.cpu_s, times))


def _theirs(exporter: Program, url: str, cluster: Cluster, count: int) -> _Cost:
    client_s, server_s, series = exporter.cpu_s(), _server_s(cluster), 0
    for _ in range(count):
        with urllib.request.urlopen(url, timeout=30) as answer:
            page = answer.read()
        series = sum(line.startswith(b"pg_") for line in page.splitlines())
        if b"\npg_up 1" not in page or b"\npg_stat_user_tables_seq_scan{" not in page:
            raise BenchError("postgres_exporter did not collect: see its log")
    return _Cost(Cell(exporter.cpu_s() - client_s, count), Cell(_server_s(cluster) - server_s, count), series)


def _server_s(cluster: Cluster) -> float:
    assert cluster.pid is not None
    return tree_cpu_s(cluster.pid)
