"""The tables of the monitor's own state, one definition for SQLite and PostgreSQL.

Times are integers, microseconds since 1970 UTC: exact, comparable and the same in both databases.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)

from monitor.domain.moments import EARLIEST, LATEST
from monitor.errors import StoreError

EPOCH = EARLIEST
MICROSECOND = timedelta(microseconds=1)
_LAST = (LATEST - EPOCH) // MICROSECOND


def micros(moment: datetime) -> int:
    """Microseconds since 1970, as moments are stored. Raises ``StoreError`` for one that would not read back."""
    stored = (moment - EPOCH) // MICROSECOND
    if 0 <= stored <= _LAST:
        return stored
    raise StoreError(f"no moment that can be stored: {moment.isoformat()}")


def moment_of(stored: int) -> datetime:
    """The moment that is stored; whatever wrote one beyond the calendar, the nearest that there is."""
    return EPOCH + (stored if 0 <= stored <= _LAST else min(max(stored, 0), _LAST)) * MICROSECOND


class Moment(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as microseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else micros(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else moment_of(int(value))


metadata = MetaData()
_RowId = BigInteger().with_variant(Integer, "sqlite")

alerts = Table(
    "alerts",
    metadata,
    Column("fingerprint", String(16), primary_key=True),
    Column("instance", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("service", Text, nullable=False, server_default=""),
    Column("home", Text, nullable=False, server_default=""),
    Column("fells", Boolean, nullable=False, server_default=false()),
    Column("doubts", Boolean, nullable=False, server_default=false()),
    Column("labels", JSON, nullable=False),
    Column("code", String(32)),
    Column("severity", Integer, nullable=False),
    Column("summary", Text, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("bad_runs", Integer, nullable=False),
    Column("good_runs", Integer, nullable=False),
    Column("pending_since", Moment, nullable=False),
    Column("firing_since", Moment),
    Column("resolved_at", Moment),
    Column("good_since", Moment),
    Column("annotations", JSON, nullable=False, server_default="[]"),
    Column("generator_url", Text, nullable=False, server_default=""),
    Column("ends_at", Moment),
    Column("ends_unsaid", Boolean, nullable=False, server_default=false()),
    Column("updated_at", Moment),
    Index("alerts_live_end", "ends_at", sqlite_where=text("state <> 'resolved'"), postgresql_where=text("state <> 'resolved'")),
    Index("alerts_live_instance", "instance", sqlite_where=text("state <> 'resolved'"), postgresql_where=text("state <> 'resolved'")),
    Index("alerts_live_group", "group_key", sqlite_where=text("state <> 'resolved'"), postgresql_where=text("state <> 'resolved'")),
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("group_key", Text, nullable=False),
    Column("code", String(32)),
    Column("service", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("title", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("first_step", Text, nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("chain", JSON, nullable=False),
    Column("chain_since", Moment, nullable=False),
    Column("told", JSON, nullable=False),
    Column("step", Integer, nullable=False),
    Column("next_escalation_at", Moment),
    Column("acked_at", Moment),
    Column("acked_by", Text),
    Column("resolved_at", Moment),
    Column("response", JSON, nullable=False, server_default="{}"),
    Column("asked", Integer, nullable=False, server_default="1"),
    Column("muted", JSON, nullable=False, server_default="[]"),
    Column("muted_at", Moment),
    Column("breached_at", Moment),
    Column("ack_expires_at", Moment),
    Column("remind_at", Moment),
    Column("wake_at", Moment),
    # the promise "once": never two unresolved incidents of one group, whoever writes
    Index(
        "incidents_one_open_per_group",
        "group_key",
        unique=True,
        sqlite_where=text("state <> 'resolved'"),
        postgresql_where=text("state <> 'resolved'"),
    ),
    Index("incidents_opened", "opened_at"),
    Index("incidents_wake", "wake_at"),
)

silences = Table(
    "silences",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("matchers", JSON, nullable=False),
    Column("starts_at", Moment, nullable=False),
    Column("ends_at", Moment, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Index("silences_ends", "ends_at"),
)

obeyed = Table(
    "obeyed",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("until", Moment, nullable=False),
    Index("obeyed_until", "until"),
)

timeline = Table(
    "timeline",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("incident_id", String(32), nullable=False, index=True),
    Column("at", Moment, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("text", Text, nullable=False),
    Column("actor", Text, nullable=False),
)

PENDING = "state = 'pending'"
UNFINISHED = "state IN ('pending', 'dead')"
LEASED = "lease_until IS NOT NULL"
"""Conditions of partial indexes. Queries spell them with the same literals: a bound value would not be seen to imply them."""

outbox = Table(
    "outbox",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("incident_id", String(32), nullable=False),
    Column("transition", String(16), nullable=False),
    Column("channel", Text, nullable=False),
    Column("dedup_key", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # pending, sent, dead, superseded
    Column("created_at", Moment, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Moment, nullable=False),
    Column("lease_until", Moment),
    Column("lease_owner", Text),
    Column("finished_at", Moment),
    Column("last_error", Text),
    Column("receipt", JSON),
    Column("fallback_at", Moment),
    Column("digest", Text),  # of the sending it is told in together with others: "digest-…", or "digest-…/…" for what follows
    Index("outbox_due", "next_attempt_at", "channel", sqlite_where=text(PENDING), postgresql_where=text(PENDING)),
    Index("outbox_unfinished", "channel", sqlite_where=text(UNFINISHED), postgresql_where=text(UNFINISHED)),
    Index("outbox_leased", "lease_until", sqlite_where=text(LEASED), postgresql_where=text(LEASED)),
    Index("outbox_digest", "digest", sqlite_where=text("digest IS NOT NULL"), postgresql_where=text("digest IS NOT NULL")),
    Index("outbox_by_key", "incident_id", "channel", "id"),
)

run_hours = Table(
    "run_hours",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("hour", Moment, primary_key=True),
    Column("check_name", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("ok", Integer, nullable=False),
    Column("found", Integer, nullable=False),
    Column("blind", Integer, nullable=False),
    Column("duration_sum_s", Float, nullable=False),
    Column("duration_max_s", Float, nullable=False),
)

stretches = Table(
    "stretches",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("first_at", Moment, primary_key=True),
    Column("last_at", Moment, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("findings", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("early", Text, nullable=False),
    Column("shape", String(16), nullable=False),
    Column("starts", Boolean, nullable=False),
    Index("stretches_last", "last_at"),
)

kept = Table(
    "kept",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("shape", String(16), nullable=False),
    Column("at", Moment, nullable=False),
    Column("content", Text, nullable=False),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("name", Text, primary_key=True),
    Column("known_since", Moment, nullable=False),
    Column("success_at", Moment),
    Column("started_at", Moment),
    Column("failed_at", Moment),
    Column("exit_code", Integer),
    Column("duration_s", Float),
    Column("body", Text, nullable=False, server_default=""),
)

reports = Table(
    "reports",
    metadata,
    Column("period", Text, primary_key=True),
    Column("state", String(16), nullable=False),  # due, sent
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Moment, nullable=False),
    Column("sent_at", Moment),
    Column("last_error", Text),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    Column("at", Moment, nullable=False),
    Column("plan", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("detail", Text, nullable=False),
)
