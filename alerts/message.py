"""What every channel says about an incident, computed once from a notification and safe to show anywhere.

Owns wording, caps and the cleaning of hostile text; how it looks (blocks, HTML, JSON) belongs to each notifier.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import urlsplit

from monitor.domain import DigestItem, Incident, IncidentState, Link, Notification, Severity, Transition

TITLE_CHARS = 150
LINE_CHARS = 300
STEP_CHARS = 600
URL_CHARS = 2000
EVIDENCE_LINES = 3
LINKS = 4
TAKE = "#acknowledge"
"""The part of an incident's page where it is taken."""

SEVERITY_WORDS = {Severity.P1: "critical", Severity.P2: "high", Severity.P3: "medium", Severity.P4: "low"}
STATUS_WORDS = {
    Transition.TRIGGERED: "Open",
    Transition.ESCALATED: "Escalated",
    Transition.RAISED: "Getting worse",
    Transition.REMINDED: "Still open",
    Transition.ACKED: "Acknowledged",
    Transition.RESOLVED: "Resolved",
}

_JOINERS = "\u200c\u200d"  # needed by real scripts and by emoji; every other format character can reorder or hide text
_SPACES = frozenset("\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Message:
    """The whole content of one notification. Every text is clean, on one line and capped; only ``first_step`` may have several lines."""

    severity: Severity
    transition: Transition
    status: str
    """Open, Escalated, Getting worse, Still open, Acknowledged or Resolved."""
    title: str
    """``[P1] auth: Service not responding (INC-001)``: the same for every transition of one severity."""
    what: str
    where: str
    began: str
    """When it began, in UTC."""
    lasted: str
    """``12 min``: until now, or until it was over."""
    how_bad: str
    evidence: tuple[str, ...]
    first_step: str
    links: tuple[Link, ...]
    sentence: str
    """Why this is sent now."""
    incident_id: str

    @property
    def over(self) -> bool:
        return self.transition is Transition.RESOLVED

    @property
    def since(self) -> str:
        """When it began, and how long ago that is or how long it lasted."""
        return f"{self.began} ({f'lasted {self.lasted}' if self.over else f'{self.lasted} ago'})"


def compose(notification: Notification, now: datetime) -> Message:
    """Say what a notification means, as seen at ``now``."""
    return compose_one(notification.incident, notification.transition, notification.reason, notification.links, now)


def compose_one(incident: Incident | DigestItem, transition: Transition, reason: str, links: Iterable[Link], now: datetime) -> Message:
    """Say what a transition of an incident means, told alone or in a digest."""
    code = f" ({clean(incident.code, 20)})" if incident.code else ""
    where = clean(incident.service, 60) or "unknown service"
    head = f"[{incident.severity.name}] {where}: "
    room = TITLE_CHARS - len(head) - len(code)
    resolved = transition is Transition.RESOLVED
    return Message(
        severity=incident.severity,
        transition=transition,
        status=STATUS_WORDS[transition],
        title=f"{head}{clean(incident.title, room) or 'incident'}{code}",
        what=what_of(incident),
        where=where,
        began=f"{incident.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        lasted=duration_words((((incident.resolved_at if resolved else None) or now) - incident.opened_at).total_seconds()),
        how_bad=f"{incident.severity.name}, {SEVERITY_WORDS[incident.severity]}",
        evidence=evidence_of(incident),
        first_step=first_step_of(incident.first_step),
        links=tuple(link for link in map(_link, links) if link)[:LINKS],
        sentence=sentence_of(reason, transition),
        incident_id=clean(incident.id, 80),
    )


def what_of(incident: Incident | DigestItem) -> str:
    return clean(incident.summary, LINE_CHARS) or clean(incident.title, LINE_CHARS) or "no summary"


def evidence_of(incident: Incident | DigestItem) -> tuple[str, ...]:
    lines: list[str] = []
    for text in incident.evidence:
        line = clean(text, LINE_CHARS)
        if line:
            lines.append(line)
            if len(lines) == EVIDENCE_LINES:
                break
    return tuple(lines)


@lru_cache(maxsize=256)
def first_step_of(text: str) -> str:
    """At most six lines. There are as many different ones as the runbook has entries."""
    return clean(text, STEP_CHARS, lines=6)


@lru_cache(maxsize=256)
def sentence_of(reason: str, transition: Transition) -> str:
    """Why it is told now, as a sentence. A storm has few reasons."""
    text = clean(reason, LINE_CHARS)
    if not text:
        return STATUS_WORDS[transition]
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def links_for(incident: Incident, external_url: str) -> tuple[Link, ...]:
    """Where the incident is shown, taken and explained, all of it on its page. Following them changes nothing: scanners of mail do.

    The first is the page itself.
    """
    page = f"{external_url}/incidents/{incident.id}"
    take = (Link("Acknowledge", page + TAKE),) if incident.state is IncidentState.OPEN else ()
    runbook = (Link("Runbook", f"{page}#runbook"),) if incident.state is not IncidentState.RESOLVED else ()
    return (Link("Incident", page), *take, *runbook)


def as_line(message: Message) -> str:
    """One line for a log, a notification's preview or a page's summary."""
    return f"{message.title}: {message.what}" if not message.over else f"Resolved: {message.title}"


def as_text(message: Message) -> str:
    """The whole message as plain text, for a mail's first part."""
    rows = [("What", message.what), ("Where", message.where), ("Since", message.since), ("How bad", message.how_bad)]
    parts = [message.title, f"{message.status}. {message.sentence}", "\n".join(f"{name + ':':9}{text}" for name, text in rows)]
    if message.evidence:
        parts.append("\n".join(["Evidence:", *(f"  - {line}" for line in message.evidence)]))
    if message.first_step and not message.over:
        parts.append("\n".join(["First step:", *(f"  {line}" for line in message.first_step.splitlines())]))
    if message.links:
        parts.append("\n".join(f"{link.title}: {link.url}" for link in message.links))
    parts.append(f"Incident {message.incident_id}")
    return "\n\n".join(parts) + "\n"


def clean(text: str | None, limit: int, *, lines: int = 1) -> str:
    """Text that cannot do harm: no control or direction characters, no lone surrogates, at most ``limit`` characters.

    White space becomes single spaces; up to ``lines`` lines survive. What is cut off shows as ``…``.
    """
    if text and len(text) <= limit and text.isprintable() and text[0] != " " != text[-1] and "  " not in text:
        return text  # nearly all are fit already, and a storm brings tens of thousands
    raw = (text or "")[: 4 * limit + 256]
    kept = [_clean_line(line) for line in raw.splitlines()] if lines > 1 else [_clean_line(raw)]
    kept = [line for line in kept if line]
    whole = "\n".join(kept[:lines])
    cut = len(kept) > lines or len(raw) < len(text or "")
    if len(whole) > limit or cut:
        return whole[: limit - 1].rstrip() + "…" if whole else ""
    return whole


def duration_words(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``: as precise as a person needs."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole} s"
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60:02} min"
    return f"{days} d {hours % 24} h"


def _clean_line(text: str) -> str:
    spaced = "".join(" " if char in _SPACES else char for char in text)
    return " ".join("".join(filter(_harmless, spaced)).split())


def _harmless(char: str) -> bool:
    return char in _JOINERS or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Cn", "Co"}


def _link(link: Link) -> Link | None:
    """Only whole web addresses: a cut or foreign one (``javascript:``, ``file:``) is worse than none."""
    if len(link.url) > URL_CHARS or clean(link.url, URL_CHARS) != link.url or " " in link.url:
        return None
    try:
        parts = urlsplit(link.url)
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.netloc or any(char in link.url for char in "<>|\"'`\\"):
        return None
    return Link(clean(link.title, 70) or "Open", link.url)
