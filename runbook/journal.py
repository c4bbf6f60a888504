"""The audit journal as the executor needs it: what it must promise, and what its entries tell about earlier runs.

Entries are keyed by the plan's lock (``cancel-stuck-jobs/data``), so that one history is one thing that never runs twice at once.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Protocol

from monitor.domain import AuditEntry

REMEMBER = timedelta(days=30)
"""How far back an unfinished run is looked for."""


class Journal(Protocol):
    """Append-only. The state store implements it."""

    def append(self, entry: AuditEntry) -> None:
        """Store one entry; it is durable before this returns. Raises ``StoreError``."""
        ...

    def entries(self, plan: str, since: datetime) -> tuple[AuditEntry, ...]:
        """Entries whose ``plan`` equals ``plan``, at or after ``since``, in the order appended. Raises ``StoreError``."""
        ...


def unfinished(entries: Iterable[AuditEntry]) -> AuditEntry | None:
    """The last intent that no outcome followed: a run that died, of which nobody knows what it changed.

    Runs of one key follow each other, so an outcome always belongs to the last intent. Refusals belong to no run.
    """
    pending: AuditEntry | None = None
    for entry in entries:
        if entry.phase == "intent":
            pending = entry
        elif entry.phase in ("applied", "failed"):
            pending = None
    return pending


def next_allowed(entries: Iterable[AuditEntry], *, now: datetime, runs: int, window: timedelta) -> datetime | None:
    """When another run may begin, if ``runs`` have begun within ``window``; None when one may begin now."""
    begun = [entry.at for entry in entries if entry.phase == "intent" and entry.at > now - window]
    return begun[-runs] + window if len(begun) >= runs else None
