"""Why an alert tells nobody now: silences, maintenance windows, inhibition. Pure; it never hides the alert itself."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from alerts.matchers import matches, show_matcher
from monitor.crontab import moments_after
from monitor.domain import Alert, Matcher, Silence

_DERIVED = frozenset({"severity", "incident"})
"""What :func:`match_labels` adds to the labels."""
EXPIRED_KEPT = timedelta(hours=120)
"""How long an expired silence is still listed, as in Alertmanager."""


@dataclass(frozen=True, slots=True)
class Window:
    """Planned work: from ``starts_at`` until ``ends_at``, or, with a ``schedule``, for ``lasts`` from each of its moments on."""

    name: str
    matchers: tuple[Matcher, ...]
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    schedule: str = ""
    """As in a crontab, by the wall clock of ``timezone``."""
    lasts: timedelta = timedelta(0)
    timezone: tzinfo = UTC

    def active_until(self, now: datetime) -> datetime | None:
        """The end of the window that is open now, or None. Between ``starts_at`` and ``ends_at`` only, when they are given."""
        if (self.starts_at is not None and now < self.starts_at) or (self.ends_at is not None and now >= self.ends_at):
            return None
        if not self.schedule:
            return self.ends_at
        return _open_until(self, now)

    def next_opening(self, now: datetime) -> datetime | None:
        """When it opens next, or None when never again."""
        if not self.schedule:
            return self.starts_at if self.starts_at is not None and self.starts_at > now else None
        base = max(now, self.starts_at) if self.starts_at is not None else now
        following = next(moments_after(self.schedule, base, self.timezone))
        return following if self.ends_at is None or following < self.ends_at else None

    def openings(self, start: datetime, end: datetime) -> tuple[tuple[datetime, datetime], ...]:
        """Begin and end of every opening that touches ``[start, end)``, in UTC; the one that is open at ``start`` begins with it."""
        found, until, begin = [], self.active_until(start), self.next_opening(start)
        if until is not None:
            found.append((start, until))
        while begin is not None and begin < end:
            found.append((begin, self.end(begin)))
            begin = self.next_opening(begin)
        return tuple((begin.astimezone(UTC), until.astimezone(UTC)) for begin, until in found)

    def end(self, begin: datetime) -> datetime:
        """When an opening that begins then is over. DST: its begin is a wall-clock time, its length is real time."""
        ends = [begin + self.lasts] if self.schedule else []
        return min((*ends, self.ends_at) if self.ends_at is not None else ends)


@lru_cache(maxsize=64)
def _open_until(window: Window, now: datetime) -> datetime | None:
    """When the opening that has begun last is over; None when it is. Asked anew for each alert of a batch, at the same moment."""
    begun = None
    for begin in moments_after(window.schedule, now - window.lasts, window.timezone):
        if begin > now:
            break
        begun = begin
    return None if begun is None else window.end(begun)


@dataclass(frozen=True, slots=True)
class Inhibition:
    """While an alert that matches ``source`` fires, those that match ``target`` and have the same ``equal`` labels tell nobody."""

    source: tuple[Matcher, ...]
    target: tuple[Matcher, ...]
    equal: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Muting:
    """Everything that may mute an alert."""

    silences: tuple[Silence, ...] = ()
    windows: tuple[Window, ...] = ()
    inhibitions: tuple[Inhibition, ...] = ()
    firing: tuple[Alert, ...] = ()
    """What fires now and may inhibit: at least every alert that matches a rule's source. Only needed with ``inhibitions``."""

    def __bool__(self) -> bool:
        return bool(self.silences or self.windows or self.inhibitions)

    def reasons(self, alert: Alert, now: datetime) -> tuple[str, ...]:
        """Why this alert tells nobody now, in words; empty when it does."""
        labels = match_labels(alert)
        found = [f"silence {s.id[:8]} by {s.created_by}: {s.comment}" for s in silencing(self.silences, labels, now)]
        found += [f"maintenance {w.name}" for w in self.windows if w.active_until(now) is not None and matches(w.matchers, labels)]
        found += [f"inhibited by {dict(source.labels)['alertname']} on {source.service}" for source in self.inhibiting(alert)]
        return tuple(found)

    def inhibiting(self, alert: Alert) -> tuple[Alert, ...]:
        """Firing alerts that inhibit this one. One that matches both sides is not inhibited by another that does too."""
        labels = match_labels(alert)
        found = []
        for rule in self.inhibitions:
            if not matches(rule.target, labels):
                continue
            both = matches(rule.source, labels)
            for source in self.firing:
                theirs = match_labels(source)
                if source.fingerprint == alert.fingerprint or not matches(rule.source, theirs):
                    continue
                if both and matches(rule.target, theirs):
                    continue
                if all(theirs.get(name, "") == labels.get(name, "") for name in rule.equal):
                    found.append(source)
                    break
        return tuple(found)


def sources(inhibitions: Collection[Inhibition], firing: Iterable[Alert]) -> tuple[Alert, ...]:
    """Those of the firing alerts that a rule names as a source."""
    return tuple(alert for alert in firing if any(matches(rule.source, match_labels(alert)) for rule in inhibitions))


def spoken(matchers: Iterable[Matcher]) -> tuple[str, ...]:
    """Plain words that stand as values among the labels of every alert that matches."""
    equal = [matcher for matcher in matchers if matcher.is_equal and not matcher.is_regex and matcher.name not in _DERIVED]
    return tuple(matcher.value for matcher in equal if matcher.value.isascii() and matcher.value.isalnum())


def match_labels(alert: Alert) -> Mapping[str, str]:
    """What matchers look at: the alert's identity, and its severity and runbook code unless its own labels have these names."""
    return {"severity": alert.severity.name, **({"incident": alert.code} if alert.code else {}), **dict(alert.labels)}


def silencing(silences: Iterable[Silence], labels: Mapping[str, str], now: datetime) -> tuple[Silence, ...]:
    """The active silences that match."""
    return tuple(silence for silence in silences if state_of(silence, now) == "active" and matches(silence.matchers, labels))


def state_of(silence: Silence, now: datetime) -> str:
    """pending, active or expired: only the clock decides."""
    if now >= silence.ends_at:
        return "expired"
    return "active" if now >= silence.starts_at else "pending"


def describe(silence: Silence) -> str:
    """``service="auth" severity="P2"``."""
    return " ".join(show_matcher(matcher) for matcher in silence.matchers)


def muted_by(alerts: Iterable[Alert], group: str, muting: Muting, now: datetime) -> tuple[str, ...]:
    """Why the incident of ``group`` tells nobody: reasons that together cover every firing alert of its own; empty if one is not covered.

    What joined it as a symptom does not count: who silences a cause silences what it explains.
    """
    if not muting:
        return ()
    reasons: list[str] = []
    for alert in alerts:
        if alert.home != group:
            continue
        found = muting.reasons(alert, now)
        if not found:
            return ()
        reasons += found
    return tuple(dict.fromkeys(reasons))
