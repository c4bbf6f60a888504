"""What people do to a digest is done to every incident in it."""

from alerts import escalation
from monitor.clock import Clock
from monitor.domain import Decision, Incident, IncidentState, TimelineEntry
from monitor.errors import UsageError
from monitor.plugins import one_line
from monitor.store import Store


def members(store: Store, key: str) -> tuple[str, ...]:
    """Ids of the incidents that were told in a digest. Raises ``UsageError`` when there is none."""
    found = store.outbox.members(key)
    if not found:
        raise UsageError(
            f"no digest {one_line(key, limit=60)!r}: its key stands in the notification, and in `monitor explain` of its incidents"
        )
    return found


def acknowledge_digest(store: Store, key: str, who: str, clock: Clock, note: str = "") -> int:
    """Somebody takes every incident of a digest that nobody has taken, in one transaction. Returns how many. Raises ``UsageError``."""
    now, who = clock.now(), one_line(who) or "unknown"

    def take(current: Incident) -> Decision:
        if current.state is IncidentState.RESOLVED:
            return Decision()
        said = Decision(timeline=(TimelineEntry(current.id, now, "note", one_line(note), who),)) if note else Decision()
        return escalation.join(said, escalation.acknowledge(current, who, now))

    return len(store.incidents.change_each(members(store, key), take, now).incidents)
