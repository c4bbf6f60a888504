"""Claiming: which due rows of the outbox are sent next, leased so that nobody else sends them, alone or together as a digest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    column,
    func,
    literal,
    or_,
    select,
    text,
    type_coerce,
    update,
)

from alerts.digesting import Batch, Due, Manner, Spoken, home_of, take_turn
from alerts.message import links_for
from monitor.domain import Digest, Notification, Transition
from monitor.store import digests
from monitor.store.rows import incident_of, receipt_of
from monitor.store.saving import OPENERS
from monitor.store.schema import EPOCH, LEASED, MICROSECOND, PENDING, incidents, outbox

NEVER_TRIGGERED = "nothing to follow up: the trigger never arrived on this channel"
MOST_ROWS = 10_000
"""Most rows looked at in one turn of a channel: fewer could cut a digest that is sent again, and it would not be the same."""

IS_PENDING = text(f"outbox.{PENDING}")
IS_LEASED = text(f"outbox.{LEASED}")
NOW = bindparam("now", type_=outbox.c.next_attempt_at.type)


def is_free(now: datetime | BindParameter[datetime]) -> Any:
    """Whether nobody holds a lease on a row."""
    return or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= now)


def is_blocked() -> Any:
    """Whether an earlier row of the same (incident, channel) is unfinished.

    Counted for each row by the index of keys. While PostgreSQL has no statistics of a storm that has just begun, it would join all
    that waits with all that waits for an EXISTS, walk all ids for a minimum, and read a whole partial index if one seems to fit: that is
    why the state is spelled so that none does.
    """
    earlier = outbox.alias("earlier")
    same = (earlier.c.incident_id == outbox.c.incident_id, earlier.c.channel == outbox.c.channel)
    found = select(func.count()).select_from(earlier).where(*same, earlier.c.id < outbox.c.id, text("earlier.state || '' = 'pending'"))
    return found.scalar_subquery() > 0


def _due_rows() -> Select[Any]:
    """What ``_due`` reads, made once: the making costs more than the reading when little waits."""
    sent = outbox.alias("sent")
    same = (sent.c.incident_id == outbox.c.incident_id, sent.c.channel == outbox.c.channel)
    arrived = select(func.min(sent.c.id + 0)).where(*same, text("sent.state || '' = 'sent'"))  # + 0: not by walking all ids
    row = outbox.c
    created_at = type_coerce(row.created_at, BigInteger)  # made a moment once for all that began together
    columns = (row.id, row.incident_id, row.severity, row.transition, created_at, row.attempts, row.digest, arrived.scalar_subquery())
    due = (IS_PENDING, outbox.c.next_attempt_at <= NOW, is_free(NOW), outbox.c.channel == bindparam("channel"), ~is_blocked())
    return select(*columns).where(*due).order_by(outbox.c.severity, outbox.c.id).limit(bindparam("limit"))


_WAITING = select(outbox.c.channel).where(IS_PENDING, outbox.c.next_attempt_at <= NOW).distinct()
_DUE = _due_rows()

Sending = Notification | Digest


@dataclass(frozen=True, slots=True)
class Voice:
    """What one channel may begin now."""

    room: int
    """How many sends; 0 is not looked at."""
    manner: Manner | None = None
    """How it tells many things at once; None when it cannot."""
    spoken: Spoken = field(default_factory=Spoken)


@dataclass(frozen=True, slots=True)
class Claim:
    sends: tuple[Sending, ...] = ()
    """By channel, the worst first. Leased until they are marked sent, given back or given up."""
    spoken: Mapping[str, Spoken] = field(default_factory=dict)
    """What is to be remembered of the channels that were looked at."""

    def __bool__(self) -> bool:
        return bool(self.sends)


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, when and for how long. ``external_url`` is for the links."""

    owner: str
    now: datetime
    lease_s: float
    external_url: str

    @property
    def lease(self) -> dict[str, Any]:
        until = self.now + timedelta(seconds=self.lease_s)
        return {"lease_owner": self.owner, "lease_until": until, "attempts": outbox.c.attempts + 1}


def claim(connection: Connection, who: Claimant, voices: Mapping[str, Voice], otherwise: Voice) -> Claim:
    """Lease what each channel says next; ``otherwise`` is for channels that are not in ``voices``."""
    sends: list[Sending] = []
    remembered: dict[str, Spoken] = {}
    for channel in sorted(connection.execute(_WAITING, {"now": who.now}).scalars()):
        voice = voices.get(channel, otherwise)
        if voice.room <= 0:
            continue
        rows = _due(connection, channel, who.now, MOST_ROWS if voice.manner else voice.room)
        busy = _busy(connection, channel, who.now) if any(row.digest or row.home for row in rows) else frozenset()
        turn = take_turn(rows, voice.manner, voice.spoken, voice.room, busy, who.now)
        remembered[channel] = turn.spoken
        over = {"state": "superseded", "last_error": NEVER_TRIGGERED, "finished_at": who.now, "lease_until": None, "lease_owner": None}
        _update(connection, turn.void, over)
        for until, ids in turn.held:
            _update(connection, ids, {"next_attempt_at": until})
        alone = [unit.id for unit in turn.sends if isinstance(unit, Due)]
        told = _alone(connection, who, alone)
        for unit in turn.sends:
            sends.append(_together(connection, who, channel, unit) if isinstance(unit, Batch) else told[unit.id])
    return Claim(tuple(sends), remembered)


