"""The analytics reports: their queries, run on the read host, and their text for the mail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from services.common import Service

REVENUE = """
SELECT event_date, currency, count(*) AS purchases, sum(value) AS revenue
FROM purchase
WHERE tenant_id = %(tenant_id)s AND event_date BETWEEN %(start_date)s AND %(end_date)s
GROUP BY event_date, currency
ORDER BY event_date, currency
"""

TOP_PAGES = """
SELECT page, count(*) AS views, count(DISTINCT user_id) AS visitors
FROM page_view
WHERE tenant_id = %(tenant_id)s AND event_date BETWEEN %(start_date)s AND %(end_date)s
GROUP BY page
ORDER BY views DESC, page
LIMIT %(limit)s
"""

TOP_PAGES_LIMIT = 10
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Period:
    """Both days are included."""

    start_date: date
    end_date: date


async def revenue(service: Service, tenant_id: str, period: Period) -> Rows:
    """Purchases and revenue per day and currency. Raises ``DatabaseUnavailable``."""
    return await _rows(service, REVENUE, tenant_id, period)


async def top_pages(service: Service, tenant_id: str, period: Period, limit: int = TOP_PAGES_LIMIT) -> Rows:
    """The pages looked at most. Raises ``DatabaseUnavailable``."""
    return await _rows(service, TOP_PAGES, tenant_id, period, limit=limit)


async def _rows(service: Service, query: str, tenant_id: str, period: Period, **more: int) -> Rows:
    values = {"tenant_id": tenant_id, "start_date": period.start_date, "end_date": period.end_date, **more}
    async with service.database(read=True) as connection:
        return await (await connection.execute(query, values)).fetchall()


async def render(service: Service, report: str, tenant_id: str, period: Period) -> str:
    """The report (``revenue`` or ``top-pages``) as plain text. Raises ``DatabaseUnavailable``."""
    rows = await (revenue(service, tenant_id, period) if report == "revenue" else top_pages(service, tenant_id, period))
    return f"{report.capitalize()}, {period.start_date} to {period.end_date}\n\n{_table(rows)}\n"


def _table(rows: Rows) -> str:
    if not rows:
        return "No data in this period."
    cells = [[str(name) for name in rows[0]], *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(_line(row, widths, str.ljust) for row in cells)


def _line(row: Sequence[str], widths: Sequence[int], align: Callable[[str, int], str]) -> str:
    return "  ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _text(value: object) -> str:
    return "-" if value is None else str(value)
