"""The transactional outbox: rows claimed with a lease, in order per (incident, channel), finished only after the send."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Text, and_, bindparam, case, cast, func, insert, literal, or_, select, text, update

from monitor.domain import Digest, IncidentState, Receipt, Severity, Transition
from monitor.store.claims import IS_LEASED, IS_PENDING, Claim, Claimant, Sending, Voice, claim, is_blocked, is_free
from monitor.store.database import Database
from monitor.store.rows import receipt_row
from monitor.store.saving import OPENERS
from monitor.store.schema import UNFINISHED, incidents, outbox, timeline


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
    digest: str | None = None
    """The digest it is told in together with others."""


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, who: Claimant, voices: Mapping[str, Voice], otherwise: Voice) -> Claim:
        """Lease what each channel says next, P1 first: never a row whose predecessor on the same (incident, channel) is unfinished.

        A follow-up whose trigger never arrived is put aside.
        """
        with self._database.write() as connection:
            return claim(connection, who, voices, otherwise)

    def sent(self, sending: Sending, owner: str, receipt: Receipt, now: datetime) -> bool:
        """Mark it delivered, all rows of a digest at once. False when the lease was lost meanwhile and somebody else finished it."""
        again = "" if sending.attempts == 1 else f", attempt {sending.attempts}"
        together = f" in a digest of {len(sending.items)}" if isinstance(sending, Digest) else ""
        but = f", but {receipt.note}" if receipt.note else ""
        values = {"state": "sent", "receipt": receipt_row(receipt), "last_error": None}
        return self._finish(sending, owner, now, values, "delivered", f" delivered to {sending.channel}{together}{again}{but}")

    def retry(self, sending: Sending, owner: str, reason: str, at: datetime) -> None:
        """Give it back for another attempt at that time."""
        values = {"next_attempt_at": at, "lease_until": None, "lease_owner": None, "last_error": reason}
        with self._database.write() as connection:
            connection.execute(update(outbox).where(_mine(sending, owner)).values(values))

    def bury(self, sending: Sending, owner: str, reason: str, now: datetime) -> None:
        """Give up on it: its rows stay visible as dead letters, and each incident's timeline says so."""
        values = {"state": "dead", "last_error": reason}
        self._finish(sending, owner, now, values, "delivery-failed", f" could not be delivered to {sending.channel}: {reason}")

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
            .where(text(f"outbox.{UNFINISHED}"))
            .group_by(outbox.c.channel)
            .order_by(outbox.c.channel)
        )
        with self._database.read() as connection:
            return tuple(ChannelQueue(**dict(row)) for row in connection.execute(query).mappings())

    def undelivered(self, *, incident_id: str | None = None, limit: int = 1000) -> tuple[Undelivered, ...]:
        """Everything that waits or was given up on, of one incident or of all, the oldest first."""
        unfinished = text(f"outbox.{UNFINISHED}")
        return self._undelivered(unfinished if incident_id is None else and_(unfinished, outbox.c.incident_id == incident_id), limit)

    def digests_of(self, incident_id: str) -> tuple[tuple[str, str, int], ...]:
        """In which digests an incident was told: channel, the digest's key, and how many incidents were in it."""
        mine = select(outbox.c.channel, outbox.c.digest, func.min(outbox.c.id).label("at"))
        mine = mine.where(outbox.c.incident_id == incident_id, outbox.c.digest.is_not(None), outbox.c.state == "sent")
        told = mine.group_by(outbox.c.channel, outbox.c.digest).subquery()
        same = and_(outbox.c.channel == told.c.channel, outbox.c.digest == told.c.digest, outbox.c.state == "sent")
        query = select(told.c.channel, told.c.digest, func.count()).join(outbox, same)
        query = query.group_by(told.c.channel, told.c.digest, told.c.at).order_by(told.c.at)
        with self._database.read() as connection:
            return tuple((channel, key, count) for channel, key, count in connection.execute(query))

    def members(self, key: str) -> tuple[str, ...]:
        """Ids of the incidents that are, or are being, told in a digest; none when there is no such digest."""
        query = select(outbox.c.incident_id).where(outbox.c.digest == key).distinct()
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def to_reroute(self, channel: str, before: datetime, *, limit: int = 1000) -> tuple[Undelivered, ...]:
        """Rows of a channel that failed, were decided before that moment or given up on, and were not handed to another channel yet."""
        failed = or_(outbox.c.state == "dead", and_(outbox.c.state == "pending", outbox.c.created_at <= before, outbox.c.attempts > 0))
        opens = outbox.c.transition.in_(OPENERS)
        return self._undelivered(and_(outbox.c.channel == channel, failed, opens, outbox.c.fallback_at.is_(None)), limit)

    def revive(self, row: int | str | None, now: datetime) -> int:
        """Try again now one row, a digest by its key, or with None all that wait or were given up on. Returns how many rows.

        A row that is told in a digest goes with the whole of it. Not what is being sent now, and no beginning of what is over: nobody
        would hear its end.
        """
        over = select(incidents.c.id).where(incidents.c.resolved_at.is_not(None))
        dead = and_(outbox.c.state == "dead", or_(outbox.c.transition.not_in(OPENERS), outbox.c.incident_id.not_in(over)))
        able = or_(dead, and_(outbox.c.state == "pending", is_free(now)))
        if isinstance(row, str):
            able = and_(able, outbox.c.digest == row)
        elif row is not None:
            whole = select(outbox.c.digest).where(outbox.c.id == row, outbox.c.digest.is_not(None))
            able = and_(able, or_(outbox.c.id == row, outbox.c.digest.in_(whole.scalar_subquery())))
        values = {"state": "pending", "next_attempt_at": now, "finished_at": None, "lease_until": None, "lease_owner": None}
        with self._database.write() as connection:
            return connection.execute(update(outbox).where(able).values(values)).rowcount

    def _undelivered(self, where: Any, limit: int) -> tuple[Undelivered, ...]:
        names = ("id", "incident_id", "channel", "state", "created_at", "attempts", "next_attempt_at", "last_error", "transition", "digest")
        query = select(*(outbox.c[name] for name in names)).where(where).order_by(outbox.c.id).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(Undelivered(**{**row, "transition": Transition(row["transition"])}) for row in rows)

    def asked(self, since: datetime) -> dict[tuple[Severity, str], int]:
        """How often each channel was asked to take an incident since that moment, by severity: what is delivered, reminders included.

        A digest asks once, whatever is in it.
        """
        kinds = (outbox.c.severity, outbox.c.channel)
        once = func.count(func.coalesce(outbox.c.digest, cast(outbox.c.id, Text)).distinct())
        delivered = and_(outbox.c.state == "sent", outbox.c.transition.in_(OPENERS), outbox.c.finished_at >= since)
        with self._database.read() as connection:
            rows = connection.execute(select(*kinds, once).where(delivered).group_by(*kinds))
            return {(Severity(severity), channel): count for severity, channel, count in rows}

    def untried_s(self, now: datetime) -> float:
        """For how long the oldest row that may be sent has been due without an attempt; 0 when there is none."""
        with self._database.read() as connection:
            oldest: datetime | None = connection.execute(_soonest(is_free(now))).scalar()
        return 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())

    def unheard_s(self, now: datetime) -> float:
        """For how long nobody was reached about an incident that asks for somebody; 0 when there is none.

        Counted from the oldest call that waits or was given up on, of an incident of P1 or P2 that is open and not muted, and of which
        nothing was delivered since. What stands still below P2 is a failing channel, which is such an incident itself.
        """
        row, later = outbox.c, outbox.alias("later")
        told = (later.c.incident_id == row.incident_id, later.c.finished_at >= row.created_at, text("later.state || '' = 'sent'"))
        asks = (incidents.c.id == row.incident_id, incidents.c.state == IncidentState.OPEN.value, incidents.c.muted_at.is_(None))
        # counted for each row by its indexes, as in is_blocked: joined, ten thousand of a storm took PostgreSQL ten seconds
        asking, heard = (select(func.count()).where(*where).correlate(outbox).scalar_subquery() for where in (asks, told))
        calls = (text(f"outbox.{UNFINISHED}"), row.transition.in_(OPENERS), row.severity <= int(Severity.P2), asking > 0, heard == 0)
        oldest = select(func.min(row.created_at, type_=row.created_at.type)).where(*calls)
        with self._database.read() as connection:
            since: datetime | None = connection.execute(oldest).scalar()
        return 0.0 if since is None else max(0.0, (now - since).total_seconds())

    def next_due(self, skip: frozenset[str] = frozenset()) -> datetime | None:
        """When the next pending row may be tried, or None when nothing waits; rows of the channels in ``skip`` do not count."""
        given = {"skip": sorted(skip)}
        with self._database.read() as connection:
            free = connection.execute(_SOONEST_FREE, given).scalar()
            held: datetime | None = connection.execute(_HELD_ON_SQLITE if self._database.is_sqlite else _HELD, given).scalar()
        return min((at for at in (free, held) if at is not None), default=None)

    def _finish(self, sending: Sending, owner: str, now: datetime, values: dict[str, Any], kind: str, words: str) -> bool:
        """Rows and timelines, a statement each however many there are. ``words`` follow the transition's name."""
        mine = _mine(sending, owner)
        said = select(
            outbox.c.incident_id,
            literal(now, timeline.c.at.type),
            literal(kind, timeline.c.kind.type),
            outbox.c.transition + literal(words, timeline.c.text.type),
            literal("monitor", timeline.c.actor.type),
        )
        with self._database.write() as connection:
            into = insert(timeline).from_select(["incident_id", "at", "kind", "text", "actor"], said.where(mine).order_by(outbox.c.id))
            connection.execute(into)
            changes = {"finished_at": now, "lease_until": None, "lease_owner": None, **values}
            return connection.execute(update(outbox).where(mine).values(changes)).rowcount > 0


