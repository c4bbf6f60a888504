"""Alerts on the wire, in Alertmanager's form: decoded as far as it takes to see whether they say anything new."""

from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from alerts.posted import PostedAlert
from monitor.domain import bounded
from monitor.errors import UsageError

_UNSET_YEAR = 1
"""Go's zero time: what amtool sends for a moment that was not given."""
_NOTHING = msgspec.Raw(b"{}")


class _Alert(msgspec.Struct, rename="camel"):
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    generator_url: str = msgspec.field(default="", name="generatorURL")


class _Sketch(msgspec.Struct, rename="camel"):
    """The same, its labels and annotations left as they were written."""

    labels: msgspec.Raw
    annotations: msgspec.Raw = _NOTHING
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    generator_url: str = msgspec.field(default="", name="generatorURL")


_WHOLE = msgspec.json.Decoder(list[_Alert])
_SKETCHES = msgspec.json.Decoder(list[_Sketch])
_WORDS = msgspec.json.Decoder(dict[str, str])


class Posting(NamedTuple):
    """One alert as it was sent. Missing moments are None."""

    key: bytes
    """Hash of the labels as they were written: the same sender writes the same alert the same way."""
    words: bytes
    """Hash of the annotations as they were written."""
    labels: msgspec.Raw
    annotations: msgspec.Raw
    starts_at: datetime | None
    ends_at: datetime | None
    generator_url: str

    def read(self) -> PostedAlert:
        """The alert with its labels and annotations."""
        return PostedAlert(_WORDS.decode(self.labels), _WORDS.decode(self.annotations), self.starts_at, self.ends_at, self.generator_url)


def read_postings(body: bytes, known: Callable[[bytes, bytes], bool]) -> list[Posting]:
    """Every alert of a request. Raises ``UsageError`` when the body is not a list of alerts.

    Labels and annotations that are ``known``, asked by their hashes, were read before and are not read again.
    """
    try:
        found = [_posting(sketch) for sketch in _SKETCHES.decode(body)]
        for posting in found:
            if not known(posting.key, posting.words):
                _WHOLE.decode(body)
                break
    except ValueError as exc:  # msgspec's errors are some
        raise UsageError(f"bad request body: {exc}") from None
    return found


def _posting(sketch: _Sketch) -> Posting:
    labels, annotations, starts_at, ends_at = sketch.labels, sketch.annotations, sketch.starts_at, sketch.ends_at
    key, words = blake2b(labels, digest_size=16).digest(), blake2b(annotations, digest_size=8).digest()
    return Posting(key, words, labels, annotations, _moment(starts_at), _moment(ends_at), sketch.generator_url)


def _moment(sent: datetime | None) -> datetime | None:
    if sent is None or sent.year == _UNSET_YEAR:
        return None
    return bounded(sent)
