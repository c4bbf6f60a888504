"""The transactional outbox: rows claimed with a lease, in order per (incident, channel), finished only after the send."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, case, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from monitor.domain import Link, Notification, Receipt, Severity, TimelineEntry, Transition
from monitor.store.database import Database
from monitor.store.rows import incident_of, receipt_of, receipt_row
from monitor.store.saving import OPENERS
from monitor.store.schema import incidents, outbox, timeline

NEVER_TRIGGERED = "nothing to follow up: the trigger never arrived on this channel"


@dataclass(frozen=True, slots=True)
class ChannelQueue:
    """How one channel's part of the outbox stands."""

    channel: str
    pending: int
    dead: int
    oldest: datetime | None
    """When the oldest pending row was decided."""
    attempts: int
    """Most attempts made so far on a pending row."""
    last_error: str | None
    newest_dead: datetime | None = None
    """When a row was last given up on."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A row that tells of something wrong and has not reached anybody."""

    id: int
    incident_id: str
    transition: Transition
    channel: str
    state: str
    """pending, or dead when it was given up on."""
    created_at: datetime
    attempts: int
    next_attempt_at: datetime
    last_error: str | None


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self, owner: str, now: datetime, *, lease_s: float, limit: int, skip: frozenset[str], external_url: str
    ) -> list[Notification]:
        """Lease due rows, P1 first: never a row whose predecessor on the same (incident, channel) is unfinished.

        ``skip`` names channels that have no room now. A follow-up whose trigger never arrived is put aside.
        """
        due = and_(
            outbox.c.state == "pending",
            outbox.c.next_attempt_at <= now,
            or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= now),
            outbox.c.channel.not_in(skip),
            ~_blocked(),
        )
        query = select(outbox).where(due).order_by(outbox.c.severity, outbox.c.id).limit(limit)
        claimed: list[Notification] = []
        with self._database.write() as connection:
            for row in connection.execute(query).mappings().all():
                first = _first_receipt(connection, row)
                if first is None and row["transition"] not in OPENERS:
                    self._finish(connection, row["id"], now, {"state": "superseded", "last_error": NEVER_TRIGGERED})
                    continue
                lease = {"lease_owner": owner, "lease_until": now + timedelta(seconds=lease_s), "attempts": outbox.c.attempts + 1}
                connection.execute(update(outbox).where(outbox.c.id == row["id"]).values(lease))
                claimed.append(_notification(connection, row, first, external_url))
        return claimed

    def sent(self, notification: Notification, owner: str, receipt: Receipt, now: datetime) -> bool:
        """Mark a row delivered. False when the lease was lost meanwhile and somebody else finished it."""
        with self._database.write() as connection:
            values = {"state": "sent", "receipt": receipt_row(receipt), "last_error": None}
            done = self._finish(connection, notification.id, now, values, owner)
            if done:
                attempt = "" if notification.attempts == 1 else f", attempt {notification.attempts}"
                text = f"{notification.transition.value} delivered to {notification.channel}{attempt}"
                _note(connection, notification, now, "delivered", text)
            return done

    def retry(self, notification: Notification, owner: str, reason: str, at: datetime) -> None:
        """Give a row back for another attempt at that time."""
        values = {"next_attempt_at": at, "lease_until": None, "lease_owner": None, "last_error": reason}
        with self._database.write() as connection:
            connection.execute(update(outbox).where(_mine(notification.id, owner)).values(values))

    def bury(self, notification: Notification, owner: str, reason: str, now: datetime) -> None:
        """Give up on a row: it stays visible as a dead letter, and the incident's timeline says so."""
        with self._database.write() as connection:
            if self._finish(connection, notification.id, now, {"state": "dead", "last_error": reason}, owner):
                text = f"{notification.transition.value} could not be delivered to {notification.channel}: {reason}"
                _note(connection, notification, now, "delivery-failed", text)

    def owners(self) -> tuple[str, ...]:
        """Everybody who holds a lease now."""
        query = select(outbox.c.lease_owner).where(outbox.c.state == "pending", outbox.c.lease_owner.is_not(None)).distinct()
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def release(self, owner: str) -> None:
        """Give back everything leased by an owner that stops."""
        with self._database.write() as connection:
            values = {"lease_until": None, "lease_owner": None}
            connection.execute(update(outbox).where(outbox.c.state == "pending", outbox.c.lease_owner == owner).values(values))

    def queues(self) -> tuple[ChannelQueue, ...]:
        """Every channel with pending or dead rows."""
        pending = outbox.c.state == "pending"
        newest_error = func.max(case((outbox.c.last_error.is_not(None), outbox.c.last_error), else_=None))
        query = (
            select(
                outbox.c.channel,
                func.count(case((pending, 1))).label("pending"),
                func.count(case((outbox.c.state == "dead", 1))).label("dead"),
                func.min(case((pending, outbox.c.created_at))).label("oldest"),
                func.coalesce(func.max(case((pending, outbox.c.attempts))), 0).label("attempts"),
                newest_error.label("last_error"),
                func.max(case((outbox.c.state == "dead", outbox.c.finished_at))).label("newest_dead"),
            )
            .where(or_(pending, outbox.c.state == "dead"))
            .group_by(outbox.c.channel)
            .order_by(outbox.c.channel)
        )
        with self._database.read() as connection:
            return tuple(ChannelQueue(**dict(row)) for row in connection.execute(query).mappings())

    def undelivered(self, *, limit: int = 1000) -> tuple[Undelivered, ...]:
        """Everything that waits or was given up on, the oldest first."""
        return self._undelivered(outbox.c.state.in_(("pending", "dead")), limit)

    def to_reroute(self, channel: str, before: datetime, *, limit: int = 100) -> tuple[Undelivered, ...]:
        """Rows of a channel that failed, were decided before that moment or given up on, and were not handed to another channel yet."""
        failed = or_(outbox.c.state == "dead", and_(outbox.c.state == "pending", outbox.c.created_at <= before, outbox.c.attempts > 0))
        opens = outbox.c.transition.in_(OPENERS)
        return self._undelivered(and_(outbox.c.channel == channel, failed, opens, outbox.c.fallback_at.is_(None)), limit)

    def revive(self, row_id: int | None, now: datetime) -> int:
        """Try one row again now, or with None all that wait or were given up on. Returns how many.

        Not what is being sent now, and no beginning of what is over: nobody would hear its end.
        """
        over = select(incidents.c.id).where(incidents.c.resolved_at.is_not(None))
        dead = and_(outbox.c.state == "dead", or_(outbox.c.transition.not_in(OPENERS), outbox.c.incident_id.not_in(over)))
        waits = and_(outbox.c.state == "pending", or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= now))
        chosen = or_(dead, waits) if row_id is None else and_(or_(dead, waits), outbox.c.id == row_id)
        values = {"state": "pending", "next_attempt_at": now, "finished_at": None, "lease_until": None, "lease_owner": None}
        with self._database.write() as connection:
            return connection.execute(update(outbox).where(chosen).values(values)).rowcount

    def _undelivered(self, where: Any, limit: int) -> tuple[Undelivered, ...]:
        names = ("id", "incident_id", "channel", "state", "created_at", "attempts", "next_attempt_at", "last_error", "transition")
        query = select(*(outbox.c[name] for name in names)).where(where).order_by(outbox.c.id).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(Undelivered(**{**row, "transition": Transition(row["transition"])}) for row in rows)

    def asked(self, since: datetime) -> dict[tuple[Severity, str], int]:
        """How often each channel was asked to take an incident since that moment, by severity: what is delivered, reminders included."""
        kinds = (outbox.c.severity, outbox.c.channel)
        delivered = and_(outbox.c.state == "sent", outbox.c.transition.in_(OPENERS), outbox.c.finished_at >= since)
        with self._database.read() as connection:
            rows = connection.execute(select(*kinds, func.count()).where(delivered).group_by(*kinds))
            return {(Severity(severity), channel): count for severity, channel, count in rows}

    def untried_s(self, now: datetime) -> float:
        """For how long the oldest row that may be sent has been due without an attempt; 0 when there is none."""
        query = select(func.min(outbox.c.next_attempt_at, type_=outbox.c.next_attempt_at.type)).where(
            outbox.c.state == "pending", or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= now), ~_blocked()
        )
        with self._database.read() as connection:
            oldest: datetime | None = connection.execute(query).scalar()
        return 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())

    def next_due(self, skip: frozenset[str] = frozenset()) -> datetime | None:
        """When the next pending row may be tried, or None when nothing waits; rows of the channels in ``skip`` do not count."""
        later: Any = func.max if self._database.is_sqlite else func.greatest
        ready = later(outbox.c.next_attempt_at, func.coalesce(outbox.c.lease_until, outbox.c.next_attempt_at))
        query = select(func.min(ready, type_=outbox.c.next_attempt_at.type)).where(
            outbox.c.state == "pending", outbox.c.channel.not_in(skip), ~_blocked()
        )
        with self._database.read() as connection:
            due: datetime | None = connection.execute(query).scalar()
            return due

    def _finish(self, connection: Connection, row_id: int, now: datetime, values: dict[str, Any], owner: str | None = None) -> bool:
        where = and_(outbox.c.id == row_id, outbox.c.state == "pending") if owner is None else _mine(row_id, owner)
        changes = {"finished_at": now, "lease_until": None, "lease_owner": None, **values}
        return connection.execute(update(outbox).where(where).values(changes)).rowcount == 1


