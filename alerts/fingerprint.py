"""Identity of alerts and incidents. Made of labels and times only, never of text, values or configuration."""

import hashlib
import struct
from collections.abc import Sequence
from datetime import datetime

from monitor.domain import Labels

_OFFSET = 14695981039346656037
_PRIME = 1099511628211
_MASK = 0xFFFFFFFFFFFFFFFF
_LANE = 14
"""Bytes of one hash among others in a large number: 64 bits, and room for the 41 of the prime."""
_MOST_LANES, _FEWEST_LANES = 128, 20
_LANES = struct.Struct("<Q6x")
_ONE, _START, _WHOLE = (value.to_bytes(_LANE, "little") for value in (0xFF, _OFFSET, _MASK))


def fingerprint(labels: Labels) -> str:
    """Hash sorted label pairs as Alertmanager does: FNV-1a 64 over ``name 0xff value 0xff``, 16 hex digits.

    Source: Alertmanager's ``model.LabelSet.Fingerprint``; a test asks the real one.
    """
    return f"{_hash(_text(labels)):016x}"


def fingerprints(many: Sequence[Labels]) -> list[str]:
    """The fingerprint of each. A storm hashes megabytes: texts of about the same length are hashed side by side."""
    texts = [_text(labels) for labels in many]
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    values = [0] * len(texts)
    for first in range(0, len(texts), _MOST_LANES):
        places = by_length[first : first + _MOST_LANES]
        some = [texts[at] for at in places]
        alike = len(some) >= _FEWEST_LANES and len(some[-1]) <= 2 * len(some[0])
        for at, value in zip(places, _hash_side_by_side(some) if alike else map(_hash, some), strict=True):
            values[at] = value
    return [f"{value:016x}" for value in values]


def incident_id(group: str, opened_at: datetime) -> str:
    """Twelve hex digits from the group and the moment of opening: the same decision always makes the same id."""
    return hashlib.sha256(f"{group}\0{opened_at.isoformat()}".encode(errors="replace")).hexdigest()[:12]


def _text(labels: Labels) -> bytes:
    return b"\xff".join([*[part.encode(errors="replace") for pair in sorted(labels) for part in pair], b""])


def _hash(text: bytes) -> int:
    value, prime, mask = _OFFSET, _PRIME, _MASK  # local names, and four bytes at once
    fours = iter(text[: len(text) & ~3])
    for one, two, three, four in zip(fours, fours, fours, fours, strict=True):  # the lower 64 bits never depend on the others
        value = ((((((((value ^ one) * prime) ^ two) * prime) ^ three) * prime) ^ four) * prime) & mask
    for byte in text[len(text) & ~3 :]:
        value = ((value ^ byte) * prime) & mask
    return value


def _hash_side_by_side(texts: Sequence[bytes]) -> list[int]:
    """One large number holds a hash of each text, so that one multiplication makes a step of all of them. The shortest text comes first.

    Texts end together: until its first byte a shorter one's hash is zero, and zero stays zero.
    """
    count, longest = len(texts), len(texts[-1])
    rows = b"".join([text.rjust(longest, b"\0") for text in texts])
    ones, whole = int.from_bytes(_ONE * count, "little"), int.from_bytes(_WHOLE * count, "little")
    begins: dict[int, bytearray] = {}
    for place, text in enumerate(texts):
        starts = begins.setdefault(longest - len(text), bytearray(_LANE * count))
        starts[_LANE * place : _LANE * (place + 1)] = _START
    values, lanes = 0, bytearray(_LANE * count)
    for first in range(0, longest, 8):  # eight bytes of each text at once: to make a large number costs more than to shift it
        for byte in range(min(8, longest - first)):
            lanes[byte::_LANE] = rows[first + byte :: longest]
        words = int.from_bytes(lanes, "little")
        for at in range(first, min(first + 8, longest)):
            if at in begins:
                values ^= int.from_bytes(begins[at], "little")
            values = ((values ^ (words & ones)) * _PRIME) & whole
            words >>= 8
    return [value for (value,) in _LANES.iter_unpack(values.to_bytes(_LANE * count, "little"))]
