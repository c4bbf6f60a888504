"""How incidents stand on one channel: told, delivered, and nothing under way."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, or_, select

from monitor.domain import Incident, IncidentState, Standing, Transition
from monitor.store.rows import incident_of, receipt_of
from monitor.store.schema import incidents, outbox

CHUNK = 500


def standings(connection: Connection, channel: str, chosen: Iterable[Incident]) -> tuple[Standing, ...]:
    """Of these incidents, those that this channel was told of and owes nothing more."""
    chosen = tuple(chosen)
    found: list[Standing] = []
    columns = [outbox.c[name] for name in ("incident_id", "state", "transition", "finished_at", "receipt", "digest")]
    for start in range(0, len(chosen), CHUNK):
        part = {incident.id: incident for incident in chosen[start : start + CHUNK]}
        query = (
            select(*columns).where(outbox.c.channel == channel, outbox.c.incident_id.in_(part)).order_by(outbox.c.incident_id, outbox.c.id)
        )
        rows = connection.execute(query).all()
        for incident_id, of_one in groupby(rows, key=lambda row: row.incident_id):
            standing = _standing(part[incident_id], channel, list(of_one))
            if standing is not None:
                found.append(standing)
    return tuple(found)


def candidates(connection: Connection, since: datetime, limit: int) -> tuple[Incident, ...]:
    """What is not over, and what ended since then; the worst first."""
    live = incidents.c.state != IncidentState.RESOLVED.value
    query = select(incidents).where(or_(live, incidents.c.resolved_at >= since))
    query = query.order_by(live.desc(), incidents.c.severity, incidents.c.opened_at).limit(limit)
    return tuple(incident_of(row) for row in connection.execute(query).mappings())


def _standing(incident: Incident, channel: str, rows: Sequence[Any]) -> Standing | None:
    sent = [row for row in rows if row.state == "sent"]
    if not sent or any(row.state == "pending" for row in rows):
        return None
    first = receipt_of(sent[0].receipt)
    assert first is not None
    return Standing(incident, channel, first, Transition(sent[-1].transition), sent[-1].finished_at, sent[0].digest)
