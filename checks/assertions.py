"""What an answer must look like: its headers, its text by regular expressions, its JSON by paths.

Owns the bounds: an expression of the configuration meets text of a stranger, and must not run for ever. The two engines are imported
when something is first asserted with them: they take 2 MiB.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from monitor.errors import CannotLook
from monitor.plugins import one_line
from monitor.probes_contract import HttpAnswer

WITHIN_S = 0.25
SEARCHED_CHARS = 262_144


def _compiles(pattern: str) -> str:
    import regex  # noqa: PLC0415

    try:
        regex.compile(pattern)
    except regex.error as exc:
        raise ValueError(f"not a regular expression: {exc}") from None
    return pattern


def _is_path(path: str) -> str:
    import jsonpath_rfc9535 as jsonpath  # noqa: PLC0415

    try:
        jsonpath.compile(path)
    except jsonpath.JSONPathError as exc:
        raise ValueError(f'not a JSON path such as "$.jobs[0].state": {exc}') from None
    return path


Regex = Annotated[str, AfterValidator(_compiles)]
JsonPath = Annotated[str, AfterValidator(_is_path)]
"""RFC 9535."""


def wrong_header(answer: HttpAnswer, expected: Mapping[str, str]) -> str:
    """The first header that is missing or does not match its expression, in words; empty when all do."""
    if not expected:
        return ""
    headers = dict(answer.headers)
    for name, pattern in expected.items():
        value = headers.get(name.lower())
        if value is None:
            return f"it has no header {name}"
        if not _found(pattern, value):
            return f"its header {name} is {one_line(value, limit=60)!r}, which does not match {one_line(pattern, limit=60)!r}"
    return ""


def wrong_text(answer: HttpAnswer, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> str:
    """The first expression that the body should match and does not, or should not match and does, in words."""
    if not wanted and not unwanted:
        return ""
    text = answer.body.decode("utf-8", "replace")[:SEARCHED_CHARS]
    for pattern in wanted:
        if not _found(pattern, text):
            return f"its body does not match {one_line(pattern, limit=80)!r}"
    for pattern in unwanted:
        if found := _found(pattern, text):
            return f"its body matches {one_line(pattern, limit=60)!r}: {one_line(found, limit=60)!r}"
    return ""


def wrong_json_path(answer: HttpAnswer, expected: Mapping[str, str]) -> str:
    """The first path whose values are not the expected one, in words. ``*`` expects that there is any."""
    if not expected:
        return ""
    import jsonpath_rfc9535 as jsonpath  # noqa: PLC0415

    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return "its body is not JSON"
    for path, value in expected.items():
        try:
            found = [_text(one) for one in jsonpath.find(path, document).values()]
        except (jsonpath.JSONPathError, RecursionError) as exc:
            raise CannotLook(f"the JSON path {path} cannot be followed in the answer: {exc}") from exc
        if not found:
            return f"its body has nothing at {one_line(path, limit=80)}"
        if value != "*" and any(one != value for one in found):
            seen = next(one for one in found if one != value)
            return f"its {one_line(path, limit=80)} is {one_line(seen, limit=60)!r} instead of {one_line(value, limit=60)!r}"
    return ""


def found_in(pattern: str, said: bytes) -> bool:
    """Whether the expression matches somewhere. Raises ``CannotLook`` when finding out takes too long."""
    return _found(pattern, said.decode("utf-8", "replace")) is not None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _found(pattern: str, text: str) -> str | None:
    """What matches first; None when nothing does. Raises ``CannotLook`` when finding out takes too long."""
    import regex  # noqa: PLC0415

    try:
        match = regex.search(pattern, text, timeout=WITHIN_S)
    except TimeoutError:
        raise CannotLook(f"the regular expression {pattern!r} takes too long on this answer: write a simpler one") from None
    return None if match is None else match[0] or " "
