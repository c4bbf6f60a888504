"""The events that the BigQuery-shaped endpoint holds: made up, but always the same for a tenant and a day.

Owns the table ``events`` and what a query sees of it: real SQL, run by SQLite over the days that the query's parameters name.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from random import Random

COLUMNS = {
    "event_id": "STRING",
    "tenant_id": "STRING",
    "event_date": "DATE",
    "event_name": "STRING",
    "event_timestamp": "TIMESTAMP",
    "user_id": "STRING",
    "session_id": "STRING",
    "page": "STRING",
    "value": "FLOAT",
    "currency": "STRING",
}
DAYS_MAX = 400
STEPS_MAX = 5_000_000
"""Instructions of SQLite's virtual machine that one query may take."""

_PAGES = ("/", "/search", "/category/shoes", "/category/coats", "/product/1001", "/product/1002", "/product/1003")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00")
_TABLE = re.compile(r"\b(FROM|JOIN)\s+(`[^`]+`|[\w-]+\.[\w.-]+)", re.IGNORECASE)
_UNNEST = re.compile(r"UNNEST\s*\(\s*@(\w+)\s*\)", re.IGNORECASE)

Value = str | int | float | None


class QueryError(ValueError):
    """The query cannot be run; the message is what BigQuery's ``invalidQuery`` would carry."""


@dataclass(frozen=True, slots=True)
class Result:
    """``schema`` is (name, BigQuery type) per column; instants and days are ISO text."""

    schema: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Event:
    event_id: str
    tenant_id: str
    event_date: str
    event_name: str
    event_timestamp: str
    user_id: str
    session_id: str
    page: str
    value: float | None
    currency: str | None


def instant(moment: datetime) -> str:
    """A TIMESTAMP as text of fixed width: it sorts, and its type can be told from its look."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00:00")


def events_of(tenant_id: str, day: date) -> Iterator[Event]:
    """One day of a tenant's shop: some dozen sessions that look at pages, put things into the cart, and sometimes buy."""
    digest = sha256(f"{tenant_id}|{day.isoformat()}".encode()).hexdigest()
    random = Random(digest)  # noqa: S311 - the same shop every time, not a secret
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    number = 0
    for session in range(random.randint(12, 24)):
        moment = midnight + timedelta(seconds=random.randint(0, 82_000))
        user = f"u{random.randint(1, 400):04d}"
        names = ["page_view"] * random.randint(1, 5)
        if random.random() < 0.5:
            names.append("add_to_cart")
            if random.random() < 0.5:
                names.append("purchase")
        for name in names:
            moment += timedelta(seconds=random.randint(5, 200), microseconds=random.randint(0, 999_999))
            number += 1
            yield Event(
                event_id=f"{digest[:12]}-{number:04d}",
                tenant_id=tenant_id,
                event_date=day.isoformat(),
                event_name=name,
                event_timestamp=instant(moment),
                user_id=user,
                session_id=f"{digest[:8]}{session:03d}",
                page="/checkout/thanks" if name == "purchase" else random.choice(_PAGES),
                value=None if name == "page_view" else round(random.uniform(5, 400), 2),
                currency=None if name == "page_view" else "EUR",
            )


def _texts(parameters: Mapping[str, Value | Sequence[Value]]) -> Iterator[str]:
    for value in parameters.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, Sequence):
            yield from (item for item in value if isinstance(item, str))


def _days(parameters: Mapping[str, Value | Sequence[Value]], today: date) -> list[date]:
    """The days between the first and the last one that the parameters name; the last three when they name none."""
    named = [date.fromisoformat(text[:10]) for text in _texts(parameters) if _DAY.fullmatch(text) or _INSTANT.fullmatch(text)]
    # Data of the future does not exist yet, and a day of slack covers exclusive ends and instants.
    first = min(named, default=today - timedelta(days=2))
    last = min(max(named, default=today), today)
    if (last - first).days > DAYS_MAX:
        raise QueryError(f"Query exceeds the limit of {DAYS_MAX} days")
    return [first + timedelta(days=offset) for offset in range((last - first).days + 1)]


def _type_of(name: str, values: Sequence[Value]) -> str:
    if name in COLUMNS:
        return COLUMNS[name]
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int) for value in present):
        return "INTEGER"
    if present and all(isinstance(value, int | float) for value in present):
        return "FLOAT"
    texts = [str(value) for value in present]
    if texts and all(_INSTANT.fullmatch(text) for text in texts):
        return "TIMESTAMP"
    if texts and all(_DAY.fullmatch(text) for text in texts):
        return "DATE"
    return "STRING"


def _only_reading(action: int, *_: object) -> int:
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY


def _table(connection: sqlite3.Connection, tenants: Sequence[str], days: Sequence[date]) -> None:
    names = ", ".join(COLUMNS)
    marks = ", ".join("?" * len(COLUMNS))
    connection.execute(f"CREATE TABLE events ({names})")
    events = (event for tenant in tenants for day in days for event in events_of(tenant, day))
    connection.executemany(
        f"INSERT INTO events VALUES ({marks})",  # noqa: S608 - question marks only
        (tuple(getattr(event, column) for column in COLUMNS) for event in events),
    )


def run_query(sql: str, parameters: Mapping[str, Value | Sequence[Value]], *, today: date) -> Result:
    """Run standard SQL with named parameters over the table ``events``, whatever project and data set its name carries.

    The tenant is the parameter ``tenant_id``. Raises ``QueryError`` for what SQLite's dialect does not share with BigQuery.
    """
    from_events = _TABLE.sub(r"\1 events", sql)
    runnable, values = _flat(from_events, parameters)
    if not runnable.strip():
        raise QueryError("Syntax error: Unexpected end of script")
    connection = sqlite3.connect(":memory:")
    try:
        if from_events != sql:
            tenant = parameters.get("tenant_id")
            _table(connection, [str(tenant)] if tenant else ["default"], _days(parameters, today))
        connection.create_function("DATE", 1, lambda text: text and str(text)[:10], deterministic=True)
        connection.create_function("TIMESTAMP", 1, _as_instant, deterministic=True)
        connection.set_authorizer(_only_reading)
        connection.set_progress_handler(lambda: 1, STEPS_MAX)
        cursor = connection.execute(runnable, values)
        rows = cursor.fetchall()
    except (sqlite3.Error, ValueError) as exc:
        raise QueryError(str(exc)) from exc
    finally:
        connection.close()
    names = [column[0] for column in cursor.description or ()]
    schema = tuple((name, _type_of(name, [row[place] for row in rows])) for place, name in enumerate(names))
    return Result(schema, tuple(rows))


def _flat(sql: str, parameters: Mapping[str, Value | Sequence[Value]]) -> tuple[str, dict[str, Value]]:
    """Spell out ``IN UNNEST(@names)`` as ``IN (@names__0, @names__1)``: SQLite binds no arrays."""
    values: dict[str, Value] = {}
    for name, value in parameters.items():
        if isinstance(value, str | int | float | None):
            values[name] = value
        else:
            values.update({f"{name}__{place}": item for place, item in enumerate(value)})

    def spelled(found: re.Match[str]) -> str:
        items = parameters.get(found[1])
        if items is None or isinstance(items, str | int | float):
            raise QueryError(f"Query parameter '{found[1]}' is not an array")
        return "(" + ", ".join(f"@{found[1]}__{place}" for place in range(len(items))) + ")"

    return _UNNEST.sub(spelled, sql), values


def _as_instant(text: object) -> str | None:
    return None if text is None else instant(datetime.fromisoformat(str(text)).replace(tzinfo=UTC))
