"""Slack's mrkdwn as HTML, as a Slack reader would see it: mentions light up, and unescaped text does harm visibly.

Everything else is escaped; only links to web addresses are links.
"""

import re
from collections.abc import Callable

from markupsafe import Markup, escape

_ANGLE = re.compile(r"<([^<>\n]+)>")
_PRE = re.compile(r"```\n?(.+?)\n?```", re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_BOLD = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])")
_ITALIC = re.compile(r"(?<![\w_])_(?=\S)([^_\n]+?)(?<=\S)_(?![\w_])")


def plain_html(text: str) -> Markup:
    """A ``plain_text`` object: entities decoded, nothing else means anything."""
    return Markup("<br>").join(escape(_decode(text)).split("\n"))


def mrkdwn_html(text: str) -> Markup:
    """A ``mrkdwn`` object or a message's ``text``."""
    shown, at = Markup(), 0
    for match in _PRE.finditer(text):
        shown += _outside_pre(text[at : match.start()]) + Markup("<pre>{}</pre>").format(_angles(match[1], _verbatim))
        at = match.end()
    return shown + _outside_pre(text[at:])


def _outside_pre(text: str) -> Markup:
    shown, at = Markup(), 0
    for match in _CODE.finditer(text):
        shown += _angles(text[at : match.start()], _styled) + Markup("<code>{}</code>").format(_angles(match[1], _verbatim))
        at = match.end()
    return shown + _angles(text[at:], _styled)


def _angles(text: str, words: Callable[[str], Markup]) -> Markup:
    """``<…>`` means something even inside code, so it is read first; ``words`` shows what is between."""
    shown, at = Markup(), 0
    for match in _ANGLE.finditer(text):
        shown += words(text[at : match.start()]) + _special(match[1])
        at = match.end()
    return shown + words(text[at:])


def _special(inside: str) -> Markup:
    target, _, label = inside.partition("|")
    if target.startswith("!"):
        return Markup('<b class="mention">@{}</b>').format(_decode(label or target[1:].partition("^")[0]))
    if target.startswith(("@", "#")):
        return Markup('<b class="mention">{}</b>').format(_decode(target[0] + (label or target[1:])))
    if target.startswith(("https://", "http://", "mailto:")):
        return Markup('<a href="{}" rel="noreferrer">{}</a>').format(_decode(target), _decode(label or target))
    return escape(f"<{_decode(inside)}>")


def _decode(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _verbatim(text: str) -> Markup:
    return escape(_decode(text))


def _styled(text: str) -> Markup:
    safe = str(plain_html(text))
    return Markup(_ITALIC.sub(r"<i>\1</i>", _BOLD.sub(r"<b>\1</b>", safe)))  # noqa: S704 - made of escaped text and our own tags
