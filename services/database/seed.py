"""The demo tenant and a week of its events, so that the first report is not empty. Repeating it changes nothing twice."""

from collections.abc import Mapping
from datetime import UTC, datetime

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

DEMO_TENANT = "demo"
SEED_DAYS = 7

TENANT = """
INSERT INTO tenant_config (id, name, email_config) VALUES (%(id)s, %(name)s, %(email_config)s)
ON CONFLICT (id) DO UPDATE SET email_config = EXCLUDED.email_config
"""

# The days before today, six views an hour, of which one in three fills a cart and one in six buys.
EVENTS = """
WITH events AS (
    SELECT at, n, 'u' || n %% 97 AS user_id, 's' || n / 4 AS session_id, '/product/' || n %% 12 AS page
    FROM generate_series(%(today)s::timestamptz - make_interval(days => %(days)s), %(today)s::timestamptz - interval '1 second', '10 min')
         WITH ORDINALITY AS series (at, n)
    WHERE at > coalesce((SELECT max(event_timestamp) FROM page_view WHERE tenant_id = %(tenant)s AND %(again)s), '-infinity')
      AND (%(again)s OR NOT EXISTS (SELECT 1 FROM page_view WHERE tenant_id = %(tenant)s))
), views AS (
    INSERT INTO page_view (tenant_id, event_date, event_timestamp, user_id, session_id, page)
    SELECT %(tenant)s, (at AT TIME ZONE 'UTC')::date, at, user_id, session_id, page FROM events
), carts AS (
    INSERT INTO add_to_cart (tenant_id, event_date, event_timestamp, user_id, session_id, page, value, currency)
    SELECT %(tenant)s, (at AT TIME ZONE 'UTC')::date, at, user_id, session_id, page, 10 + n %% 80, 'EUR' FROM events WHERE n %% 3 = 0
), bought AS (
    INSERT INTO purchase (tenant_id, event_date, event_timestamp, user_id, session_id, page, value, currency)
    SELECT %(tenant)s, (at AT TIME ZONE 'UTC')::date, at, user_id, session_id, '/checkout/thanks', 10 + n %% 80, 'EUR'
    FROM events WHERE n %% 6 = 0
)
SELECT count(*) FROM events
"""


def seed(dsn: str, *, tenant_id: str = DEMO_TENANT, email_config: Mapping[str, object] | None = None, again: bool = False) -> int:
    """Make the tenant (or give it this mail server) and a week of events where it has none; returns the page views added.

    ``again`` adds what is missing after the newest event, too.
    """
    mail = email_config or {"server": "localhost", "port": 1025, "from": "reports@shop.example"}
    with psycopg.connect(make_conninfo(dsn, connect_timeout=5)) as connection:
        connection.execute(TENANT, {"id": tenant_id, "name": f"{tenant_id.capitalize()} shop", "email_config": Jsonb(dict(mail))})
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        row = connection.execute(EVENTS, {"tenant": tenant_id, "today": today, "days": SEED_DAYS, "again": again}).fetchone()
        assert row is not None
        return int(row[0])
