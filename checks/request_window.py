"""A sliding window of requests as small counts and histograms, and what is known of each upstream server.

Owns the arithmetic and the shape in which it is kept from run to run: bounded, whatever the traffic.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, log

from checks.access_lines import Request
from checks.log_reading import Place
from monitor.plugins import one_line

SLOTS = 6
OTHER = "(other)"
FORGOTTEN_S = 86_400.0
RECENT = 100
TIMEOUTS = (503, 504)
"""A service that waited too long for a connection says 503, the web server that waited too long for a service 504."""
_BASE, _GROWTH, _LAST = 0.001, 1.1, 160
"""Buckets grow by a tenth from 1 ms on: a percentile is right within 5 %. The last one begins at an hour."""

Histogram = dict[int, int]


def bucket(seconds: float) -> int:
    """The bucket of a time: number 0 is up to 1 ms."""
    return 0 if seconds <= _BASE else min(_LAST, ceil(log(seconds / _BASE) / log(_GROWTH) - 1e-9))


def percentile(histogram: Histogram, percent: float) -> float | None:
    """Seconds that ``percent`` of the times do not exceed, within 5 %; None without any."""
    total = sum(histogram.values())
    if not total:
        return None
    rank, seen = max(1, ceil(total * percent / 100)), 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen >= rank:
            break
    return _BASE if number == 0 else 2 * _BASE * _GROWTH**number / (_GROWTH + 1)


@dataclass(slots=True)
class UpstreamSlot:
    """What one upstream server did in one part of the window."""

    requests: int = 0
    failed: int = 0
    times: Histogram = field(default_factory=dict)


@dataclass(slots=True)
class Slot:
    """One part of the window."""

    requests: int = 0
    server_errors: int = 0
    timeouts: int = 0
    """Of the server errors, those that say that something took too long: 503 and 504."""
    unauthorized: int = 0
    slow: int = 0
    times: dict[str, Histogram] = field(default_factory=dict)
    """By kind of time: request, upstream, process."""
    upstreams: dict[str, UpstreamSlot] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest: str = ""
    failed: str = ""
    """The last request that was answered with 5xx."""


@dataclass(slots=True)
class Upstream:
    """What is known of one upstream server beyond the window. Times are seconds since the epoch, 0 for never."""

    proxy: str = ""
    failed_in_a_row: int = 0
    answered_at: float = 0.0
    failed_at: float = 0.0
    errors: dict[int, int] = field(default_factory=dict)
    """What the web server's error log says of it, by part of the window."""
    error_at: float = 0.0
    reason: str = ""

    @property
    def seen_at(self) -> float:
        return max(self.answered_at, self.failed_at, self.error_at)