def _due(connection: Connection, channel: str, now: datetime, limit: int) -> list[Due]:
    """The worst and oldest first, each with the earlier row of its incident that arrived first."""
    rows: Sequence[Any] = connection.execute(_DUE, {"now": now, "channel": channel, "limit": limit}).all()
    homes = _homes(connection, [row[7] for row in rows if row[7] is not None])
    moments = {created: EPOCH + created * MICROSECOND for created in {row[4] for row in rows}}
    return [
        Due(id_, incident_id, severity, transition in OPENERS, moments[created], attempts, digest, first is not None, homes.get(first))
        for id_, incident_id, severity, transition, created, attempts, digest, first in rows
    ]


def _homes(connection: Connection, ids: list[int]) -> dict[int, str]:
    """Of rows that arrived, the digests in which they did."""
    if not ids:
        return {}
    told = select(outbox.c.id, outbox.c.digest).where(_among(connection, ids), outbox.c.digest.is_not(None))
    return {row[0]: row[1] for row in connection.execute(told)}


def _busy(connection: Connection, channel: str, now: datetime) -> frozenset[str]:
    """The conversations in which something is being sent now."""
    leased = (IS_PENDING, IS_LEASED, outbox.c.lease_until > now, outbox.c.channel == channel, outbox.c.digest.is_not(None))
    return frozenset(home_of(key) for key in connection.execute(select(outbox.c.digest).where(*leased).distinct()).scalars())


def _alone(connection: Connection, who: Claimant, ids: list[int]) -> dict[int, Notification]:
    """Lease rows that are told one by one."""
    if not ids:
        return {}
    _update(connection, ids, who.lease)
    rows = connection.execute(select(outbox).where(outbox.c.id.in_(ids))).mappings().all()
    keys = [row["incident_id"] for row in rows]
    found = {row["id"]: incident_of(row) for row in connection.execute(select(incidents).where(incidents.c.id.in_(keys))).mappings()}
    sent = select(outbox.c.incident_id, outbox.c.channel, outbox.c.receipt).where(outbox.c.incident_id.in_(keys), outbox.c.state == "sent")
    firsts: dict[tuple[str, str], Any] = {}
    for incident_id, channel, receipt in connection.execute(sent.order_by(outbox.c.id)):
        firsts.setdefault((incident_id, channel), receipt)
    return {
        row["id"]: Notification(
            id=row["id"],
            incident=found[row["incident_id"]],
            transition=Transition(row["transition"]),
            channel=row["channel"],
            dedup_key=row["dedup_key"],
            reason=row["reason"],
            created_at=row["created_at"],
            attempts=row["attempts"],
            links=links_for(found[row["incident_id"]], who.external_url),
            first_receipt=receipt_of(firsts.get((row["incident_id"], row["channel"]))),
        )
        for row in rows
    }


def _together(connection: Connection, who: Claimant, channel: str, batch: Batch) -> Digest:
    """Lease rows that are told as one, and note in which digest: whoever claims them again sends the same."""
    _update(connection, [row.id for row in batch.rows], {**who.lease, "digest": batch.key})
    rows = digests.outbox.c
    mine = and_(rows.digest == batch.key, IS_PENDING, rows.channel == channel, rows.lease_owner == who.owner)
    items = digests.items(connection, mine)
    told = and_(outbox.c.digest == batch.home, outbox.c.channel == channel, outbox.c.state == "sent")
    first = connection.execute(select(outbox.c.receipt).where(told).order_by(outbox.c.id).limit(1)).scalar()
    follows = first is not None
    return Digest(
        key=batch.key,
        home=batch.home,
        channel=channel,
        items=items,
        tally=digests.tally(connection, channel, batch.home) if follows else digests.tally_of(items),
        created_at=min(row.created_at for row in batch.rows),
        attempts=1 + max(row.attempts for row in batch.rows),
        url=who.external_url,
        first_receipt=receipt_of(first),
    )


def _update(connection: Connection, ids: Sequence[int], values: dict[str, Any]) -> None:
    if ids:
        connection.execute(update(outbox).where(_among(connection, ids)).values(values))


def _among(connection: Connection, ids: Sequence[int]) -> ColumnElement[bool]:
    """Whether a row is one of these. However many: they are one parameter."""
    if connection.dialect.name == "sqlite":
        return outbox.c.id.in_(select(column("value")).select_from(func.json_each(json.dumps(ids))))
    return outbox.c.id == func.any(literal(list(ids), ARRAY(BigInteger)))
