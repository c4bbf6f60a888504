"""What every channel says about a digest, computed once from it and safe to show anywhere."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from alerts.message import SEVERITY_WORDS, TITLE_CHARS, clean, duration_words
from monitor.domain import Digest, DigestItem, IncidentState, Link, Severity, Tally, Transition

SHOWN = 10
"""Incidents named one by one in a card or a page."""
SERVICES_SHOWN = 5
OPENERS = frozenset({Transition.TRIGGERED, Transition.ESCALATED, Transition.RAISED, Transition.REMINDED})
_NEWS = {
    Transition.TRIGGERED: "{n} new",
    Transition.ESCALATED: "{n} escalated",
    Transition.RAISED: "{n} got worse",
    Transition.REMINDED: "{n} still open",
    Transition.ACKED: "{n} acknowledged{by}",
    Transition.RESOLVED: "{n} over",
}


@dataclass(frozen=True, slots=True)
class DigestLine:
    """One incident in one line. Every text is clean, on one line and capped."""

    severity: Severity
    transition: Transition
    service: str
    title: str
    """``Service not responding (INC-001)``."""
    what: str
    since: str
    """When it opened, in UTC."""
    state: str
    """open, taken by NAME, or over."""
    url: str
    incident_id: str


@dataclass(frozen=True, slots=True)
class DigestMessage:
    """The whole content of one digest."""

    severity: Severity
    """The worst of what is not over; of all when everything is."""
    over: bool
    """Whether every incident is."""
    title: str
    """``[P1] 312 incidents on 14 services``: the same while the same are open."""
    news: str
    """What is told now: ``300 new``, ``40 over, 2 acknowledged by anna``."""
    standing: str
    """``312 incidents: 40 open, 12 taken, 260 over``, or ``312 incidents, all open``."""
    severities: str
    """``3 P1, 40 P2``."""
    services: str
    """``auth 120, data 80 and 12 other services``."""
    lines: tuple[DigestLine, ...]
    """The worst that are not over."""
    more: int
    """How many more of the same there are."""
    status_page: Link
    began: str
    """When the oldest one shown opened, in UTC."""
    urgent: bool
    """Whether something in it asks people."""

    @property
    def and_more(self) -> str:
        """``and 302 more``, or nothing."""
        return f"and {self.more:,} more" if self.more else ""


def compose_digest(digest: Digest, now: datetime, shown: int = SHOWN) -> DigestMessage:
    """Say what a digest means. Of a new one its own items are named, as far as ``shown`` goes; of a follow-up what is still open."""
    tally = digest.tally
    all_over = tally.unresolved == 0
    concerned = tally.total if all_over else tally.unresolved
    chosen = tally.worst if digest.follows else tuple(item for item in digest.items if item.state is not IncidentState.RESOLVED)
    lines = tuple(line_of(digest, item, now) for item in (chosen or digest.items)[:shown])
    many = len(tally.services)
    places = f"on {clean(tally.services[0][0], 60) or 'one service'}" if many == 1 else f"on {many} services"
    oldest = min(item.opened_at for item in chosen or digest.items)
    return DigestMessage(
        severity=tally.severity,
        over=all_over,
        title=clean(f"[{tally.severity.name}] {count(tally.total)} {places}", TITLE_CHARS),
        news=news_of(digest.items),
        standing=_standing_words(tally),
        severities=", ".join(f"{number:,} {severity.name} ({SEVERITY_WORDS[severity]})" for severity, number in tally.severities),
        services=_services(tally.services),
        lines=lines,
        more=max(0, concerned - len(lines)),
        status_page=Link("Status page", digest.url),
        began=f"{oldest.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        urgent=any(item.transition in OPENERS for item in digest.items),
    )


def line_of(digest: Digest, item: DigestItem, now: datetime) -> DigestLine:
    """One incident of a digest in one line."""
    code = f" ({clean(item.code, 20)})" if item.code else ""
    match item.state:
        case IncidentState.ACKED:
            state = f"taken by {clean(item.acked_by, 60) or 'somebody'}"
        case IncidentState.RESOLVED:
            state = "over"
        case _:
            state = f"open for {duration_words((now - item.opened_at).total_seconds())}"
    return DigestLine(
        severity=item.severity,
        transition=item.transition,
        service=clean(item.service, 60) or "unknown service",
        title=f"{clean(item.title, 100) or 'incident'}{code}",
        what=clean(item.summary, 200),
        since=f"{item.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        state=state,
        url=digest.link(item.id),
        incident_id=item.id,
    )


def news_of(items: Iterable[DigestItem]) -> str:
    """``40 over, 2 acknowledged by anna``: what is told, the most first."""
    items = tuple(items)
    counts = Counter(item.transition for item in items)
    takers = {item.acked_by for item in items if item.transition is Transition.ACKED}
    by = f" by {clean(next(iter(takers)), 60)}" if len(takers) == 1 and None not in takers else ""
    return ", ".join(_NEWS[transition].format(n=f"{number:,}", by=by) for transition, number in counts.most_common())


def count(number: int) -> str:
    return "1 incident" if number == 1 else f"{number:,} incidents"


def _standing_words(tally: Tally) -> str:
    parts = [(tally.open, "open"), (tally.acked, "taken"), (tally.over, "over")]
    some = [(number, word) for number, word in parts if number]
    if len(some) == 1 and tally.total > 1:
        return f"{count(tally.total)}, all {some[0][1]}"
    return f"{count(tally.total)}: {', '.join(f'{number:,} {word}' for number, word in some)}"


def _services(services: tuple[tuple[str, int], ...]) -> str:
    named = ", ".join(f"{clean(name, 60) or 'unknown service'} {number:,}" for name, number in services[:SERVICES_SHOWN])
    others = len(services) - SERVICES_SHOWN
    return f"{named} and {others} other services" if others > 1 else f"{named} and another service" if others == 1 else named
