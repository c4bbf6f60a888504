"""Making, changing and ending silences, by Alertmanager's rules. Pure."""

import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from alerts.matchers import literal, matches_everything, parse_matcher
from alerts.muting import match_labels, state_of
from alerts.posted import INSTANCE, PostedPolicy
from monitor.domain import Alert, Labels, Matcher, Silence, pairs
from monitor.errors import UsageError
from monitor.plugins import one_line

COMMENT_CHARS = 500
MOST_MATCHERS = 50


def make(matchers: Iterable[str], starts_at: datetime, ends_at: datetime, created_by: str, comment: str, now: datetime) -> Silence:
    """A new silence from matchers as they are written. Raises ``UsageError``."""
    try:
        parsed = tuple(parse_matcher(text) for text in matchers)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    return build(parsed, starts_at, ends_at, created_by, comment, now)


def covering(alerts: Iterable[Alert], policy: PostedPolicy) -> list[tuple[Matcher, ...]]:
    """Matchers, for a silence each, of exactly the groups that these alerts fire in: what makes their groups, also where it is missing."""
    found: dict[Labels, set[str | None]] = defaultdict(set)
    for alert in alerts:
        labels = match_labels(alert)
        names = policy.grouping(labels) if alert.instance == INSTANCE else ("alertname", "service")
        if not any(labels.get(name) for name in names):
            names = tuple(labels)
        values = {name: labels.get(name, "") for name in names}
        name = values.pop("alertname", None)
        found[pairs(values)].add(name)
    return [(*_named(names), *(Matcher(name, value) for name, value in values)) for values, names in sorted(found.items())]


def _named(names: set[str | None]) -> tuple[Matcher, ...]:
    said = sorted(name for name in names if name is not None)
    if len(said) < len(names):
        return ()
    if len(said) == 1:
        return (Matcher("alertname", said[0]),)
    return (Matcher("alertname", "|".join(map(literal, said)), is_regex=True),)


def build(matchers: tuple[Matcher, ...], starts_at: datetime, ends_at: datetime, created_by: str, comment: str, now: datetime) -> Silence:
    """A new silence; one that would have begun in the past begins now. Raises ``UsageError`` with Alertmanager's reasons."""
    if not matchers or matches_everything(matchers):
        raise UsageError("at least one matcher must not match the empty string")
    if len(matchers) > MOST_MATCHERS:
        raise UsageError(f"more than {MOST_MATCHERS} matchers")
    if ends_at <= now:
        raise UsageError("end time can't be in the past")
    starts_at = max(starts_at, now)
    if starts_at >= ends_at:
        raise UsageError("start time must be before end time")
    created_by, comment = one_line(created_by, limit=100), one_line(comment, limit=COMMENT_CHARS)
    if not comment:
        raise UsageError("a silence needs a comment: why is nobody to be told?")
    return Silence(str(uuid.uuid4()), matchers, starts_at, ends_at, created_by or "unknown", comment, now)


def expire(silence: Silence, now: datetime) -> Silence:
    """End it now; one that has not begun never does. Ending twice changes nothing."""
    match state_of(silence, now):
        case "expired":
            return silence
        case "pending":
            return replace(silence, starts_at=now, ends_at=now, updated_at=now)
        case _:
            return replace(silence, ends_at=now, updated_at=now)


def change(old: Silence, new: Silence, now: datetime) -> tuple[Silence, ...]:
    """Give an existing silence new contents: the rows to write, the one in force last.

    In place when its matchers stay the same and its begin is not moved once it is active; otherwise the old one expires and the new
    one takes over under its own id.
    """
    state = state_of(old, now)
    same_start = new.starts_at == old.starts_at or (new.starts_at == now and old.starts_at <= now)
    if old.matchers == new.matchers and (state == "pending" or (state == "active" and same_start)):
        starts_at = old.starts_at if state == "active" else new.starts_at
        return (replace(new, id=old.id, starts_at=starts_at, updated_at=now),)
    return (new,) if state == "expired" else (expire(old, now), new)