def _soonest(*where: Any) -> Select[Any]:
    """When the first of these pending rows is due. Walks the index and stops at the first that no other one holds up."""
    return select(outbox.c.next_attempt_at).where(IS_PENDING, *where, ~is_blocked()).order_by(outbox.c.next_attempt_at).limit(1)


def _held(later: Any) -> Select[Any]:
    """When the first of the leased rows may be tried again."""
    ready = later(outbox.c.next_attempt_at, outbox.c.lease_until)
    return select(func.min(ready, type_=outbox.c.lease_until.type)).where(IS_LEASED, IS_PENDING, _NOT_SKIPPED, ~is_blocked())


# made once: delivery asks after every sending
_NOT_SKIPPED = outbox.c.channel.not_in(bindparam("skip", expanding=True))
_SOONEST_FREE = _soonest(outbox.c.lease_until.is_(None), _NOT_SKIPPED)
_HELD, _HELD_ON_SQLITE = _held(func.greatest), _held(func.max)


def _mine(sending: Sending, owner: str) -> Any:
    """The rows of a sending that are still leased to this owner."""
    if isinstance(sending, Digest):
        rows = and_(outbox.c.digest == sending.key, outbox.c.channel == sending.channel)
    else:
        rows = outbox.c.id == sending.id
    return and_(rows, outbox.c.lease_owner == owner, IS_PENDING)