@dataclass(slots=True)
class Traffic:
    """What is kept from run to run."""

    place: Place | None = None
    error_place: Place | None = None
    slots: dict[int, Slot] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    slow: int = 0
    unparsed: int = 0
    missed: int = 0
    recent: str = ""
    """Of the last lines: ``+`` for one that was understood, ``-`` for one that was not."""

    def forget(self, now: float, slot_s: float) -> None:
        """Drop what is older than the window, and upstream servers that nobody heard of for a day."""
        first = int(now // slot_s) - SLOTS + 1
        self.slots = {number: slot for number, slot in self.slots.items() if number >= first}
        self.upstreams = {name: known for name, known in self.upstreams.items() if known.seen_at > now - FORGOTTEN_S}
        for known in self.upstreams.values():
            known.errors = {number: count for number, count in known.errors.items() if number >= first}

    def mostly_unparsed(self) -> bool:
        """Whether most of the last lines were not understood."""
        return self.recent.count("-") >= 3 and self.recent.count("-") * 2 > len(self.recent)

    def note(self, understood: str) -> None:
        self.recent = (self.recent + understood)[-RECENT:]
        self.unparsed += understood.count("-")


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts requests into the traffic of ``slot_s`` long parts; at most ``top`` upstream servers are told apart."""

    traffic: Traffic
    now: float
    slot_s: float
    slow_after_s: float
    top: int

    def count(self, request: Request, at: float | None) -> None:
        """``at`` is when the request ended, None when nobody knows: then it only counts into the totals."""
        traffic, worked_s = self.traffic, request.worked_s
        status = f"{request.status // 100}xx"
        traffic.statuses[status] = traffic.statuses.get(status, 0) + 1
        slow = worked_s is not None and worked_s > self.slow_after_s
        traffic.slow += slow
        slot = self._slot(at)
        if at is None or slot is None:
            return
        slot.requests += 1
        slot.server_errors += request.status >= 500
        slot.timeouts += request.status in TIMEOUTS
        slot.unauthorized += request.status == 401
        slot.slow += slow
        if request.status >= 500:
            slot.failed = f"{request.status} {request.what}"
        if worked_s is not None and worked_s > slot.slowest_s:
            slot.slowest_s, slot.slowest = worked_s, request.what
        for name, seconds in (("request", request.request_s), ("upstream", request.upstream_s), ("process", request.process_s)):
            if seconds is not None:
                times = slot.times.setdefault(name, {})
                number = bucket(seconds)
                times[number] = times.get(number, 0) + 1
        self._count_attempts(request, slot, at)

    def _count_attempts(self, request: Request, slot: Slot, at: float) -> None:
        for attempt in request.attempts:
            name = self._known(attempt.upstream)
            part = slot.upstreams.setdefault(name, UpstreamSlot())
            part.requests += 1
            part.failed += attempt.gone
            if attempt.seconds is not None:
                number = bucket(attempt.seconds)
                part.times[number] = part.times.get(number, 0) + 1
            if name == OTHER or attempt.status is None:
                continue
            known = self.traffic.upstreams[name]
            known.proxy = one_line(request.proxy, limit=60) or known.proxy
            if attempt.gone:
                known.failed_in_a_row += 1
                known.failed_at = max(known.failed_at, at)
            else:
                known.failed_in_a_row, known.answered_at = 0, max(known.answered_at, at)

    def blame(self, upstream: str, reason: str, at: float) -> None:
        """The web server's error log says that the upstream server failed."""
        name, slot_number = self._known(upstream), int(at // self.slot_s)
        if name == OTHER or self._slot(at) is None:
            return
        known = self.traffic.upstreams[name]
        known.errors[slot_number] = known.errors.get(slot_number, 0) + 1
        if at >= known.error_at:
            known.error_at, known.reason = at, reason

    def _slot(self, at: float | None) -> Slot | None:
        """The part of the window that ``at`` falls in; None when it is before the window."""
        if at is None:
            return None
        number, last = int(min(at, self.now) // self.slot_s), int(self.now // self.slot_s)
        return self.traffic.slots.setdefault(number, Slot()) if number > last - SLOTS else None

    def _known(self, upstream: str) -> str:
        if upstream not in self.traffic.upstreams:
            if len(self.traffic.upstreams) >= self.top:
                return OTHER
            self.traffic.upstreams[upstream] = Upstream()
        return upstream


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole window."""

    requests: int
    server_errors: int
    timeouts: int
    unauthorized: int
    slow: int
    times: dict[str, Histogram]
    upstreams: dict[str, UpstreamSlot]
    slowest_s: float
    slowest: str
    failed: str


def summed(slots: Iterable[Slot]) -> Summary:
    """The parts of the window as one, given from first to last."""
    parts = list(slots)
    upstreams: dict[str, UpstreamSlot] = {}
    for part in parts:
        for name, seen in part.upstreams.items():
            whole = upstreams.setdefault(name, UpstreamSlot())
            whole.requests += seen.requests
            whole.failed += seen.failed
            whole.times = _merged((whole.times, seen.times))
    slowest = max(parts, key=lambda part: part.slowest_s, default=Slot())
    return Summary(
        requests=sum(part.requests for part in parts),
        server_errors=sum(part.server_errors for part in parts),
        timeouts=sum(part.timeouts for part in parts),
        unauthorized=sum(part.unauthorized for part in parts),
        slow=sum(part.slow for part in parts),
        times={name: _merged(part.times.get(name, {}) for part in parts) for name in ("request", "upstream", "process")},
        upstreams=upstreams,
        slowest_s=slowest.slowest_s,
        slowest=slowest.slowest,
        failed=next((part.failed for part in reversed(parts) if part.failed), ""),
    )


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    whole: Histogram = {}
    for histogram in histograms:
        for number, count in histogram.items():
            whole[number] = whole.get(number, 0) + count
    return whole


_FAILURE = re.compile(
    # Anchored: what a client sent stands further right, where it can only name a wrong server for a failure that happened.
    r"(?P<time>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[\w+\] \d+#\d+: (?:\*\d+ )?"
    r"(?P<reason>connect\(\) failed \([^)]*\)|connect\(\) to \S+ failed \([^)]*\)|upstream timed out \([^)]*\)|no live upstreams"
    r"|upstream prematurely closed connection|recv\(\) failed \([^)]*\))[^\"]*? upstream\b"
    r".*?, upstream: \"(?:[a-z]+://)?(?P<upstream>unix:[^:\"]+|\[[^\]\"]+\](?::\d+)?|[^/\"]+)"
)


def upstream_failure(line: str) -> tuple[str, str, str] | None:
    """Time, upstream server and reason when this line of nginx's error log says that one failed."""
    found = _FAILURE.match(line[:4096])
    return (found["time"], one_line(found["upstream"], limit=80), one_line(found["reason"], limit=120)) if found else None
