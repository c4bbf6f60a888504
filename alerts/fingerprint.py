"""Identity of alerts and incidents. Made of labels and times only, never of text, values or configuration."""

import hashlib
from datetime import datetime

from monitor.domain import Labels

_OFFSET = 14695981039346656037
_PRIME = 1099511628211
_MASK = 0xFFFFFFFFFFFFFFFF


def fingerprint(labels: Labels) -> str:
    """Hash sorted label pairs as Alertmanager does: FNV-1a 64 over ``name 0xff value 0xff``, 16 hex digits.

    Source: Alertmanager's ``model.LabelSet.Fingerprint``; a test asks the real one.
    """
    text = b"\xff".join([*[part.encode(errors="replace") for pair in sorted(labels) for part in pair], b""])
    value, prime, mask = _OFFSET, _PRIME, _MASK  # local names, and four bytes at once: a storm hashes megabytes
    fours = iter(text[: len(text) & ~3])
    for one, two, three, four in zip(fours, fours, fours, fours, strict=True):  # the lower 64 bits never depend on the others
        value = ((((((((value ^ one) * prime) ^ two) * prime) ^ three) * prime) ^ four) * prime) & mask
    for byte in text[len(text) & ~3 :]:
        value = ((value ^ byte) * prime) & mask
    return f"{value:016x}"


def incident_id(group: str, opened_at: datetime) -> str:
    """Twelve hex digits from the group and the moment of opening: the same decision always makes the same id."""
    return hashlib.sha256(f"{group}\0{opened_at.isoformat()}".encode(errors="replace")).hexdigest()[:12]
