"""On which line of a TOML file every table, key and array element stands.

``tomllib`` decides what a file means and forgets where it was written; tree-sitter's TOML grammar knows.
"""

import tomllib
from collections.abc import Iterator

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

KeyPath = tuple[str | int, ...]
"""From the root of the document: names of keys and indices of array elements."""

_TOML = Language(tree_sitter_toml.language())


def find_lines(text: str) -> dict[KeyPath, int]:
    """The 1-based line of every path in ``text``, which ``tomllib`` must have accepted.

    A table stands where its header is, or, without one, where its first key is.
    """
    walk = _Walk()
    for node in Parser(_TOML).parse(text.encode()).root_node.named_children:
        if node.has_error:
            continue  # the grammar did not follow: better no line than a wrong one
        if node.type == "pair":
            walk.pair((), node)
        elif node.type == "table":
            walk.table(node)
        elif node.type == "table_array_element":
            walk.array_element(node)
    return walk.lines


class _Walk:
    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._last_index: dict[KeyPath, int] = {}
        """Arrays of tables, with the index of the element that headers below them mean."""

    def table(self, node: Node) -> None:
        key, *rest = node.named_children
        path = self._descend((), _names(key), _line(key))
        self.lines[path] = _line(key)
        self._pairs(path, rest)

    def array_element(self, node: Node) -> None:
        key, *rest = node.named_children
        *above, name = _names(key)
        array = (*self._descend((), above, _line(key)), name)
        self._last_index[array] = self._last_index.get(array, -1) + 1
        path = (*array, self._last_index[array])
        self.lines.setdefault(array, _line(key))
        self.lines[path] = _line(key)
        self._pairs(path, rest)

    def pair(self, base: KeyPath, node: Node) -> None:
        key, value = (child for child in node.named_children if child.type != "comment")
        path = self._descend(base, _names(key), _line(key))
        self.lines[path] = _line(key)
        self._value(path, value)

    def _pairs(self, path: KeyPath, nodes: list[Node]) -> None:
        for node in nodes:
            if node.type == "pair":
                self.pair(path, node)

    def _value(self, path: KeyPath, node: Node) -> None:
        children = [child for child in node.named_children if child.type != "comment"]
        if node.type == "inline_table":
            self._pairs(path, children)
        elif node.type == "array":
            for index, child in enumerate(children):
                self.lines[(*path, index)] = _line(child)
                self._value((*path, index), child)

    def _descend(self, base: KeyPath, names: list[str], line: int) -> KeyPath:
        """The path of ``names`` below ``base``; tables that come into being on the way stand on ``line``."""
        path = base
        for name in names:
            path = (*path, name)
            self.lines.setdefault(path, line)
            if path in self._last_index:
                path = (*path, self._last_index[path])
        return path


def _names(key: Node) -> list[str]:
    return [_name(part) for part in _parts(key)]


def _parts(key: Node) -> Iterator[Node]:
    """The single keys of a dotted one, in order; the grammar nests them to the left."""
    waiting = [key]
    while waiting:
        node = waiting.pop()
        if node.type == "dotted_key":
            waiting.extend(reversed(node.named_children))
        else:
            yield node


def _name(part: Node) -> str:
    text = (part.text or b"").decode()
    # tomllib itself undoes quotes and escapes.
    return text if part.type == "bare_key" else next(iter(tomllib.loads(f"{text} = 0")))


def _line(node: Node) -> int:
    return node.start_point.row + 1
