"""The status page: frozen inputs become HTML. Pure; serving it, and its static files, is the API's work.

The page polls its own fragment and says so visibly when the answers stop coming.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from dashboards.figures import headline
from dashboards.wording import count, duration, environment, listed, one_line
from monitor.domain import CheckResult, Incident, IncidentState, Outcome, Severity, TimelineEntry

STATIC = Path(__file__).parent / "static"
"""Files to serve under ``/static``: style sheet, scripts, icon. Nothing else is ever loaded."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The header under which every page here works."""

STALE_AFTER_INTERVALS = 3
RECENT_SHOWN = 30
SLOW_DELIVERY_S = 60.0
COMPACT_ABOVE = 12
"""With more services than this, the healthy ones take one line each."""


class Mark(StrEnum):
    """What a person sees of a check or a service, worst first: a word, a colour and a shape."""

    FOUND = "failing"
    BLIND = "blind"
    STALE = "stale"
    WAITING = "waiting"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class CheckView:
    """One check instance. ``headline`` is what it saw, ``error`` why it could not look; ``recent`` is oldest first."""

    name: str
    every_s: float
    outcome: Outcome | None = None
    """None before the first run."""
    last_run: datetime | None = None
    duration_s: float = 0.0
    headline: str = ""
    error: str | None = None
    recent: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One watched service with its checks."""

    name: str
    checks: tuple[CheckView, ...]
    url: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """The outbox: notifications waiting, the age of the oldest, and those given up on."""

    pending: int = 0
    oldest_s: float = 0.0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class PageInput:
    """Everything on the page. ``resolved`` are the incidents resolved lately, newest first."""

    now: datetime
    version: str
    services: tuple[ServiceView, ...]
    incidents: tuple[Incident, ...] = ()
    resolved: tuple[Incident, ...] = ()
    delivery: DeliveryView = DeliveryView()
    store_ok: bool = True


def check_view(name: str, every_s: float, result: CheckResult | None, recent: tuple[Outcome, ...] = ()) -> CheckView:
    """A check as the page shows it, from its latest result."""
    if result is None:
        return CheckView(name=name, every_s=every_s)
    findings = result.observed.findings
    told = findings[0].summary if findings else headline(result)
    return CheckView(
        name=name,
        every_s=every_s,
        outcome=result.outcome,
        last_run=result.started_at,
        duration_s=result.duration_s,
        headline=f"{told} (and {len(findings) - 1} more)" if len(findings) > 1 else told,
        error=result.error,
        recent=recent,
    )


def render_page(given: PageInput) -> str:
    """The whole page; it fetches the fragment by itself."""
    return _JINJA.get_template("status.html").render(_context(given))


def render_fragment(given: PageInput) -> str:
    """What changes: title and board, for ``GET /fragment``."""
    return _JINJA.get_template("fragment.html").render(_context(given))


def render_incident(
    incident: Incident, timeline: tuple[TimelineEntry, ...], now: datetime, version: str = "", *, can_take: bool = False
) -> str:
    """The page of one incident: evidence, first step, who was told and is next, and its history; a form to take it with the token."""
    rungs = [
        {
            "who": step.who,
            "channels": listed((*step.contacts, *step.channels)),
            "after": "at once" if step.after_s == 0 else f"after {duration(step.after_s)}",
            "done": number < incident.step,
            "at": incident.next_escalation_at if number == incident.step else None,
        }
        for number, step in enumerate(incident.chain)
    ]
    return _JINJA.get_template("incident.html").render(
        incident=incident,
        timeline=sorted(timeline, key=lambda entry: entry.at),
        rungs=rungs,
        now=now,
        version=version,
        mark=_incident_mark(incident),
        can_take=can_take and incident.state is IncidentState.OPEN,
    )


# --- what is shown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tick:
    """One past run in the bar: its place, and a class that the style sheet colours."""

    x: int
    outcome: str


@dataclass(frozen=True, slots=True)
class _Row:
    check: CheckView
    mark: Mark
    text: str
    bar: tuple[_Tick, ...]
    bar_text: str


@dataclass(frozen=True, slots=True)
class _Card:
    service: ServiceView
    mark: Mark
    rows: tuple[_Row, ...]
    link: str
    compact: bool


@dataclass(frozen=True, slots=True)
class _Verdict:
    mark: Mark
    headline: str
    detail: str
    title: str


@dataclass(frozen=True, slots=True)
class _Delivery:
    mark: Mark
    text: str


_WORST_FIRST = tuple(Mark)


def _context(given: PageInput) -> dict[str, object]:
    cards = [_card(service, given) for service in given.services]
    cards.sort(key=lambda card: (_WORST_FIRST.index(card.mark), card.service.name))
    return {
        "now": given.now,
        "version": given.version,
        "cards": cards,
        "incidents": sorted(given.incidents, key=lambda incident: (incident.severity, incident.opened_at, incident.id)),
        "resolved": given.resolved,
        "delivery": _delivery(given),
        "verdict": _verdict(cards, given),
        "incident_mark": _incident_mark,
        "recent_shown": RECENT_SHOWN,
    }


def _card(service: ServiceView, given: PageInput) -> _Card:
    rows = tuple(sorted((_row(check, given.now) for check in service.checks), key=lambda row: _WORST_FIRST.index(row.mark)))
    mark = min((row.mark for row in rows), key=_WORST_FIRST.index, default=Mark.WAITING)
    url = service.url or ""
    link = url if url.startswith(("http://", "https://")) and "@" not in url else ""  # never a script, never credentials
    return _Card(service, mark, rows, link, compact=len(given.services) > COMPACT_ABOVE and mark is Mark.OK)


def _row(check: CheckView, now: datetime) -> _Row:
    mark = _mark(check, now)
    text = {
        Mark.FOUND: one_line(check.headline) or "something was found",
        Mark.BLIND: one_line(check.error or "") or "could not look, no reason given",
        Mark.STALE: f"no result for {duration(_age_s(check, now))}; it should come every {duration(check.every_s)}",
        Mark.WAITING: "no result yet",
        Mark.OK: one_line(check.headline),
    }[mark]
    recent = check.recent[-RECENT_SHOWN:]
    first = RECENT_SHOWN - len(recent)
    tally = Counter(recent)
    told = listed([f"{tally[outcome]} {outcome}" for outcome in Outcome if tally[outcome]])
    return _Row(
        check,
        mark,
        text,
        tuple(_Tick((first + n) * 5, outcome) for n, outcome in enumerate(recent)),
        f"Last {count(len(recent), 'run')}: {told}",
    )


def _mark(check: CheckView, now: datetime) -> Mark:
    if check.outcome is None or check.last_run is None:
        return Mark.WAITING
    if _age_s(check, now) > STALE_AFTER_INTERVALS * check.every_s:
        return Mark.STALE
    return {Outcome.OK: Mark.OK, Outcome.FOUND: Mark.FOUND, Outcome.BLIND: Mark.BLIND}[check.outcome]


def _age_s(check: CheckView, now: datetime) -> float:
    """Seconds since the last run ended."""
    return (now - check.last_run).total_seconds() - check.duration_s if check.last_run else 0.0


def _verdict(cards: list[_Card], given: PageInput) -> _Verdict:
    """The one sentence at the top. Green needs every check seen lately and well, nothing open, and everybody told."""
    watched = [card for card in cards if card.rows]
    by_mark = {mark: [card.service.name for card in watched if card.mark is mark] for mark in Mark}
    failing, unseen, waiting = by_mark[Mark.FOUND], by_mark[Mark.BLIND] + by_mark[Mark.STALE], by_mark[Mark.WAITING]
    well = f"{len(by_mark[Mark.OK])} of {count(len(watched), 'service')} well"
    if given.incidents:
        return _incident_verdict(given.incidents, well)
    if failing:
        names = listed(failing, 3)
        return _Verdict(Mark.FOUND, f"{names} failing", f"no incident yet: the next runs decide · {well}", f"Failing: {names}")
    if unseen:
        names = listed(unseen, 3)
        return _Verdict(Mark.BLIND, f"Cannot see {names}", f"what cannot be seen may be broken · {well}", f"Blind: {names}")
    return _calm_verdict(watched, len(waiting), well, _delivery(given))


def _calm_verdict(watched: list[_Card], waiting: int, well: str, delivery: _Delivery) -> _Verdict:
    """The sentence while nothing is known to be wrong with any service."""
    if not watched:
        return _Verdict(Mark.WAITING, "Nothing is watched", "the configuration has no check", "Nothing is watched")
    if waiting:
        return _Verdict(Mark.WAITING, "Looking for the first time", f"{count(waiting, 'service')} not seen yet · {well}", "Starting")
    if delivery.mark is not Mark.OK:
        return _Verdict(delivery.mark, "The services are well, delivery is not", delivery.text, "Delivery is in trouble")
    everything = "The one service is well" if len(watched) == 1 else f"All {len(watched)} services are well"
    return _Verdict(Mark.OK, everything, f"{count(sum(len(card.rows) for card in watched), 'check')}, every one seen lately", "All well")


def _incident_verdict(incidents: tuple[Incident, ...], well: str) -> _Verdict:
    """Names the worst incident; among equals the one nobody has acknowledged, then the oldest."""
    worst = min(incidents, key=lambda incident: (incident.severity, incident.state is not IncidentState.OPEN, incident.opened_at))
    subject = f"{worst.service}: {worst.title}"
    state = "muted" if worst.muted else "not acknowledged"
    if worst.state is IncidentState.ACKED:
        state = f"acknowledged by {worst.acked_by or 'somebody'}"
    more = f" · {count(len(incidents) - 1, 'more open incident')}" if len(incidents) > 1 else ""
    return _Verdict(_incident_mark(worst), subject, f"{worst.severity.name}, {state}{more} · {well}", f"{worst.severity.name} {subject}")


def _delivery(given: PageInput) -> _Delivery:
    delivery = given.delivery
    if not given.store_ok:
        return _Delivery(Mark.FOUND, "The state store cannot be written: what is decided now may not be remembered.")
    if delivery.dead:
        return _Delivery(Mark.FOUND, f"{count(delivery.dead, 'notification')} given up on: somebody was not told.")
    if delivery.pending:
        text = f"{count(delivery.pending, 'notification')} on the way, the oldest for {duration(delivery.oldest_s)}."
        return _Delivery(Mark.BLIND if delivery.oldest_s >= SLOW_DELIVERY_S else Mark.OK, text)
    return _Delivery(Mark.OK, "Everybody who had to be told was told.")


def _incident_mark(incident: Incident) -> Mark:
    if incident.state is IncidentState.RESOLVED:
        return Mark.OK
    return Mark.FOUND if incident.severity <= Severity.P2 else Mark.BLIND


_JINJA = environment()
