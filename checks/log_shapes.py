"""The shape of a message: what stays the same when the same thing goes wrong for another number, id, path or name."""

import hashlib
import re

from monitor.plugins import one_line

SHAPE_CHARS = 120
LOOKED_AT = 400
"""Characters of a message that its shape is made of."""

_VARYING = re.compile(
    r"""
      (?P<uuid>\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b)
    | (?P<url>\b[a-z][a-z0-9+]{1,9}://[^\s"'<>,;)]+)
    | (?P<text>"[^"]*"|(?<!\w)'[^']*'(?!\w)|`[^`]*`|«[^»]*»)
    | (?P<mail>\b[\w.+-]+@[\w-]+\.[\w.-]+)
    | (?P<path>(?<![\w<])~?(?:/[\w.@%+=~-]+){2,}/?|\b[A-Za-z]:\\[^\s"']+)
    | (?P<hex>\b0[xX][0-9a-fA-F]+\b|\b(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b)
    | (?P<id>\b(?=[A-Za-z_]*\d)(?=\d*[A-Za-z_])\w{6,}\b)
    | (?P<n>[-+]?\d+(?:[.,:]\d+)*)
    """,
    re.VERBOSE,
)
_LIST = re.compile(r"(<\w+>)(?:(?:,\ ?|\ )\1)+")
_UNENDED = re.compile(r"""["'`«][^"'`»]*$""")


def shape(text: str) -> str:
    """``text`` on one line with numbers, ids, hex, uuids, paths, addresses and quoted strings masked."""
    shown = one_line(text, limit=LOOKED_AT)
    masked = _VARYING.sub(lambda found: f"<{found.lastgroup}>", shown)
    if len(shown) == LOOKED_AT:
        masked = _UNENDED.sub("<text>", masked)  # a quotation that was cut off varies like a whole one
    return one_line(_LIST.sub(r"\1…", masked), limit=SHAPE_CHARS)


def shape_id(of: str) -> str:
    """A short name for a shape."""
    return hashlib.blake2b(of.encode(errors="replace"), digest_size=6).hexdigest()
