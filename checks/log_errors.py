"""What did a service's error log say in the last 24 hours, which of it is new, and does it say what the runbook warns of?"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from msgspec import Meta
from pydantic import Field

from checks.log_entries import RANKS, Entries, Entry
from checks.log_reading import Place, Reading, clock_time, kept, read_added, recalled
from checks.log_shapes import shape, shape_id
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import LogPiece

ERRORS = Metric("monitor_log_errors", "Errors that the log tells of in the last 24 hours.")
SHAPES = Metric("monitor_log_error_shapes", "Different shapes of errors in the last 24 hours.")
NEW_SHAPES = Metric("monitor_log_error_shapes_new", "Shapes of errors that were first seen within new_for.")
ENTRIES = Metric("monitor_log_entries_total", "Entries read since the check first looked, by level.", ("level",), "counter")
SIZE = Metric("monitor_log_size_bytes", "Size of the log file.")
MISSED = Metric("monitor_log_missed_bytes_total", "Parts of the log that were left out: too much, or compressed too early.", (), "counter")
BEHIND = Metric("monitor_log_behind", "1 while there is more in the log than the check has read.")

ERRORS_FOUND = FindingKind("LogErrors", Severity.P4, None, "The log tells of more than max_errors errors in the last 24 hours.")
NEW_SHAPE = FindingKind(
    "NewErrorShape", Severity.P3, None, "The log tells of an error of a kind that was not seen before.", group="LogErrors"
)
BURST = FindingKind("ErrorBurst", Severity.P2, None, "Errors come faster than burst_per_minute over burst_window.", group="LogErrors")

Code = Literal["INC-001", "INC-002", "INC-003", "INC-004", "INC-005", "INC-006"]
_SAYS = "The log holds a text of patterns for"
TOLD: dict[str, FindingKind] = {
    "INC-001": FindingKind("ServiceFailureLogged", Severity.P1, "INC-001", f"{_SAYS} INC-001, within pattern_window."),
    "INC-002": FindingKind("ConnectionsExhaustedLogged", Severity.P1, "INC-002", f"{_SAYS} INC-002, within pattern_window."),
    "INC-003": FindingKind("IngestionFailureLogged", Severity.P2, "INC-003", f"{_SAYS} INC-003, within pattern_window."),
    "INC-004": FindingKind("EmailFailureLogged", Severity.P3, "INC-004", f"{_SAYS} INC-004, within pattern_window."),
    "INC-005": FindingKind("LatencyLogged", Severity.P3, "INC-005", f"{_SAYS} INC-005, within pattern_window."),
    "INC-006": FindingKind("AuthenticationFailureLogged", Severity.P2, "INC-006", f"{_SAYS} INC-006, within pattern_window."),
}

DAY_S, HOUR_S, MINUTE_S = 86_400, 3600, 60
MAX_KNOWN = 1000
EXAMPLE_CHARS = 200
LISTED = 8
AHEAD_S = 300
"""A line's time may be that far in the future before it is not believed."""

Text = Annotated[str, Field(min_length=4, max_length=200)]


def _runbook_patterns() -> dict[Code, tuple[Text, ...]]:
    """What PostgreSQL says when no connection is left, and SQLAlchemy when its own are."""
    return {"INC-002": ("too many connections", "too many clients already", "remaining connection slots", "QueuePool limit of size")}


class Config(PluginConfig):
    """Keys of a ``log_errors`` check."""

    source: Literal["error_log", "log"] = Field(
        "error_log", description="Which file of the service is read. In error_log an entry without a level is an error, in log it is not."
    )
    min_level: Literal["warning", "error", "critical"] = Field("error", description="Entries of this level and above are errors.")
    max_errors: int = Field(0, ge=0, description="More errors in the last 24 hours are found.")
    new_for: Duration = Field(3600.0, ge=60, le=DAY_S, description="How long a kind of error counts as new after it was first seen.")
    burst_per_minute: float = Field(10.0, gt=0, description="More errors per minute are a burst.")
    burst_window: Duration = Field(300.0, ge=60, le=3600, description="The time over which the errors per minute are averaged.")
    patterns: dict[Code, tuple[Text, ...]] = Field(
        default_factory=_runbook_patterns,
        max_length=len(get_args(Code)),
        description="Texts, whatever their case, that tell of an incident of the runbook: a warning or worse that contains one is found.",
    )
    pattern_window: Duration = Field(300.0, ge=60, le=3600, description="How long an entry that matches a pattern is found.")
    max_shapes: int = Field(100, ge=5, le=120, description="Kinds of errors told apart; the rest is counted together.")
    deadline: Duration = Field(6.0, gt=0, le=30, description="For reading what was added to the log.")