def _blocked() -> Any:
    """Whether an earlier row of the same (incident, channel) is unfinished."""
    earlier = aliased(outbox)
    same = (earlier.c.incident_id == outbox.c.incident_id, earlier.c.channel == outbox.c.channel)
    return select(earlier.c.id).where(*same, earlier.c.id < outbox.c.id, earlier.c.state == "pending").exists()


def _mine(row_id: int, owner: str) -> Any:
    return and_(outbox.c.id == row_id, outbox.c.lease_owner == owner, outbox.c.state == "pending")


def _first_receipt(connection: Connection, row: Any) -> Receipt | None:
    query = (
        select(outbox.c.receipt)
        .where(outbox.c.incident_id == row["incident_id"], outbox.c.channel == row["channel"], outbox.c.state == "sent")
        .order_by(outbox.c.id)
        .limit(1)
    )
    return receipt_of(connection.execute(query).scalar())


def _notification(connection: Connection, row: Any, first: Receipt | None, external_url: str) -> Notification:
    found = connection.execute(select(incidents).where(incidents.c.id == row["incident_id"])).mappings().one()
    incident = incident_of(found)
    return Notification(
        id=row["id"],
        incident=incident,
        transition=Transition(row["transition"]),
        channel=row["channel"],
        dedup_key=row["dedup_key"],
        reason=row["reason"],
        created_at=row["created_at"],
        attempts=row["attempts"] + 1,
        links=(Link("Incident", f"{external_url}/incidents/{incident.id}"),),
        first_receipt=first,
    )


def _note(connection: Connection, notification: Notification, now: datetime, kind: str, text: str) -> None:
    entry = TimelineEntry(notification.incident.id, now, kind, text)
    row = {"incident_id": entry.incident_id, "at": entry.at, "kind": entry.kind, "text": entry.text, "actor": entry.actor}
    connection.execute(insert(timeline).values(row))
