"""Other people's statements made fit to show: literals masked, one printable line, cut.

Where the text is ambiguous or was cut off, more is masked rather than less: what stands in a literal may be a password.
"""

import re

from monitor.plugins import one_line

SHOWN_CHARS = 120

_PARTS = re.compile(
    r"""
    (?P<comment>--[^\n]*
        | /\*(?:(?!\*/|/\*).)*(?:\*/|/\*.*\Z|\Z))                    # with one in another, all that follows
    | (?P<name>"(?:[^"]|"")*(?:"|\Z))                                # a quote in a name opens no literal
    | (?P<dollar>\$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|\Z))   # $$…$$, also when it was cut off
    | (?P<escaped>\b[eE]'(?:[^'\\]|\\.|'')*(?:\\?\Z|'))              # E'…\'…'
    | (?P<unclear>'(?:[^']|'')*\\'.*\Z)                              # a backslash may hide the quote: standard_conforming_strings
    | (?P<quoted>\b(?:[nNbBxX]|[uU]&)?'(?:[^']|'')*(?:'|\Z)|'(?:[^']|'')*(?:'|\Z))
    | (?P<number>(?<![\w$.])\d[\w.]*)                                # not the 1 of $1 or of t1
    """,
    re.VERBOSE | re.DOTALL,
)


def masked(statement: str, *, limit: int = SHOWN_CHARS) -> str:
    """The statement with every literal as ``?`` and without comments: both may hold secrets and people's data."""
    return one_line(_PARTS.sub(_shown, statement), limit=limit)


def _shown(part: re.Match[str]) -> str:
    if part["name"] is not None:
        return part["name"]
    return " " if part["comment"] is not None else "?"
