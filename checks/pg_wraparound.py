"""How far is each database from the points where PostgreSQL freezes by force, drops its brakes, and at last refuses to write?"""

from pydantic import Field

from checks import pg_sight
from monitor.domain import FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, PluginConfig, check, one_line
from monitor.probes_contract import Row

XID_AGE = Metric("monitor_pg_xid_age", "Transactions since the oldest unfrozen row, by database.", ("database",))
MXID_AGE = Metric("monitor_pg_multixact_age", "Multixacts since the oldest unfrozen one, by database.", ("database",))
REFUSAL = Metric("monitor_pg_wraparound_ratio", "Share of the way to the refusal of all writes, the worse of both counters.", ("database",))

WRAPAROUND = FindingKind(
    "WraparoundNear", Severity.P3, None, "Autovacuum does not keep up with freezing: a database is on its way to refusing all writes."
)

REFUSES_AT = 2_147_483_647 - 3_000_000
"""Age at which PostgreSQL gives out no transaction ids any more (varsup.c)."""
TOP = 20


class Config(PluginConfig):
    """Keys of a ``pg_wraparound`` check. Shares of the way to refused writes, in percent."""

    warn_percent: float = Field(25.0, gt=0, lt=100, description="WraparoundNear as P3; autovacuum should have frozen at about 10.")
    high_percent: float = Field(50.0, gt=0, lt=100, description="As P2.")
    critical_percent: float = Field(75.0, gt=0, lt=100, description="As P1.")


@check(
    "pg_wraparound",
    config=Config,
    metrics=(XID_AGE, MXID_AGE, REFUSAL),
    finds=(WRAPAROUND,),
    needs=("dsn",),
    blind="The role may not see the server's settings, or the database does not answer.",
    why="A database that runs out of transaction ids refuses every write until it was vacuumed for hours, and says so only at the end.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_wraparound(ctx: CheckContext, cfg: Config) -> Observed:
    """Compares the age of the oldest unfrozen transaction and multixact of every database with the age at which writes are refused."""
    assert ctx.pg is not None  # needs=("dsn",)
    (rows,) = await pg_sight.look(ctx.pg, AGES)
    return judge(rows, cfg, service=ctx.service.name)


def judge(rows: list[Row], cfg: Config, *, service: str) -> Observed:
    """What the ages mean. Pure."""
    samples, findings = [], []
    for row in rows[:TOP]:
        name, percent = one_line(row["database"], limit=63), _percent(row)
        samples += [XID_AGE(row["xid_age"], database=name), MXID_AGE(row["mxid_age"], database=name), REFUSAL(percent / 100, database=name)]
        severity = _severity(percent, cfg)
        if severity is not None:
            facts = {
                "transaction ids": f"{row['xid_age']:,} since the oldest unfrozen row; autovacuum freezes by force at {row['freeze_at']:,}",
                "multixacts": f"{row['mxid_age']:,}",
                "look for": "old transactions, replication slots and prepared transactions that hold back VACUUM (backend_xmin)",
                "then": "VACUUM (FREEZE) the tables with the largest age(relfrozenxid)",
            }
            summary = f"the database {name} has used {percent:.0f} % of its transaction ids before writes are refused ({service})"
            findings.append(WRAPAROUND(summary, labels={"database": name}, facts=facts, severity=severity, value=percent))
    return Observed(tuple(samples), tuple(findings))


def _percent(row: Row) -> float:
    return 100 * float(max(row["xid_age"], row["mxid_age"])) / REFUSES_AT


def _severity(percent: float, cfg: Config) -> Severity | None:
    steps = ((cfg.critical_percent, Severity.P1), (cfg.high_percent, Severity.P2), (cfg.warn_percent, Severity.P3))
    return next((severity for at_least, severity in steps if percent >= at_least), None)


AGES = """
SELECT datname::text AS database, age(datfrozenxid) AS xid_age, mxid_age(datminmxid) AS mxid_age,
       current_setting('autovacuum_freeze_max_age')::bigint AS freeze_at
FROM pg_database ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC, datname
"""
