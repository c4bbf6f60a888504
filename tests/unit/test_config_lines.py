"""Positions in TOML: by hand for the forms people write, by property for the ones they might."""

import json
import tomllib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config.lines import KeyPath, find_lines


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\nb = 2\n", ("b",), 2),
        ("\n\n[t]\n\n# why\nk = 1\n", ("t",), 3),
        ("\n\n[t]\n\n# why\nk = 1\n", ("t", "k"), 6),
        ("[a.b.c]\nk = 1\n", ("a", "b"), 1),
        ("[a.b]\nk = 1\n[a]\nj = 2\n", ("a",), 3),
        ("[a.b]\nk = 1\n[a]\nj = 2\n", ("a", "b", "k"), 2),
        ("[t]\nx = 1\na . b.c = 1\n", ("t", "a", "b", "c"), 3),
        ("[t]\nx = 1\na.b = 1\na.c = 2\n", ("t", "a"), 3),
        ('[t]\n"two words".b = 1\n', ("t", "two words", "b"), 2),
        ("[t]\n'literal \\ key' = 1\n", ("t", "literal \\ key"), 2),
        ('[t]\n"\\u00e9" = 1\n', ("t", "é"), 2),
        ('["quoted.name"]\nk = 1\n', ("quoted.name", "k"), 2),
        ("[t]\n\ni = {a = 1, b = {c = 2}}\n", ("t", "i", "b", "c"), 3),
        ("[t]\nl = [\n  1,\n  # gap\n\n  2,\n]\nk = 1\n", ("t", "l", 1), 6),
        ("[t]\nl = [\n  1,\n  # gap\n\n  2,\n]\nk = 1\n", ("t", "k"), 8),
        ("[e]\nP1 = [\n  {after = 1},\n  {after = 2,  who = 'x'},\n]\n", ("e", "P1", 1, "who"), 4),
        ("[[a]]\nk = 1\n\n[[a]]\nk = 2\n", ("a", 1, "k"), 5),
        ("[[a]]\n[a.t]\nk = 1\n[[a]]\n[a.t]\nk = 2\n", ("a", 1, "t", "k"), 6),
        ("[[a]]\n[[a.b]]\n[[a.b]]\nk = 1\n[[a]]\n[[a.b]]\nk = 2\n", ("a", 0, "b", 1, "k"), 4),
        ("[[a]]\n[[a.b]]\n[[a.b]]\nk = 1\n[[a]]\n[[a.b]]\nk = 2\n", ("a", 1, "b", 0, "k"), 7),
        ('a = """\n[not.a.table]\nk = 1\n"""\nb = 1\n', ("b",), 5),
        ("a = '''x'''''\nb = 1\n", ("b",), 2),
        ('a = "# ] } \\" ="\nb = 1\n', ("b",), 2),
        ("a = [[1, 2],\n[3,\n4]]\n", ("a", 1, 1), 3),
        ("a = 1979-05-27 07:32:00Z\n1979-05-27 = 1\n", ("1979-05-27",), 2),
    ],
)
def test_forms_that_people_write(text: str, path: KeyPath, line: int) -> None:
    tomllib.loads(text)
    assert find_lines(text)[path] == line
    assert find_lines(text.replace("\n", "\r\n"))[path] == line


class Writer:
    """Writes a TOML document line by line, and remembers on which line it put what."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.lines = [""]
        self.written: dict[KeyPath, int] = {}
        self._choose = choose

    def document(self, data: dict[str, object]) -> str:
        self._table((), (), data)
        return "\n".join(self.lines)

    def _table(self, header: tuple[str, ...], path: KeyPath, data: dict[str, object]) -> None:
        later: list[tuple[str, object]] = []
        for name, value in data.items():
            tables = isinstance(value, dict) or (isinstance(value, list) and value and all(isinstance(item, dict) for item in value))
            if tables and self._choose(2):
                later.append((name, value))
            else:
                self._noise()
                self.written[(*path, name)] = len(self.lines)
                self._put(f"{self._key(name)} = ")
                self._value((*path, name), value, inline=False)
                self._end()
        for name, value in later:
            below, place = (*header, name), (*path, name)
            if isinstance(value, dict):
                self._header("[{}]", below, place)
                self._table(below, place, value)
                continue
            assert isinstance(value, list)
            for index, item in enumerate(value):
                self._header("[[{}]]", below, (*place, index))
                self.written.setdefault(place, self.written[(*place, index)])
                self._table(below, (*place, index), item)

    def _header(self, form: str, header: tuple[str, ...], path: KeyPath) -> None:
        self._noise()
        self.written[path] = len(self.lines)
        self._put(form.format(" . ".join(self._key(name) for name in header)))
        self._end()

    def _value(self, path: KeyPath, value: object, *, inline: bool) -> None:
        match value:
            case dict():
                self._put("{")
                for position, (name, item) in enumerate(value.items()):
                    self._put(", " if position else "")
                    self.written[(*path, name)] = len(self.lines)
                    self._put(f"{self._key(name)} = ")
                    self._value((*path, name), item, inline=True)
                self._put("}")
            case list():
                self._put("[")
                for index, item in enumerate(value):
                    if self._choose(2):
                        self._end()
                        self._noise()
                    self.written[(*path, index)] = len(self.lines)
                    self._value((*path, index), item, inline=inline)
                    self._put(",")
                self._put("]")
            case str() if self._choose(2) and "\r" not in value:
                escaped = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")[1:-1].replace("\\n", "\n")
                first, *rest = f'"""\n{escaped}"""'.split("\n")
                self._put(first)
                for line in rest:
                    self.lines.append(line)
            case _:
                self._put(json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f"))

    def _key(self, name: str) -> str:
        return name if name.isascii() and name.isalnum() else json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")

    def _noise(self) -> None:
        for _ in range(self._choose(3)):
            self._put(("", '# [no.table] "', "  ")[self._choose(3)])
            self.lines.append("")

    def _end(self) -> None:
        if self._choose(2):
            self._put(" # ] } = '''")
        self.lines.append("")

    def _put(self, text: str) -> None:
        self.lines[-1] += text


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4) | st.sampled_from(["a", "b", "1", "true", "#", "a.b"])
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["]", '"""', "'''", "\n[t]\n", "#"])
scalars = st.integers(-9, 9) | st.booleans() | st.floats(0, 9, allow_subnormal=False) | texts
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=12)


def paths(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, item in items:
        yield from paths(item, (*path, part))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, trees, max_size=4), st.data())
def test_every_key_and_element_stands_where_it_was_written(data: dict[str, object], draw: st.DataObject) -> None:
    writer = Writer(lambda options: draw.draw(st.integers(0, options - 1)))
    text = writer.document(data)
    assert tomllib.loads(text) == data
    assert find_lines(text) == writer.written
    assert set(writer.written) == set(paths(data))


def test_what_the_grammar_cannot_follow_has_no_line_rather_than_a_wrong_one() -> None:
    assert find_lines("a = \nb = 1\n").get(("a",)) is None
