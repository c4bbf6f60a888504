"""Digests in the store: what is in one, how its incidents stand, who belongs to one."""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Select, func, select

from monitor.domain import DigestItem, IncidentState, Severity, Tally
from monitor.store import schema
from monitor.store.bulk import untyped
from monitor.store.rows import digest_item_of

WORST = 12

outbox, incidents = untyped(schema.outbox), untyped(schema.incidents)
_ITEM = (
    outbox.c.id.label("row"),
    outbox.c.transition,
    outbox.c.reason,
    *(
        incidents.c[name]
        for name in (
            "id", "code", "service", "severity", "state", "title", "summary", "evidence", "first_step", "opened_at", "resolved_at",
            "acked_by", "asked",
        )
    ),
)  # fmt: skip
_WORST_FIRST = (incidents.c.severity, incidents.c.opened_at, outbox.c.id)
_BY_WORST = itemgetter(6, 12, 0)
"""The same, of a row of ``_ITEM``."""


def items(connection: Connection, where: Any) -> tuple[DigestItem, ...]:
    """Rows of ``outbox``, as it is named here, with their incidents, the worst and oldest first."""
    rows = connection.execute(_items(where)).all()
    return tuple(map(digest_item_of, sorted(rows, key=_BY_WORST)))  # sorted here: SQLite's sorter carries whole rows


def tally(connection: Connection, channel: str, home: str) -> Tally:
    """How the incidents stand that were first told in a digest that arrived."""
    member = (outbox.c.channel == channel, outbox.c.digest == home, outbox.c.state == "sent")
    kinds = (incidents.c.state, incidents.c.severity, incidents.c.service)
    query = select(*kinds, func.count(), func.max(incidents.c.asked)).join(outbox, outbox.c.incident_id == incidents.c.id)
    counts = [tuple(row) for row in connection.execute(query.where(*member).group_by(*kinds))]
    open_ones = incidents.c.state != IncidentState.RESOLVED.value
    live = any(state != IncidentState.RESOLVED.value for state, *_ in counts)
    where = (*member, open_ones) if live else member
    shown = tuple(digest_item_of(row) for row in connection.execute(_items(*where).order_by(*_WORST_FIRST).limit(WORST)))
    return _tally(counts, shown)


def tally_of(found: tuple[DigestItem, ...]) -> Tally:
    """How the incidents of a new digest stand."""
    kinds = Counter((item.state, item.severity, item.service) for item in found)
    asked = max(item.asked for item in found)
    live = [item for item in found if item.state is not IncidentState.RESOLVED]
    return _tally([(*kind, count, asked) for kind, count in kinds.items()], tuple((live or found)[:WORST]))


def _tally(counts: Sequence[tuple[str, int, str, int, int]], worst: tuple[DigestItem, ...]) -> Tally:
    states: Counter[str] = Counter()
    for state, _, _, count, _ in counts:
        states[state] += count
    unresolved = states[IncidentState.OPEN] + states[IncidentState.ACKED]
    severities: Counter[int] = Counter()
    services: Counter[str] = Counter()
    for state, severity, service, count, _ in counts:
        if not unresolved or state != IncidentState.RESOLVED:
            severities[severity] += count
            services[service] += count
    return Tally(
        total=states.total(),
        open=states[IncidentState.OPEN],
        acked=states[IncidentState.ACKED],
        severities=tuple((Severity(severity), count) for severity, count in sorted(severities.items())),
        services=tuple(sorted(services.items(), key=lambda one: (-one[1], one[0]))),
        worst=worst,
        asked=max(asked for *_, asked in counts),
    )


def _items(*where: Any) -> Select[Any]:
    return select(*_ITEM).join(incidents, incidents.c.id == outbox.c.incident_id).where(*where)
