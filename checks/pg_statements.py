"""Which statements cost the server most since the last look, and which became slow? From pg_stat_statements, by what was added.

Texts are read only of the few that are told, with every literal masked; no series carries a statement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.sql import SQL, Composed, Identifier
from pydantic import Field

from checks import pg_sight
from checks.pg_statement_text import masked
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, PluginConfig, check
from monitor.probes_contract import Postgres, Row

CALLS = Metric("monitor_pg_statements_calls_total", "Statements that the server ran and counted.", kind="counter")
SECONDS = Metric("monitor_pg_statements_seconds_total", "Time that they took, together.", kind="counter")
TOP_SHARE = Metric("monitor_pg_statements_top_ratio", "Share of that time since the last look, of the statement of this rank.", ("rank",))
ENTRIES = Metric("monitor_pg_statements_entries", "Different statements that are counted apart.")
EVICTED = Metric("monitor_pg_statements_evicted_total", "Times that rare statements were forgotten for want of room.", kind="counter")

SLOW = FindingKind("StatementSlow", Severity.P3, "INC-005", "Statements take longer than slow_mean on average, and run often.")
SLOWER = FindingKind("StatementSlower", Severity.P3, "INC-005", "Statements take several times longer than they used to.")
FORGETTING = FindingKind(
    "StatementsForgotten", Severity.P4, None, "There is too little room in pg_stat_statements: it shows less than the whole."
)

RANKS = 5
KEPT = 1_000


class Config(PluginConfig):
    """Keys of a ``pg_statements`` check. All of it is about what was added since the last look."""

    slow_mean_ms: float = Field(1000.0, gt=0, description="StatementSlow from this average time on …")
    slower_times: float = Field(4.0, gt=1, description="StatementSlower when the average is so many times what it was before, and …")
    slower_mean_ms: float = Field(100.0, ge=0, description="… at least this long.")
    min_calls: int = Field(20, ge=1, description="Statements that ran less often are not judged.")
    min_calls_before: int = Field(100, ge=1, description="What a statement used to take is known from so many runs on.")
    max_evictions: int = Field(10, ge=1, description="StatementsForgotten from so many evictions on.")
    max_listed: int = Field(5, ge=1, le=20, description="How many statements the evidence lists.")


@dataclass(frozen=True, slots=True)
class Added:
    """What one statement added since the last look."""

    query: str
    calls: int
    total_ms: float
    mean_before_ms: float | None
    """Its average until then; None when too little is known."""

    @property
    def mean_ms(self) -> float:
        return self.total_ms / self.calls


@check(
    "pg_statements",
    config=Config,
    metrics=(CALLS, SECONDS, TOP_SHARE, ENTRIES, EVICTED),
    finds=(SLOW, SLOWER, FORGETTING),
    needs=("dsn",),
    blind="The extension pg_stat_statements is missing or not loaded, or the role may not see the server's statistics.",
    why="A statement that takes ten times longer since the last release is the usual cause of a slow platform (INC-005).",
    privileges=f"{pg_sight.PRIVILEGES} The extension: `shared_preload_libraries = 'pg_stat_statements'`, a restart, and "
    "`CREATE EXTENSION pg_stat_statements` in the database of the `dsn`.",
)
async def pg_statements(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares the counters of every statement with the last look: what took the time, what is slow, what became slower."""
    assert ctx.pg is not None  # needs=("dsn",)
    (found,) = await pg_sight.look(ctx.pg, EXTENSION)
    if not found:
        raise CannotLook("the extension pg_stat_statements is not in this database: CREATE EXTENSION pg_stat_statements, preloaded")
    schema = Identifier(found[0]["schema"])
    rows, (totals,) = await ctx.pg.fetch_many([(COUNTERS.format(schema=schema), {"kept": KEPT}), (TOTALS.format(schema=schema), {})])
    before: Mapping[str, Any] = ctx.kept.value if ctx.kept else {}
    same = before.get("epoch") == totals["epoch"]
    added = compare(rows, before["rows"], cfg) if same else []
    evicted = max(0, totals["evicted"] - before["evicted"]) if same else 0
    slow, slower = suspects(added, cfg)
    texts = await _texts(ctx.pg, TEXTS.format(schema=schema), [one.query for one in (*slow, *slower)])
    findings = [*tell(slow, slower, texts, cfg, service=ctx.service.name)]
    if evicted >= cfg.max_evictions:
        facts = {
            "entries": f"{totals['entries']:,}",
            "cure": "a larger pg_stat_statements.max, and a restart",
        }
        summary = f"pg_stat_statements forgot statements {many(evicted, 'time')} since the last look ({ctx.service.name})"
        findings.append(FORGETTING(summary, facts=facts, value=evicted))
    keep = {
        "epoch": totals["epoch"],
        "evicted": totals["evicted"],
        "rows": {row["query"]: [row["calls"], round(row["total_ms"], 1)] for row in rows},
    }
    return Observed(tuple(_samples(totals, added)), tuple(findings), keep=keep)


