"""What the intake remembers of the alerts it stored, so that an alert that is sent again is not read, judged and written anew.

It is a guess. The statement that repeats an alert checks it: the row must be as it was stored last, or the alert goes the whole way.
So nothing depends on it: not a restart, not another process that writes the same state, not what was dropped here.
"""

import struct
from datetime import datetime, timedelta
from itertools import islice

from monitor.domain import Alert
from monitor.postings import Posting
from monitor.store import Repeat, micros

MOST = 100_000
"""Alerts remembered; the oldest are dropped first."""
_AT_ONCE = MOST // 10
_ROW = struct.Struct("<Q8sqqq?")
"""Fingerprint, hash of the annotations, begin; and what a repetition changes: end, when it was sent last, whether the end was unsaid."""
_CHANGING = struct.Struct("<qq?")
_LASTING = _ROW.size - _CHANGING.size


class Picture:
    """By the hash of labels as they were written: what is stored of a firing alert. Packed: there are many."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}

    def knows(self, key: bytes, words: bytes) -> bool:
        """Whether these labels and annotations were read before."""
        row = self._rows.get(key)
        return row is not None and row[8:16] == words

    def repeat(self, posting: Posting, resolve_after: timedelta, now: datetime, before: Repeat | None = None) -> Repeat | None:
        """The change of the row when this only says again what is stored: new moments, and by whom. Else None.

        ``before`` is the same alert earlier in the same batch.
        """
        row = self._rows.get(posting.key)
        if row is None:
            return None
        fingerprint, words, begun, was_ends, was_updated, was_unsaid = _ROW.unpack(row)
        ends_at = posting.ends_at or now + resolve_after
        if words != posting.words or ends_at <= now:
            return None
        ends = micros(ends_at)
        starts = ends if posting.starts_at is None else micros(posting.starts_at)
        if starts < begun or ends < starts:
            return None
        unsaid = posting.ends_at is None
        last_ends, last_unsaid = (before.ends, before.unsaid) if before else (was_ends, was_unsaid)
        if last_ends > ends and not last_unsaid:  # an end that was named counts over one that was not, and a later one over an earlier
            ends, unsaid = last_ends, False
        url = posting.generator_url[:2000].replace("\0", "")
        return Repeat(f"{fingerprint:016x}", ends, unsaid, micros(now), url, was_updated, was_ends)

    def keep(self, posting: Posting, stored: Alert) -> None:
        """Remember what was stored of a firing alert."""
        assert stored.ends_at is not None
        assert stored.updated_at is not None
        moments = (micros(stored.pending_since), micros(stored.ends_at), micros(stored.updated_at))
        self._put(posting.key, _ROW.pack(int(stored.fingerprint, 16), posting.words, *moments, stored.ends_unsaid))

    def keep_repeat(self, key: bytes, repeat: Repeat) -> None:
        """Remember a repetition that was stored."""
        row = self._rows.get(key)
        if row is not None:
            self._put(key, row[:_LASTING] + _CHANGING.pack(repeat.ends, repeat.updated, repeat.unsaid))

    def drop(self, key: bytes) -> None:
        """Forget an alert: it ended, or is not as it was."""
        self._rows.pop(key, None)

    def clear(self) -> None:
        """Forget everything: the configuration changed what alerts mean."""
        self._rows.clear()

    def _put(self, key: bytes, row: bytes) -> None:
        self._rows[key] = row
        if len(self._rows) > MOST:
            for oldest in list(islice(self._rows, _AT_ONCE)):
                del self._rows[oldest]