@dataclass(slots=True)
class Shape:
    """One kind of error. ``hours`` counts by hour since the epoch."""

    text: str
    example: str
    first_at: float | None
    """When the check saw it first; None when that was at its first look, where everything is new."""
    last_at: float
    hours: dict[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.hours.values())


@dataclass(slots=True)
class Mention:
    """Entries that match the patterns of one incident, by minute since the epoch, and the last of them."""

    minutes: dict[int, int] = field(default_factory=dict)
    last: str = ""
    last_at: float = 0.0


@dataclass(slots=True)
class Tally:
    """What is kept from run to run."""

    place: Place | None = None
    open: Entry | None = None
    shapes: dict[str, Shape] = field(default_factory=dict)
    known: Annotated[dict[str, int], Meta(max_length=2 * MAX_KNOWN)] = field(default_factory=dict)
    """Names of shapes seen before, the latest last, with the day when they were last seen."""
    other: dict[int, int] = field(default_factory=dict)
    """Errors of shapes beyond the cap, by hour."""
    minutes: dict[int, int] = field(default_factory=dict)
    """Errors by minute."""
    mentions: dict[str, Mention] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    missed: int = 0


@check(
    "log_errors",
    config=Config,
    metrics=(ERRORS, SHAPES, NEW_SHAPES, ENTRIES, SIZE, MISSED, BEHIND),
    finds=(ERRORS_FOUND, NEW_SHAPE, BURST, *TOLD.values()),
    blind="The log is missing, is no regular file, may not be read by the monitor's user, or its disk hangs.",
    why="An error that nobody reads is found by a user. Grouped by what stays the same, a new kind of error stands out among a thousand "
    "known ones, and a text that the runbook knows leads to its incident at once.",
    privileges="The monitor's user reads the log file and lists its folder.",
)
async def log_errors(ctx: CheckContext, cfg: Config) -> Observed:
    """Follows the service's error log across rotation and counts its errors of the last 24 hours by shape, new shapes first.

    Times without a zone are this machine's. Entries without a time are taken for evenly spread since the last look; at the first look,
    which reads the last MiB, they only make their shapes known.
    """
    path = ctx.service.error_log if cfg.source == "error_log" else ctx.service.log
    if path is None:
        raise CannotLook(f"service {ctx.service.name} has no {cfg.source}: set {cfg.source} in [services.{ctx.service.name}]")
    tally = recalled(ctx, Tally)
    now = ctx.clock.now().timestamp()
    since = ctx.kept.at.timestamp() if ctx.kept and tally else None
    tally = tally or Tally()
    counting = Counting(cfg, tally, now=now, since=since)
    reading = await read_added(ctx, path, tally.place, counting.take, deadline_s=cfg.deadline, log=cfg.source)
    counting.finish(reading)
    return judge(tally, cfg, reading, now=now, service=ctx.service.name)


