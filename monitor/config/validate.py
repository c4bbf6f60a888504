"""One table through one pydantic model: what does not fit becomes problems in plain words, at the right line.

Values are never repeated: what was written may be a secret in the wrong place.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from monitor.config.document import Document, nearest
from monitor.config.lines import KeyPath

ModelT = TypeVar("ModelT", bound=BaseModel)

_WORDS = {
    "missing": "is required and missing",
    "extra_forbidden": "unknown key",
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": 'must be a list, written ["a", "b"]',
    "tuple_type": 'must be a list, written ["a", "b"]',
    "set_type": 'must be a list, written ["a", "b"]',
    "dict_type": 'must be a table, written {{key = "value"}}',
    "mapping_type": 'must be a table, written {{key = "value"}}',
    "model_type": 'must be a table, written {{key = "value"}}',
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "union_tag_invalid": "must be one of {expected_tags}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}


def validate(document: Document, model: type[ModelT], raw: Mapping[str, Any], at: KeyPath, also: Collection[str] = ()) -> ModelT | None:
    """Make a ``model`` of the table ``raw`` that stands at ``at``, or None after noting every problem in ``document``.

    ``also`` are further keys that are valid in the same table, for the hint at an unknown one.
    """
    try:
        return model.model_validate(dict(raw), context=document.sources)
    except ValidationError as exc:
        errors = exc.errors(include_input=False, include_url=False)
    found: dict[KeyPath, tuple[list[str], str]] = {}
    for error in errors:
        where = _where(raw, error)
        messages, _ = found.setdefault(where, ([], _hint(model, where, error, also)))
        message = _message(error)
        if message not in messages:
            messages.append(message)
    for where, (messages, hint) in found.items():
        document.add((*at, *where), ", or ".join(messages), hint)
    return None


def names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a model as they are written in the file."""
    return tuple(field.validation_alias if isinstance(field.validation_alias, str) else name for name, field in model.model_fields.items())


def _where(raw: Mapping[str, Any], error: ErrorDetails) -> KeyPath:
    """The error's place in the file: pydantic also names union members and keys, which nobody wrote."""
    value: Any = raw
    path: list[str | int] = []
    for part in error["loc"]:
        written = part in value if isinstance(value, Mapping) else isinstance(part, int) and isinstance(value, list) and part < len(value)
        if written:
            path.append(part)
            value = value[part]
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _message(error: ErrorDetails) -> str:
    words = _WORDS.get(error["type"])
    context = error.get("ctx", {})
    if words is None:
        return error["msg"].replace("Input should be", "must be")
    if context.get("min_length") == 1:
        return "must not be empty"
    return words.format(**context)


def _hint(model: type[BaseModel], where: KeyPath, error: ErrorDetails, also: Collection[str]) -> str:
    if error["type"] == "extra_forbidden" and len(where) == 1:
        return nearest(str(where[0]), (*names_of(model), *also))
    return str(getattr(error.get("ctx", {}).get("error"), "hint", ""))
