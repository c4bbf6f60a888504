"""Who is reached: contacts, rotations with their handovers and overrides, and business hours. Pure functions of a moment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from alerts.severity import BusinessHours
from monitor.domain import EscalationStep


@dataclass(frozen=True, slots=True)
class Override:
    """Somebody else takes a rotation's duty for a while. ``contact`` None: nobody does."""

    contact: str | None
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Rotation:
    """Members take turns of ``days`` days, handed over at a local time of day, the first of them from ``starts`` on."""

    members: tuple[str, ...]
    starts: date
    timezone: ZoneInfo
    handover: time = time(9)
    days: int = 7
    overrides: tuple[Override, ...] = ()

    def on_call(self, now: datetime) -> str | None:
        """The contact on duty, or None before the first turn and while an override says nobody. The latest override written wins."""
        for override in reversed(self.overrides):
            if override.starts_at <= now < override.ends_at:
                return override.contact
        day = now.astimezone(self.timezone).date()
        if now < self._handover_of(day):
            day -= timedelta(days=1)
        turn = (day - self.starts).days // self.days
        return self.members[turn % len(self.members)] if turn >= 0 else None

    def changes(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, str | None]]:
        """Who is on call from ``start`` on, and every later moment before ``end`` at which that changes."""
        moments = {start}
        moments |= {at for override in self.overrides for at in (override.starts_at, override.ends_at) if start < at < end}
        day = start.astimezone(self.timezone).date() - timedelta(days=1)
        while (at := self._handover_of(day)) < end:
            if at > start:
                moments.add(at)
            day += timedelta(days=1)
        before: str | None = ""
        for moment in sorted(moments):
            contact = self.on_call(moment)
            if contact != before:
                yield moment, contact
                before = contact

    def _handover_of(self, day: date) -> datetime:
        """The first time that the wall clock shows the handover on that day; in a spring's gap, as if the clock had not been set."""
        return datetime.combine(day, self.handover, self.timezone).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Reached:
    """Whom a step tells now, and through what."""

    people: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Rotations that nobody is on call for."""


@dataclass(frozen=True, slots=True)
class People:
    """Everybody who can be told: contacts with their channels, and rotations of contacts."""

    contacts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rotations: Mapping[str, Rotation] = field(default_factory=dict)
    hours: BusinessHours | None = None

    def reach(self, step: EscalationStep, now: datetime) -> Reached:
        """Ask the rotations now, not when the incident opened. A contact that is no longer configured is as good as nobody."""
        people: list[str] = []
        absent: list[str] = []
        channels = list(step.channels)
        for name in step.contacts:
            rotation = self.rotations.get(name)
            contact = rotation.on_call(now) if rotation else name
            if contact is None or contact not in self.contacts:
                absent.append(name)
                continue
            people.append(contact)
            channels += self.contacts[contact]
        return Reached(tuple(dict.fromkeys(people)), tuple(dict.fromkeys(channels)), tuple(absent))

    def earliest(self, step: EscalationStep, due: datetime) -> datetime:
        """When a step that is due may fire: at once, or at the beginning of the next business day when it keeps business hours."""
        if not step.business_hours or self.hours is None or self.hours.contain(due):
            return due
        return self.hours.next_opening(due)
