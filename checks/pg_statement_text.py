"""Other people's statements made fit to show: literals masked, one printable line, cut."""

import re

from monitor.plugins import one_line

SHOWN_CHARS = 120

_LITERALS = re.compile(
    r"""
    (?P<dollar>\$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|\Z))     # $$…$$, also when it was cut off
    | (?P<escaped>\b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))                 # E'…\'…'
    | (?P<quoted>\b(?:[nNbBxX]|[uU]&)?'(?:[^']|'')*(?:'|\Z)|'(?:[^']|'')*(?:'|\Z))
    | (?P<comment>/\*.*?(?:\*/|\Z)|--[^\n]*)
    | (?P<number>(?<![\w$.])\d[\w.]*)                                # not the 1 of $1 or of t1
    """,
    re.VERBOSE | re.DOTALL,
)


def masked(statement: str, *, limit: int = SHOWN_CHARS) -> str:
    """The statement with every literal as ``?`` and without comments: both may hold secrets and people's data."""
    return one_line(_LITERALS.sub(lambda found: " " if found["comment"] else "?", statement), limit=limit)