class Counting:
    """Counts what is read into the tally. Used on one thread at a time."""

    def __init__(self, cfg: Config, tally: Tally, *, now: float, since: float | None) -> None:
        self._cfg, self._tally, self._now = cfg, tally, now
        self._since = None if since is None else min(since, now)
        self._first = since is None
        self._entries = Entries(tally.open)
        self._patterns = [(code, text.casefold()) for code, texts in cfg.patterns.items() for text in texts]
        self._min_rank = RANKS[cfg.min_level]

    def take(self, piece: LogPiece) -> None:
        """Count the entries that are whole with these lines."""
        total = len(piece.lines)
        for number, line in enumerate(piece.lines, 1):
            at = None if self._since is None else self._since + (self._now - self._since) * number / total
            for entry in self._entries.take(line):
                self._count(entry, at)

    def finish(self, reading: Reading) -> None:
        """After the last piece: what is left open waits for the next run, and what is too old is forgotten."""
        for entry in self._entries.pause():
            self._count(entry, self._now if self._since is not None else None)
        tally = self._tally
        tally.open, tally.place = self._entries.open, reading.place
        tally.missed += reading.missed_bytes
        hour, minute = int(self._now // HOUR_S) - 23, int(self._now // MINUTE_S) - HOUR_S // MINUTE_S
        for seen in tally.shapes.values():
            seen.hours = _since(seen.hours, hour)
        tally.shapes = {name: seen for name, seen in tally.shapes.items() if seen.hours}
        tally.other, tally.minutes = _since(tally.other, hour), _since(tally.minutes, minute)
        for mention in tally.mentions.values():
            mention.minutes = _since(mention.minutes, minute)
        tally.mentions = {code: mention for code, mention in tally.mentions.items() if mention.minutes}
        self._forget_shapes()

    def _count(self, entry: Entry, fallback: float | None) -> None:
        tally, at = self._tally, entry.at if entry.at is not None else fallback
        tally.levels[entry.level] = tally.levels.get(entry.level, 0) + 1
        if at is not None and at > self._now + AHEAD_S:
            at = self._now
        if at is not None and (entry.rank >= RANKS["warning"] or entry.level == "unknown"):
            self._match(entry, at)
        unknown_is_error = self._cfg.source == "error_log" or bool(entry.exception)
        if entry.rank >= self._min_rank or (entry.level == "unknown" and unknown_is_error):
            self._count_error(entry, at)

    def _count_error(self, entry: Entry, at: float | None) -> None:
        tally = self._tally
        text = shape(f"{entry.level}: {entry.text}" if entry.level != "unknown" else entry.text)
        name = shape_id(text)
        is_new = name not in tally.known
        tally.known.pop(name, None)
        tally.known[name] = int(self._now // DAY_S)
        if len(tally.known) > 2 * MAX_KNOWN:
            self._forget_shapes()
        if at is None or at < self._now - DAY_S:
            return
        hour, minute = int(at // HOUR_S), int(at // MINUTE_S)
        tally.minutes[minute] = tally.minutes.get(minute, 0) + 1
        seen = tally.shapes.get(name)
        if seen is None and len(tally.shapes) < self._cfg.max_shapes:
            first_at = self._now if is_new and not self._first else None
            seen = tally.shapes[name] = Shape(text, "", first_at, at)
        if seen is None:
            tally.other[hour] = tally.other.get(hour, 0) + 1
            return
        seen.hours[hour] = seen.hours.get(hour, 0) + 1
        if at >= seen.last_at:
            seen.last_at, seen.example = at, _example(entry)

    def _forget_shapes(self) -> None:
        """Those that were not seen for longest, beyond the cap."""
        known = self._tally.known
        for name in list(known)[: max(0, len(known) - MAX_KNOWN)]:
            del known[name]

    def _match(self, entry: Entry, at: float) -> None:
        text = f"{entry.message}\n{entry.detail}\n{entry.exception}".casefold()
        for code in {code for code, wanted in self._patterns if wanted in text}:
            mention, minute = self._tally.mentions.setdefault(code, Mention()), int(at // MINUTE_S)
            mention.minutes[minute] = mention.minutes.get(minute, 0) + 1
            if at >= mention.last_at:
                mention.last, mention.last_at = _example(entry), at


def _example(entry: Entry) -> str:
    parts = (entry.message, entry.detail, entry.exception)
    return one_line(": ".join(dict.fromkeys(part for part in parts if part)), limit=EXAMPLE_CHARS)


def _since(counts: dict[int, int], first: int) -> dict[int, int]:
    return {when: count for when, count in counts.items() if when >= first}


# --- what it means ---------------------------------------------------------------------------------------------------


def judge(tally: Tally, cfg: Config, reading: Reading, *, now: float, service: str) -> Observed:
    """What the counts mean. Pure."""
    total = sum(seen.count for seen in tally.shapes.values()) + sum(tally.other.values())
    new = [seen for seen in tally.shapes.values() if seen.first_at is not None and now - seen.first_at < cfg.new_for]
    samples: list[Sample] = [
        ERRORS(total),
        SHAPES(len(tally.shapes)),
        NEW_SHAPES(len(new)),
        SIZE(reading.size_bytes),
        MISSED(tally.missed),
        BEHIND(reading.behind),
        *(ENTRIES(tally.levels.get(level, 0), level=level) for level in RANKS),
    ]
    findings = [*_told(tally, cfg, now, service), *_burst(tally, cfg, now, service)]
    listed = sorted(tally.shapes.values(), key=lambda seen: (-(seen.first_at or 0) if seen in new else 0, -seen.count, seen.text))
    if new:
        newest = [seen for seen in listed if seen in new]
        what = "an error" if len(new) == 1 else f"{len(new)} kinds of error"
        summary = f"{service} logs {what} not seen before: {newest[0].text}"
        findings.append(NEW_SHAPE(summary, facts=_facts(newest, reading), value=len(new)))
    if total > cfg.max_errors:
        facts = _facts(listed, reading, new=new, other=sum(tally.other.values()))
        errors = "1 error" if total == 1 else f"{total} errors"
        kinds = "" if len(tally.shapes) < 2 else f" of {len(tally.shapes)} kinds"
        most = max(listed, key=lambda seen: seen.count, default=None)
        summary = f"{service} logged {errors}{kinds} in the last 24 hours" + (f", most often: {most.text}" if most else "")
        findings.append(ERRORS_FOUND(summary, facts=facts, value=total))
    return Observed(tuple(samples), tuple(findings), keep=kept(tally))


def _facts(shapes: Iterable[Shape], reading: Reading, *, new: Iterable[Shape] = (), other: int = 0) -> dict[str, str]:
    shapes, fresh = list(shapes), [seen.text for seen in new]
    facts: dict[str, str] = {}
    for seen in shapes[:LISTED]:
        mark = "new, " if seen.text in fresh else ""
        example = f": {seen.example}" if seen.example else ""
        facts[seen.text] = f"{mark}{seen.count} in 24 h, last at {clock_time(seen.last_at)}{example}"
    if other or len(shapes) > LISTED:
        facts["more"] = f"{len(shapes) - min(len(shapes), LISTED)} other kinds" + (f", and {other} errors not told apart" if other else "")
    facts["look at"] = reading.place.path
    return facts


def _burst(tally: Tally, cfg: Config, now: float, service: str) -> list[Finding]:
    first = int((now - cfg.burst_window) // MINUTE_S) + 1
    count = sum(_since(tally.minutes, first).values())
    rate = count / (cfg.burst_window / MINUTE_S)
    if rate <= cfg.burst_per_minute:
        return []
    latest = max((seen for seen in tally.shapes.values()), key=lambda seen: (seen.last_at, seen.count), default=None)
    facts = {"errors": f"{count} within {cfg.burst_window / MINUTE_S:g} min", "latest": latest.example or latest.text if latest else ""}
    summary = f"{service} logs {rate:.0f} errors a minute, more than {cfg.burst_per_minute:g}"
    return [BURST(summary, facts={name: text for name, text in facts.items() if text}, value=rate)]


def _told(tally: Tally, cfg: Config, now: float, service: str) -> list[Finding]:
    findings = []
    first = int((now - cfg.pattern_window) // MINUTE_S) + 1
    for code, mention in sorted(tally.mentions.items()):
        count = sum(_since(mention.minutes, first).values())
        if count:
            times = "once" if count == 1 else f"{count} times"
            summary = f"the log of {service} says {times} within {cfg.pattern_window / MINUTE_S:g} min: {one_line(mention.last, limit=120)}"
            facts = {"last": f"{clock_time(mention.last_at)}: {mention.last}", "entries": str(count)}
            findings.append(TOLD[code](summary, facts=facts, value=count))
    return findings
