"""What checks keep from one run to the next: JSON, bounded, one entry per check instance.

Owns the entries between two writes to the store; the engine writes what is unsaved and reads everything at the start.
"""

import hashlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import NamedTuple

import msgspec

from monitor.config.settings import CheckInstance
from monitor.errors import CannotLook
from monitor.plugins import Kept

MAX_BYTES = 262_144


class Entry(NamedTuple):
    """One instance's entry as it is stored. ``shape`` tells the check and configuration that wrote it."""

    instance: str
    shape: str
    at: datetime
    content: bytes


class Memory:
    """Hands every instance what it kept, unless its check or configuration is another one by now."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        self._unsaved: set[str] = set()
        self._shapes: dict[str, tuple[CheckInstance, str]] = {}
        self.load(entries)

    def load(self, entries: Iterable[Entry]) -> None:
        """Take what was stored, behind what was kept since."""
        self._entries = {entry.instance: entry for entry in entries} | self._entries

    def keep(self, instance: CheckInstance, at: datetime, value: object) -> None:
        """Keep ``value`` until the next run. Raises ``CannotLook`` when it is not JSON or too large: the plugin's mistake."""
        try:
            content = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise CannotLook(f"the check keeps something that is not JSON: {exc}") from exc
        if len(content) > MAX_BYTES:
            raise CannotLook(f"the check keeps {len(content)} bytes, more than {MAX_BYTES}")
        self._entries[instance.key] = Entry(instance.key, self._shape(instance), at, content)
        self._unsaved.add(instance.key)

    def recall(self, instance: CheckInstance) -> Kept | None:
        """A fresh copy of what the instance kept last."""
        entry = self._entries.get(instance.key)
        if entry is None or entry.shape != self._shape(instance):
            return None
        return Kept(entry.at, msgspec.json.decode(entry.content))

    def _shape(self, instance: CheckInstance) -> str:
        known = self._shapes.get(instance.key)
        if known is None or known[0] is not instance:
            known = self._shapes[instance.key] = (instance, shape_of(instance))
        return known[1]

    def take_unsaved(self, undecided: AbstractSet[str] = frozenset()) -> tuple[Entry, ...]:
        """What was kept since the last call; :meth:`give_back` it when it could not be written. That of ``undecided`` instances waits."""
        ready = self._unsaved - undecided
        self._unsaved -= ready
        return tuple(self._entries[key] for key in sorted(ready))

    def give_back(self, entries: Iterable[Entry]) -> None:
        self._unsaved.update(entry.instance for entry in entries)

    def retain(self, instances: Mapping[str, object]) -> None:
        """Forget what belongs to instances that are no longer configured."""
        for key in self._entries.keys() - instances.keys():
            del self._entries[key]
            self._unsaved.discard(key)
            self._shapes.pop(key, None)


def shape_of(instance: CheckInstance) -> str:
    """A digest of check and configuration, without secrets: what one configuration kept means nothing to another."""
    written = f"{instance.check.name} {instance.config.model_dump_json()}"
    return hashlib.sha256(written.encode(errors="replace")).hexdigest()[:16]
