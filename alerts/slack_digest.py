"""How a digest looks in Slack: one card that names the worst and counts the rest, kept up to date, with its history in the thread.

Pure. Within the limits of ``slack_card.py``; whatever the incidents say, a card has at most a dozen blocks.
"""

from typing import Any

from alerts.digest_message import DigestLine, DigestMessage
from alerts.slack_card import (
    ACKNOWLEDGE,
    COLOURS,
    FALLBACK_CHARS,
    HEADER_CHARS,
    RESOLVED_COLOUR,
    SIGNS,
    STATUS_SIGNS,
    URL_CHARS,
    Block,
    escaped,
    mrkdwn,
    plain,
    section,
)
from monitor.domain import Digest, Tally, Transition

LINES_A_SECTION = 5
URL_CHARS_IN_LINE = 150


def build_digest_card(message: DigestMessage, digest: Digest, *, interactive: bool = False) -> dict[str, Any]:
    """``text``, ``blocks`` (the header) and one coloured ``attachments`` entry with the rest."""
    sign = STATUS_SIGNS[Transition.RESOLVED] if message.over else SIGNS[message.severity]
    header = {"type": "header", "text": plain(f"{sign} {message.title}", HEADER_CHARS)}
    body = [section(f"*{escaped(message.standing, 500)}*"), _counts(message)]
    if message.lines and not message.over:
        shown = [_line(line) for line in message.lines]
        for first in range(0, len(shown), LINES_A_SECTION):
            body.append(section("\n".join(shown[first : first + LINES_A_SECTION])))
        if message.more:
            body.append(section(f"_{message.and_more}, all of them on the status page_"))
    buttons = _buttons(message, digest.home, digest.tally, interactive=interactive)
    if buttons:
        body.append({"type": "actions", "elements": buttons})
    note = f"Told together, because many incidents opened at once · `{escaped(digest.home, 60)}` · monitor"
    body.append({"type": "context", "elements": [mrkdwn(note, 300)]})
    return {
        "text": escaped(f"{message.title}: {message.news}", FALLBACK_CHARS),
        "blocks": [header],
        "attachments": [{"color": RESOLVED_COLOUR if message.over else COLOURS[message.severity], "blocks": body}],
    }


def digest_thread_line(message: DigestMessage, digest: Digest) -> str:
    """One line for the card's thread: what just happened, and how all of it stands."""
    kinds = {item.transition for item in digest.items}
    sign = STATUS_SIGNS[next(iter(kinds))] if len(kinds) == 1 else "📋"
    after = "all of them are over" if message.over else escaped(message.standing, 300)
    return f"{sign} *{escaped(message.news, 500)}* · {after}"


def _counts(message: DigestMessage) -> Block:
    over = message.over
    rows = (
        ("How bad it was" if over else "How bad", message.severities),
        ("Where", message.services),
        ("Since", message.began),
        ("What is new", message.news),
    )
    return {"type": "section", "fields": [mrkdwn(f"*{name}*\n{escaped(text, 560)}", 600) for name, text in rows]}


def _line(line: DigestLine) -> str:
    """``🔴 P1 *auth* <link|Service not responding (INC-001)> · open for 4 min``, and below it what was seen."""
    title = escaped(line.title, 120)
    linked = f"<{line.url}|{title}>" if _is_linkable(line.url) else title
    what = f"\n{escaped(line.what, 130)}" if line.what else ""
    return f"{SIGNS[line.severity]} {line.severity.name} *{escaped(line.service, 60)}* · {linked} · {escaped(line.state, 70)}{what}"


def _is_linkable(url: str) -> bool:
    return len(url) <= URL_CHARS_IN_LINE and url.startswith(("https://", "http://")) and not set(url) & set("<>|& ")


def _buttons(message: DigestMessage, key: str, tally: Tally, *, interactive: bool) -> list[Block]:
    """Taking all of them, while somebody is needed; and the page that lists them."""
    found: list[Block] = []
    if interactive and tally.open:
        label = f"Acknowledge all {tally.open:,}"
        found.append({"type": "button", "text": plain(label, 75), "style": "primary", "action_id": ACKNOWLEDGE, "value": key})
    page = message.status_page
    if page.url.startswith(("https://", "http://")) and len(page.url) <= URL_CHARS:
        found.append({"type": "button", "text": plain(page.title, 75), "url": page.url, "action_id": "link-0"})
    return found
