"""How an incident looks in Slack: the card's blocks, within Slack's published limits, with nothing of the text read as markup.

Pure. The limits are Slack's own (docs.slack.dev, Block Kit) and the undocumented total of about 13,200 characters, kept at 12,000.
"""

from typing import Any

from alerts.message import TAKE, Message, as_line
from monitor.domain import Severity, Transition

HEADER_CHARS = 150
SECTION_CHARS = 3000
FIELD_CHARS = 2000
FALLBACK_CHARS = 3000
URL_CHARS = 3000
TOTAL_CHARS = 12_000

COLOURS = {Severity.P1: "#d1242f", Severity.P2: "#e16f24", Severity.P3: "#d4a72c", Severity.P4: "#3b82d6"}
RESOLVED_COLOUR = "#2da44e"
SIGNS = {Severity.P1: "🔴", Severity.P2: "🟠", Severity.P3: "🟡", Severity.P4: "🔵"}
STATUS_SIGNS = {
    Transition.TRIGGERED: "🔔",
    Transition.ESCALATED: "⏫",
    Transition.RAISED: "📈",
    Transition.REMINDED: "⏰",
    Transition.ACKED: "👀",
    Transition.RESOLVED: "✅",
}

Block = dict[str, Any]


ACKNOWLEDGE, SILENCE = "acknowledge", "silence-1h"
"""Action ids of the buttons; their value is the incident's id."""


def build_card(message: Message, *, interactive: bool = False) -> dict[str, Any]:
    """``text`` (for previews and screen readers), ``blocks`` (the header) and one coloured ``attachments`` entry with the rest."""
    sign = STATUS_SIGNS[Transition.RESOLVED] if message.over else SIGNS[message.severity]
    header = {"type": "header", "text": plain(f"{sign} {message.title}", HEADER_CHARS)}
    body = [_summary(message), _facts(message)]
    if message.evidence:
        body.append(section(f"*Evidence*\n{_code(chr(10).join(message.evidence), SECTION_CHARS - 40)}"))
    if message.first_step and not message.over:
        body.append(section(f"*First step*\n{_code(message.first_step, SECTION_CHARS - 40)}"))
    buttons = [*(_actions(message) if interactive else ()), *_links(message, interactive=interactive)]
    if buttons:
        body.append({"type": "actions", "elements": buttons})
    body.append({"type": "context", "elements": [mrkdwn(f"Incident `{escaped(message.incident_id, 100)}` · monitor", 300)]})
    return {
        "text": escaped(as_line(message), FALLBACK_CHARS),
        "blocks": [header],
        "attachments": [{"color": RESOLVED_COLOUR if message.over else COLOURS[message.severity], "blocks": body}],
    }


def thread_line(message: Message, limit: int = SECTION_CHARS - 100) -> str:
    """One line for the card and its thread: what just happened."""
    return f"{STATUS_SIGNS[message.transition]} *{message.status}* · {escaped(message.sentence, limit)}"


def escape(text: str) -> str:
    """Slack's three entities: after this, no ``<!channel>``, mention or link can be formed."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _summary(message: Message) -> Block:
    return section(f"{escaped(message.what, 1900)}\n{thread_line(message, 900)}")


def _facts(message: Message) -> Block:
    rows = (
        ("Where", message.where),
        ("How bad", message.how_bad),
        ("Since", message.began),
        ("How long", f"{message.lasted}{'' if message.over else ' so far'}"),
    )
    return {"type": "section", "fields": [mrkdwn(f"*{name}*\n{escaped(text, FIELD_CHARS - 40)}", FIELD_CHARS) for name, text in rows]}


def _actions(message: Message) -> list[Block]:
    """What can be done from the card, as long as it makes sense."""
    if message.over:
        return []
    value = message.incident_id
    take = {"type": "button", "text": plain("Acknowledge", 75), "style": "primary", "action_id": ACKNOWLEDGE, "value": value}
    silence = {"type": "button", "text": plain("Silence 1 h", 75), "action_id": SILENCE, "value": value}
    return [silence] if message.transition is Transition.ACKED else [take, silence]


def _links(message: Message, *, interactive: bool) -> list[Block]:
    """The page to acknowledge on is left out where a button does it."""
    return [
        {"type": "button", "text": plain(link.title, 75), "url": link.url, "action_id": f"link-{number}"}
        for number, link in enumerate(message.links)
        if len(link.url) <= URL_CHARS and not (interactive and link.url.endswith(TAKE))
    ]


def section(text: str) -> Block:
    return {"type": "section", "text": mrkdwn(text, SECTION_CHARS)}


def _code(text: str, limit: int) -> str:
    """A code block; a backtick inside would end it."""
    return f"```{escaped(text.replace('`', 'ʼ'), limit)}```"


def mrkdwn(text: str, limit: int) -> dict[str, Any]:
    """``verbatim``: words that look like links, channels or names stay words."""
    assert length(text) <= limit
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escaped(text, limit), "emoji": False}


def escaped(text: str, limit: int) -> str:
    """Escape, and cut so that the *escaped* text fits and no entity is cut in half."""
    kept: list[str] = []
    room = limit - 1
    for char in text:
        cost = length(escape(char))
        if cost > room:
            return "".join(kept) + "…"
        kept.append(escape(char))
        room -= cost
    return "".join(kept)


def length(text: str) -> int:
    """Characters as Slack's clients count them: UTF-16 units, so an emoji is two."""
    return len(text) + sum(char > "\uffff" for char in text)
