"""A question of your own to a watched PostgreSQL: one SELECT, its value against limits, or its rows against what is expected."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from checks.words import many
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, PluginConfig, check, one_line
from monitor.probes_contract import Row

VALUE = Metric("monitor_sql_query_value", "What the query gives, by row: its label columns, joined. The first rows only.", ("row",))
ROWS = Metric("monitor_sql_query_rows", "Rows that the query gives, up to max_rows.")

OUT_OF_RANGE = FindingKind("QueryValueOutOfRange", Severity.P3, None, "A value of the query is above max or below min.")
UNEXPECTED = FindingKind("QueryRowsUnexpected", Severity.P3, None, "The query gave rows where none, or none where some are expected.")

REST = "(other)"
FACT_ROWS = 8


class Config(PluginConfig):
    """Keys of a ``sql_query`` check."""

    query: str = Field(min_length=6, max_length=10_000, description="One SELECT. Tables are written with their schema: public.orders.")
    message: str = Field("", max_length=200, description="What is wrong when it finds something, for a person; else the table's own name.")
    value: str = Field("value", min_length=1, max_length=63, description="The column that is exported, and compared with max and min.")
    labels: tuple[str, ...] = Field((), max_length=5, description="Columns that tell the rows apart: few values, none of them personal.")
    max: float | None = Field(None, description="QueryValueOutOfRange above this.")
    min: float | None = Field(None, description="QueryValueOutOfRange below this.")
    expect: Literal["any", "no rows", "rows"] = Field("any", description="QueryRowsUnexpected when it gives rows, or none.")
    top: int = Field(20, ge=1, le=100, description="So many rows have series and findings of their own; the others are counted.")
    max_rows: int = Field(1_000, ge=1, le=10_000, description="So many rows are read.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        return self


@check(
    "sql_query",
    config=Config,
    metrics=(VALUE, ROWS),
    finds=(OUT_OF_RANGE, UNEXPECTED),
    needs=("dsn",),
    blind="The query fails, takes too long, would change something, or gives no number where one is needed.",
    why="What is normal only you know: orders per hour, rows in a quarantine, the age of an import.",
    privileges="`GRANT SELECT ON` the tables of the query `TO` the role of the service's `dsn`. The query runs in a read-only transaction "
    "that is rolled back, for 3 s at most, or with a `timeout` above 10 s for that less 6 s: it changes no data. "
    "Functions with an effect of their own run all the same "
    "(`pg_terminate_backend`, `pg_reload_conf`): use a role that is neither superuser nor a member of `pg_signal_backend`. What it can "
    "still end are sessions of its own.",
)
async def sql_query(ctx: CheckContext, cfg: Config) -> Observed:
    """Runs one SELECT of the configuration and compares its value with limits, or its rows with what is expected."""
    assert ctx.pg is not None  # needs=("dsn",)
    rows = await ctx.pg.ask(cfg.query, limit=cfg.max_rows)
    return judge(rows, cfg, name=ctx.name, service=ctx.service.name)


def judge(rows: Sequence[Row], cfg: Config, *, name: str, service: str) -> Observed:
    """What the rows mean. Pure. Raises ``CannotLook`` when a wanted column is missing or no number."""
    wrong = one_line(cfg.message or name, limit=200)
    findings: list[Finding] = []
    if (rows and cfg.expect == "no rows") or (not rows and cfg.expect == "rows"):
        facts = {f"row {number}": _shown(row) for number, row in enumerate(rows[:FACT_ROWS], 1)}
        given = many(len(rows), "row") if rows else "no row"
        findings.append(UNEXPECTED(f"{wrong}: the query gave {given} ({service})", facts=facts, value=len(rows)))
    samples = [ROWS(len(rows))]
    if rows and (cfg.value in rows[0] or cfg.max is not None or cfg.min is not None):
        values = _values(rows, cfg, name)
        samples += [VALUE(value, row=label) for label, value in values[: cfg.top]]
        findings += _out_of_range(values, cfg, wrong, service)
    elif not rows and (cfg.max is not None or cfg.min is not None) and not findings and cfg.expect != "no rows":
        raise CannotLook(f'the query of {name} gave no row, so there is nothing to compare: let it give one, or say expect = "no rows"')
    return Observed(tuple(samples), tuple(findings))


def _values(rows: Sequence[Row], cfg: Config, name: str) -> list[tuple[str, float]]:
    """Label and value of each row, in the query's order; equal labels are told apart by their place."""
    missing = [column for column in (cfg.value, *cfg.labels) if column not in rows[0]]
    if missing:
        raise CannotLook(f"the query of {name} gives no column {missing[0]!r}, it gives {', '.join(rows[0])}")
    values: dict[str, float] = {}
    for number, row in enumerate(rows, 1):
        label = one_line("/".join(str(row[column]) for column in cfg.labels), limit=100)
        values[label if label not in values else one_line(f"{label} {number}", limit=110)] = _number(row[cfg.value], cfg.value, name)
    return list(values.items())


def _number(value: Any, column: str, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        kind = "NULL" if value is None else type(value).__name__
        raise CannotLook(f"the query of {name} gives no number in the column {column!r} but {kind}")
    return number


def _out_of_range(values: Sequence[tuple[str, float]], cfg: Config, wrong: str, service: str) -> list[Finding]:
    """The worst first; those beyond the top in one finding."""

    def beyond(value: float) -> float:
        return max(value - cfg.max if cfg.max is not None else -math.inf, cfg.min - value if cfg.min is not None else -math.inf)

    bad = sorted((pair for pair in values if beyond(pair[1]) > 0), key=lambda pair: -beyond(pair[1]))
    limits = (("at least", cfg.min), ("at most", cfg.max))
    allowed = ", ".join(f"{word} {limit:,g}" for word, limit in limits if limit is not None)
    findings = []
    for label, value in bad[: cfg.top]:
        place = f" for {label}" if label else ""
        labels = {"row": label} if label else {}
        findings.append(OUT_OF_RANGE(f"{wrong}: {value:,g}{place} ({service})", labels=labels, facts={"allowed": allowed}, value=value))
    if rest := bad[cfg.top :]:
        facts = {"allowed": allowed} | {label: f"{value:,g}" for label, value in rest[:FACT_ROWS]}
        findings.append(OUT_OF_RANGE(f"{wrong}: {many(len(rest), 'more row')} out of range ({service})", labels={"row": REST}, facts=facts))
    return findings


def _shown(row: Row) -> str:
    return one_line(", ".join(f"{column} = {value}" for column, value in row.items()), limit=200)
