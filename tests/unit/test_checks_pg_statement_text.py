"""Statements as a stranger may see them: no literal survives, however it is quoted, nested, cut off or confused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.pg_statement_text import masked

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM t1 WHERE a = 5 AND b = 'x''y' AND c = $1", "SELECT * FROM t1 WHERE a = ? AND b = ? AND c = $1"),
        ("SELECT E'a\\'b', $$x'y$$, $tag$ secret $tag$", "SELECT ?, ?, ?"),
        ("SELECT 'cut off in the mid", "SELECT ?"),
        ("SELECT E'cut off behind a \\", "SELECT ?"),
        ("SELECT 1.5e3 -- password\n, 0x1F /* key */", "SELECT ? , ?"),
        ("SELECT 1 /* a /* b */ token */, c", "SELECT ?"),
        ("SELECT 1 /* a /* b */ token", "SELECT ?"),
        ("SELECT \"it's\", 'secret'", 'SELECT "it\'s", ?'),
        ("SELECT 'a\\'b secret', 1", "SELECT ?"),
        ("SELECT U&'d\\0061t', x'1F', N'n'", "SELECT ?, ?, ?"),
        ("ALTER ROLE app PASSWORD 'SCRAM-SHA-256$4096:x'", "ALTER ROLE app PASSWORD ?"),
        ("SELECT\u202e\x00 1", "SELECT ?"),
        ("", ""),
    ],
)
def test_literals_and_comments_are_masked(statement: str, shown: str) -> None:
    assert masked(statement) == shown


LITERALS = st.sampled_from(
    [
        f"'{SECRET}'",
        f"'it''s {SECRET}'",
        f"E'\\'{SECRET}'",
        f"$${SECRET}'$$",
        f"$q$ ' {SECRET} $q$",
        f"/* {SECRET} ' */",
        f"-- {SECRET} '\n",
    ]
)
WORDS = st.sampled_from(["SELECT", "a1", '"it\'s"', '"a""b"', "$1", "=", ",", "(", ")", "42", "''", "/**/", "x.y", "'--'", "'/*'", "\n"])


@given(st.lists(WORDS | LITERALS, max_size=30), st.integers(0, 400))
def test_no_literal_survives_whatever_surrounds_it_and_wherever_it_is_cut(parts: list[str], cut: int) -> None:
    statement = " ".join(parts)[: max(cut, 0)]
    shown = masked(statement, limit=10_000)
    assert SECRET not in shown
    assert shown.isprintable()


@given(st.text())
def test_anything_becomes_one_short_printable_line(text: str) -> None:
    shown = masked(text)
    assert len(shown) <= 120
    assert shown.isprintable()