def compare(rows: Sequence[Row], before: Mapping[str, Sequence[float]], cfg: Config) -> list[Added]:
    """What each statement added, the costliest first. Pure. One that is new, or was forgotten in between, counts from its beginning."""
    added = []
    for row in rows:
        calls_before, ms_before = before.get(row["query"], (0, 0.0))
        if row["calls"] < calls_before or row["total_ms"] < ms_before - 1:
            calls_before, ms_before = 0, 0.0
        if (calls := row["calls"] - int(calls_before)) > 0:
            usual = ms_before / calls_before if calls_before >= cfg.min_calls_before else None
            added.append(Added(row["query"], calls, max(0.0, row["total_ms"] - ms_before), usual))
    return sorted(added, key=lambda one: (-one.total_ms, one.query))


def suspects(added: Sequence[Added], cfg: Config) -> tuple[list[Added], list[Added]]:
    """Those to tell of: slow ones, and those that became slower without being slow yet. Pure."""
    often = [one for one in added if one.calls >= cfg.min_calls]
    slow = [one for one in often if one.mean_ms >= cfg.slow_mean_ms]
    slower = [
        one
        for one in often
        if one not in slow
        and one.mean_before_ms is not None
        and one.mean_ms >= max(cfg.slower_mean_ms, cfg.slower_times * one.mean_before_ms)
    ]
    return slow[: cfg.max_listed], slower[: cfg.max_listed]


def tell(slow: Sequence[Added], slower: Sequence[Added], texts: Mapping[str, str], cfg: Config, *, service: str) -> list[Finding]:
    """One finding of each kind, the costliest statement first. Pure."""
    findings = []
    for kind, ones, words in ((SLOW, slow, "slow on average"), (SLOWER, slower, "much slower than before")):
        if not ones:
            continue
        facts = {}
        for one in ones:
            usual = f", before {one.mean_before_ms:,.0f} ms" if one.mean_before_ms is not None else ""
            facts[f"{one.mean_ms:,.0f} ms each, {many(one.calls, 'run')}{usual}"] = texts.get(one.query, "its text is not known any more")
        facts["first"] = "EXPLAIN (ANALYZE, BUFFERS) the first; are the table's statistics fresh (ANALYZE), is an index gone?"
        worst = max(one.mean_ms for one in ones)
        took = lasted(sum(one.total_ms for one in ones) / 1000)
        summary = f"{many(len(ones), 'statement is', 'statements are')} {words}, {took} together since the last look ({service})"
        findings.append(kind(summary, facts=facts, value=worst))
    return findings


def _samples(totals: Row, added: Sequence[Added]) -> list[Sample]:
    samples = [CALLS(totals["calls"]), SECONDS(totals["total_ms"] / 1000), ENTRIES(totals["entries"]), EVICTED(totals["evicted"])]
    spent = sum(one.total_ms for one in added)
    if spent:
        samples += [TOP_SHARE(one.total_ms / spent, rank=rank) for rank, one in enumerate(added[:RANKS], 1)]
    return samples


async def _texts(pg: Postgres, statement: Composed, queries: list[str]) -> dict[str, str]:
    if not queries:
        return {}
    rows = await pg.fetch(statement, {"queries": [int(query) for query in queries]})
    return {row["query"]: masked(row["text"]) for row in rows}


EXTENSION = """
SELECT n.nspname::text AS schema FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'pg_stat_statements'
"""

# Without the texts, which lie in a file. The monitor's own statements are left out.
COUNTERS = SQL("""
SELECT queryid::text AS query, sum(calls)::bigint AS calls, sum(total_exec_time)::float8 AS total_ms
FROM {schema}.pg_stat_statements(false)
WHERE queryid IS NOT NULL AND userid <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
GROUP BY queryid ORDER BY total_ms DESC, queryid LIMIT %(kept)s
""")

TOTALS = SQL("""
SELECT coalesce(sum(s.calls), 0)::bigint AS calls, coalesce(sum(s.total_exec_time), 0)::float8 AS total_ms, count(s.calls) AS entries,
       i.dealloc AS evicted, coalesce(i.stats_reset::text, '') AS epoch
FROM {schema}.pg_stat_statements_info i LEFT JOIN {schema}.pg_stat_statements(false) s ON true GROUP BY i.dealloc, i.stats_reset
""")

TEXTS = SQL("""
SELECT queryid::text AS query, min(query) AS text FROM {schema}.pg_stat_statements(true) WHERE queryid = ANY(%(queries)s) GROUP BY queryid
""")
