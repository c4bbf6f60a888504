"""Asks the possible causes of what a check newly found, and holds its confirmation until they have been looked at.

A cause is often seen later than its symptom: it is looked at more rarely, or its look hangs for the whole of its deadline. Without the
hold the symptom would be told as an incident of its own, and the cause as another.
"""

import asyncio
from collections.abc import Callable, Iterable

from monitor.config.settings import CheckInstance, Settings

PATIENCE_S = 20.0
"""No finding waits longer for its suspects, whatever deadlines they have."""

LookSoon = Callable[[Iterable[str]], set[str]]
"""Asks for a look out of turn at these instances; returns those whose answer is yet to come."""


class Suspects:
    """Who could name the cause of what an instance found, and whether they were asked and have answered."""

    def __init__(self, settings: Settings, look_soon: LookSoon) -> None:
        self._look_soon = look_soon
        self._open: dict[str, set[str]] = {}
        """By instance with a new finding: the suspects that have not answered yet."""
        self._answered = asyncio.Event()
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Take new settings; of those that are gone no answer is expected."""
        self._known = {instance.key: instance for instance in settings.instances}
        self._fellers: dict[str, tuple[str, ...]] = {}
        for instance in settings.instances:
            if any(kind.fells for kind in instance.check.finds):
                self._fellers[instance.service.name] = (*self._fellers.get(instance.service.name, ()), instance.key)
        self._open = {key: waits & self._known.keys() for key, waits in self._open.items() if key in self._known}
        self._answered.set()

    def of(self, instance: CheckInstance) -> set[str]:
        """The instances that could name the cause of what this one found: they fell a service it stands on, or it depends on them."""
        felling = {key for service in instance.upstream for key in self._fellers.get(service, ())}
        return ((felling | instance.depends_on) & self._known.keys()) - {instance.key}

    async def question(self, instance: CheckInstance, *, at_once: bool) -> None:
        """Ask them about a new finding; when it is found again, or fires ``at_once``, wait for those that have not answered.

        The wait is no longer than the longest of their deadlines, nor than ``PATIENCE_S``. Of two that suspect each other, as two that
        both tell whether one service is down, none waits.
        """
        first = instance.key not in self._open
        if first:
            awaited = self._look_soon(sorted(self.of(instance)))
            self._open[instance.key] = {key for key in awaited if instance.key not in self.of(self._known[key])}
        if (first and not at_once) or not self._open[instance.key]:
            return
        asked = [self._known[key] for key in self._open[instance.key]]
        patience_s = min(PATIENCE_S, max(suspect.timeout_s + suspect.recheck_s for suspect in asked))
        try:
            async with asyncio.timeout(patience_s):
                while self._open.get(instance.key):
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            self._open[instance.key] = set()  # they had their chance: nobody waits for them twice

    def answered(self, key: str) -> None:
        """This instance was looked at, and what it saw is committed."""
        for waits in self._open.values():
            waits.discard(key)
        self._answered.set()

    def settled(self, key: str) -> None:
        """Nothing new is found by this instance: the next new finding asks anew."""
        self._open.pop(key, None)
