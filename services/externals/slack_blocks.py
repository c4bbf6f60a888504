"""What Slack accepts as a message: the published limits of Block Kit and of ``chat.postMessage``, checked as Slack would.

Sources: docs.slack.dev (Block Kit reference); the total over all blocks is undocumented, about 13,200 characters.
"""

from collections.abc import Iterable
from typing import Any

BLOCKS_MAX = 50
ATTACHMENTS_MAX = 100
TEXT_CHARS = 40_000
TOTAL_CHARS = 13_200
HEADER_CHARS = 150
SECTION_CHARS = 3000
FIELDS_MAX, FIELD_CHARS = 10, 2000
ACTIONS_MAX, CONTEXT_MAX = 25, 10
BUTTON_CHARS, BUTTON_VALUE_CHARS, URL_CHARS, ID_CHARS = 75, 2000, 3000, 255

Json = dict[str, Any]


class InvalidMessage(ValueError):
    """Refused with Slack's ``code``; ``details`` are its ``response_metadata.messages``."""

    def __init__(self, code: str, *details: str) -> None:
        super().__init__(code)
        self.code = code
        self.details = details


def check_message(text: object, blocks: object, attachments: object) -> None:
    """Raise :class:`InvalidMessage` when Slack would not take the message."""
    if not isinstance(text, str) or not isinstance(blocks, list) or not isinstance(attachments, list):
        raise InvalidMessage("invalid_arguments")
    if not text and not blocks and not attachments:
        raise InvalidMessage("no_text")
    if len(text) > TEXT_CHARS:
        raise InvalidMessage("msg_too_long")
    if len(attachments) > ATTACHMENTS_MAX:
        raise InvalidMessage("too_many_attachments")
    nested = [part.get("blocks", []) for part in attachments if isinstance(part, dict)]
    if len(nested) < len(attachments) or not all(isinstance(part, list) for part in nested):
        raise InvalidMessage("invalid_attachments")
    total = 0
    for group in (blocks, *nested):
        if len(group) > BLOCKS_MAX:
            raise InvalidMessage("invalid_blocks", f"no more than {BLOCKS_MAX} items allowed [json-pointer:/blocks]")
        for number, block in enumerate(group):
            total += _check_block(block, f"/blocks/{number}")
    if total > TOTAL_CHARS:
        raise InvalidMessage("msg_blocks_too_long")


def _check_block(block: object, at: str) -> int:
    """Characters of text in the block."""
    if not isinstance(block, dict):
        raise InvalidMessage("invalid_blocks", f"must be an object [json-pointer:{at}]")
    _require(len(str(block.get("block_id", ""))) <= ID_CHARS, "block_id is too long", at)
    match block.get("type"):
        case "header":
            return _text(block.get("text"), HEADER_CHARS, f"{at}/text", kinds=("plain_text",))
        case "section":
            return _section(block, at)
        case "context":
            elements = _elements(block, CONTEXT_MAX, at)
            return sum(_text(element, SECTION_CHARS, f"{at}/elements/{number}") for number, element in enumerate(elements))
        case "actions":
            return sum(_button(element, f"{at}/elements/{number}") for number, element in enumerate(_elements(block, ACTIONS_MAX, at)))
        case "divider":
            return 0
    raise InvalidMessage("invalid_blocks", f"unsupported type: {block.get('type')} [json-pointer:{at}/type]")


def _section(block: Json, at: str) -> int:
    fields = block.get("fields", [])
    _require("text" in block or bool(fields), "missing required field: text", at)
    _require(isinstance(fields, list) and len(fields) <= FIELDS_MAX, f"no more than {FIELDS_MAX} items allowed", f"{at}/fields")
    total = _text(block["text"], SECTION_CHARS, f"{at}/text") if "text" in block else 0
    if "accessory" in block:
        total += _button(block["accessory"], f"{at}/accessory")
    return total + sum(_text(field, FIELD_CHARS, f"{at}/fields/{number}") for number, field in enumerate(fields))


def _button(element: object, at: str) -> int:
    _require(isinstance(element, dict) and element.get("type") == "button", "unsupported element", at)
    assert isinstance(element, dict)
    url = str(element.get("url", ""))
    _require(len(url) <= URL_CHARS and (not url or url.startswith(("https://", "http://"))), "invalid url", f"{at}/url")
    _require(len(str(element.get("action_id", ""))) <= ID_CHARS, "action_id is too long", at)
    _require(len(str(element.get("value", ""))) <= BUTTON_VALUE_CHARS, "value is too long", at)
    _require(element.get("style") in (None, "primary", "danger"), "invalid style", at)
    return _text(element.get("text"), BUTTON_CHARS, f"{at}/text", kinds=("plain_text",))


def _text(part: object, limit: int, at: str, kinds: Iterable[str] = ("plain_text", "mrkdwn")) -> int:
    _require(isinstance(part, dict) and part.get("type") in tuple(kinds), "must be a text object", at)
    assert isinstance(part, dict)
    text = part.get("text")
    _require(isinstance(text, str) and bool(text), "must be at least 1 character", f"{at}/text")
    _require(len(str(text)) <= limit, f"must be less than {limit + 1} characters", f"{at}/text")
    _require(part["type"] == "plain_text" or "emoji" not in part, "emoji is for plain_text only", at)
    _require(part["type"] == "mrkdwn" or "verbatim" not in part, "verbatim is for mrkdwn only", at)
    return len(str(text))


def _elements(block: Json, limit: int, at: str) -> list[Any]:
    elements = block.get("elements")
    _require(isinstance(elements, list) and 0 < len(elements) <= limit, f"1 to {limit} items allowed", f"{at}/elements")
    assert isinstance(elements, list)
    return elements


def _require(fine: bool, message: str, at: str) -> None:
    if not fine:
        raise InvalidMessage("invalid_blocks", f"{message} [json-pointer:{at}]")
