"""A configuration file as read: its data, where each key stands, and the list of problems found in it.

Owns reading, TOML syntax and the wording of places; knows nothing of what the keys mean.
"""

import difflib
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor.config.lines import KeyPath, find_lines
from monitor.errors import ConfigError, Problem
from monitor.plugins import SecretSources, one_line

MAX_BYTES = 1_048_576
MAX_SHOWN = 64
"""Characters of a name from the file that a message repeats."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SYNTAX_HINT = 'text stands in double quotes, lists are written ["a", "b"], and a key or table appears once'


class Document:
    """The parsed file, and the problems found so far."""

    def __init__(self, path: Path, data: dict[str, Any], lines: dict[KeyPath, int], sources: SecretSources) -> None:
        self.path = path
        self.data = data
        self.sources = sources
        self.problems: list[Problem] = []
        self._lines = lines

    def add(self, at: KeyPath, message: str, hint: str = "") -> None:
        """Note a problem at the key ``at``; what is not written in the file stands where its table stands."""
        problem = Problem(str(self.path), self.line(at), show_key(at), message, hint)
        if problem not in self.problems:
            self.problems.append(problem)

    def line(self, at: KeyPath) -> int | None:
        """The line of ``at``, or of the nearest table around it that is written; None when there is none."""
        return next((self._lines[at[:end]] for end in range(len(at), 0, -1) if at[:end] in self._lines), None)

    def table(self, at: KeyPath, *, required: bool = False) -> dict[str, Any]:
        """The table at ``at``; empty when it is missing or not a table, which is a problem."""
        value: Any = self.data
        for part in at:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict):
            return value
        if value is not None:
            self.add(at, f"must be a table, written [{show_key(at)}]")
        elif required:
            self.add(at, "this table is missing")
        return {}

    def named_tables(self, at: KeyPath, *, required: bool = False) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
        """Every table below ``at`` whose name can be part of an instance's key and a metric's label."""
        for name, value in self.table(at, required=required).items():
            place = (*at, name)
            if not _NAME.fullmatch(name):
                self.add(place, "a name has 1 to 63 letters, digits, dots, dashes or underscores, and begins with a letter or digit")
            elif not isinstance(value, dict):
                self.add(place, f"must be a table, written [{show_key(place)}]")
            else:
                yield name, place, value

    def check_keys(self, at: KeyPath, valid: Iterable[str]) -> None:
        """Note every key of the table ``at`` that is not ``valid``."""
        names = tuple(valid)
        for key in self.table(at):
            if key not in names:
                self.add((*at, key), "unknown key" if at else "unknown table", nearest(key, names))

    def raise_problems(self) -> None:
        """Raise ``ConfigError`` with every problem, in the file's order, when there are any."""
        if self.problems:
            raise ConfigError(tuple(sorted(self.problems, key=lambda problem: (problem.line or 0, problem.key))))


def read_document(path: Path, environ: Mapping[str, str]) -> Document:
    """Read and parse ``path``; secrets are looked up in ``environ``, relative paths start at its folder.

    Raises ``ConfigError`` with one problem when there is no TOML to look into."""
    text = _read_text(path)
    try:
        sources = SecretSources(environ, Path(os.path.abspath(path)).parent)
        return Document(path, tomllib.loads(text), find_lines(text), sources)
    except tomllib.TOMLDecodeError as exc:
        # The only place where the standard library says where: "… (at line 3, column 7)" or "… (at end of document)".
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(exc), re.DOTALL)
        reason, line, column = found.groups() if found else (str(exc), None, None)
        where = f"column {column}" if column else "at the end of the file"
        raise _unusable(path, f"not valid TOML: {reason}, {where}", _SYNTAX_HINT, int(line) if line else text.count("\n") + 1) from None
    except RecursionError:
        raise _unusable(path, "lists or tables are nested too deeply") from None


def _read_text(path: Path) -> str:
    try:
        # Non-blocking, so that a pipe named by mistake does not hang the start.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_BYTES + 1) if regular else b""
    except FileNotFoundError:
        raise _unusable(path, "there is no such file", "name it with --config FILE") from None
    except IsADirectoryError:
        raise _unusable(path, "this is a directory", "name the configuration file in it") from None
    except PermissionError:
        raise _unusable(path, "no permission to read the file", "the monitor's user must be able to read it") from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else "not a valid path"
        raise _unusable(path, f"the file cannot be read: {reason}") from None
    if not regular:
        raise _unusable(path, "this is not a regular file")
    if len(content) > MAX_BYTES:
        raise _unusable(path, "the file is larger than 1 MiB", "is this the right file?")
    try:
        # A byte-order mark, as some editors write, is no part of the text. Lines end as TOML says, and as positions count them.
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise _unusable(path, "the file is not UTF-8 text", "save it as UTF-8", line) from None


def _unusable(path: Path, message: str, hint: str = "", line: int | None = None) -> ConfigError:
    return ConfigError((Problem(str(path), line, "file", message, hint),))


def show_key(at: KeyPath) -> str:
    """A path as people write it: ``escalation.P1[0].after``, with quotes only where TOML needs them."""
    shown = ""
    for part in at:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            cut = part if len(part) <= MAX_SHOWN else part[: MAX_SHOWN - 1] + "…"
            name = cut if _BARE_KEY.fullmatch(cut) else json.dumps(one_line(cut), ensure_ascii=False)
            shown += f".{name}" if shown else name
    return shown


def nearest(name: str, valid: Iterable[str], *, noun: str = "valid here") -> str:
    """A hint: the valid name most like ``name``, or else all of them."""
    names: Sequence[str] = sorted(set(valid))
    lowered = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    if close:
        return f'did you mean "{lowered[close[0]]}"?'
    return f"{noun}: {', '.join(names)}" if names else ""


def no_such(noun: str, name: str) -> str:
    """A message: the file refers to something that is not there."""
    return f'there is no {noun} "{one_line(name, limit=MAX_SHOWN)}"'


def names_in(table: object) -> tuple[str, ...]:
    """The names of a table's entries, also of those that are broken: a reference to one is no second problem."""
    return tuple(table) if isinstance(table, dict) else ()
