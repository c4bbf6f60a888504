"""What do real requests tell: errors, refused logins, slowness, and upstream servers that do not answer?"""

import re
from collections.abc import Callable, Iterable
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from checks.access_lines import GROUPS, LINE_CHARS, Lines, Unparsed
from checks.log_reading import Place, Reading, clock_time, kept, read_added, recalled, seconds_of
from checks.request_window import SLOTS, Counter, Summary, Traffic, Upstream, percentile, summed, upstream_failure
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import LogPiece

REQUESTS = Metric("monitor_requests_total", "Requests read from the log since the check first looked.", ("status",), "counter")
SLOW_TOTAL = Metric("monitor_requests_slow_total", "Requests that took longer than slow_after.", (), "counter")
UNPARSED = Metric("monitor_access_log_lines_unparsed_total", "Lines of the log that are not in its format.", (), "counter")
MISSED = Metric("monitor_access_log_missed_bytes_total", "Parts of the log that were left out.", (), "counter")
BEHIND = Metric("monitor_access_log_behind", "1 while there is more in the log than the check has read.")
RECENT = Metric("monitor_requests_recent", "Requests within the window.")
ERROR_RATIO = Metric("monitor_requests_server_error_ratio", "Share of the window's requests that were answered with 5xx.")
DENIED_RATIO = Metric("monitor_requests_unauthorized_ratio", "Share of the window's requests that were answered with 401.")
SLOW_RATIO = Metric("monitor_requests_slow_ratio", "Share of the window's requests that took longer than slow_after.")
DURATION = Metric(
    "monitor_requests_duration_seconds",
    "Percentiles of the window within 5 %: request (with the client), upstream (as the web server waited), process (X-Process-Time).",
    ("time", "percentile"),
)
UP_REQUESTS = Metric("monitor_upstream_requests_recent", "Requests passed to an upstream server within the window.", ("upstream",))
UP_FAILED = Metric("monitor_upstream_failed_recent", "Requests that an upstream server did not answer.", ("upstream",))
UP_DURATION = Metric("monitor_upstream_duration_seconds", "Percentiles of an upstream server's times.", ("upstream", "percentile"))
UP = Metric("monitor_upstream_up", "0 when the latest requests to an upstream server were not answered, else 1.", ("upstream",))

UPSTREAM_DOWN = FindingKind(
    "UpstreamDown", Severity.P1, "INC-001", "The latest down_after requests to an upstream server were not answered."
)
SERVER_ERRORS = FindingKind("ServerErrors", Severity.P2, None, "More than max_5xx_percent of the requests are answered with 5xx.")
TIMEOUT_ERRORS = FindingKind(
    "TimeoutErrors", Severity.P2, "INC-005", "As ServerErrors, and most of these answers are 503 or 504: what they wait for takes too long."
)
UNAUTHORIZED = FindingKind(
    "UnauthorizedRequests", Severity.P2, "INC-006", "At least max_401_percent of the requests are answered with 401."
)
SLOW = FindingKind("SlowRequests", Severity.P3, "INC-005", "More than max_slow_percent of the requests take longer than slow_after.")

PERCENTILES = (50, 95, 99)
EXAMPLE = 120


class Config(PluginConfig):
    """Keys of an ``access_log`` check."""

    format: Literal["timed", "combined", "json"] = Field(
        "timed",
        description="timed: log_format of the platform's nginx; combined: the usual one, without times; json: one object a line, of which "
        "those with a status are requests (timestamp, method, path, status, duration_s), as the platform's services write.",
    )
    pattern: str = Field(
        "", max_length=2000, description=f"A regex for whole lines instead of format, with the named groups {', '.join(GROUPS)}."
    )
    ignore: str = Field(r"/health$", max_length=500, description="Requests whose method and path contain this regex are not counted.")
    window: Duration = Field(300.0, ge=60, le=3600, description="The time over which requests are judged.")
    min_requests: int = Field(10, ge=1, description="With fewer requests in the window no share is judged.")
    min_count: int = Field(3, ge=1, description="Fewer errors, refusals or slow requests than these are not found, whatever their share.")
    max_5xx_percent: float = Field(5.0, ge=0, lt=100, description="A larger share of answers with 5xx is found.")
    max_401_percent: float = Field(50.0, gt=0, le=100, description="This share of answers with 401, or a larger one, is found.")
    slow_after: Duration = Field(
        2.0, gt=0, description="A request that takes longer is slow, by X-Process-Time, else the upstream time, else the request time."
    )
    max_slow_percent: float = Field(5.0, ge=0, lt=100, description="A larger share of slow requests is found.")
    down_after: int = Field(3, ge=1, description="An upstream server is down when it did not answer so many requests in a row.")
    read_error_log: bool = Field(True, description="Read nginx's error_log too, where the service has one: why an upstream server failed.")
    top: int = Field(10, ge=1, le=12, description="Upstream servers told apart; the rest is counted as (other).")
    deadline: Duration = Field(3.0, gt=0, le=30, description="For reading what was added to each of the logs.")

    @field_validator("pattern", "ignore")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from None
        return pattern

    @model_validator(mode="after")
    def _named(self) -> Self:
        groups = set(re.compile(self.pattern).groupindex)
        if self.pattern and "status" not in groups:
            raise ValueError(r"pattern must have the group (?P<status>\d{3})")
        if unknown := groups - {*GROUPS, "client"}:
            raise ValueError(f"pattern has the unknown groups {', '.join(sorted(unknown))}: expected some of {', '.join(GROUPS)}")
        return self

    @property
    def slot_s(self) -> float:
        return self.window / SLOTS


@check(
    "access_log",
    config=Config,
    metrics=(
        *(REQUESTS, SLOW_TOTAL, UNPARSED, MISSED, BEHIND, RECENT, ERROR_RATIO, DENIED_RATIO, SLOW_RATIO, DURATION),
        *(UP_REQUESTS, UP_FAILED, UP_DURATION, UP),
    ),
    finds=(UPSTREAM_DOWN, SERVER_ERRORS, TIMEOUT_ERRORS, UNAUTHORIZED, SLOW),
    needs=("access_log",),
    blind="A log is missing or may not be read, or most of the access log's lines are not in the configured format.",
    why="Probes see what probes ask for. What users see is in the access log: which share of their requests fails, is refused or is slow, "
    "and which server behind nginx no longer answers.",
    privileges="The monitor's user reads the access log and the error log and lists their folder.",
)
async def access_log(ctx: CheckContext, cfg: Config) -> Observed:
    """Follows an access log across rotation and judges the requests of a sliding window, by the times that the lines carry.

    At the first look the last MiB is read. It works on nginx's log and on the platform's services' own JSON logs.
    """
    path, errors_path = ctx.service.access_log, ctx.service.error_log
    assert path is not None  # needs=("access_log",)
    now = ctx.clock.now().timestamp()
    since = ctx.kept.at.timestamp() if ctx.kept else None

    async def follow(traffic: Traffic, place: Place | None) -> Reading:
        following = Following(cfg, traffic, now=now, since=since)
        return await read_added(ctx, path, place, following.take, deadline_s=cfg.deadline, log="access_log")

    traffic = recalled(ctx, Traffic) or Traffic()
    try:
        reading = await follow(traffic, traffic.place)
    except NotInFormat:
        # Perhaps only what was written before the format was changed: the end of the log decides.
        traffic = recalled(ctx, Traffic) or Traffic()
        traffic.recent = ""
        try:
            reading = await follow(traffic, None)
        except NotInFormat as exc:
            form = "the configured pattern" if cfg.pattern else f"the format {cfg.format!r}"
            raise CannotLook(f"most of the last lines of {path} are not in {form}: set format or pattern; one of them: {exc}") from None
    traffic.place = reading.place
    missed = reading.missed_bytes
    if cfg.read_error_log and errors_path is not None:
        take = Following(cfg, traffic, now=now, since=since).take_errors
        errors = await read_added(ctx, errors_path, traffic.error_place, take, deadline_s=cfg.deadline, log="error_log")
        traffic.error_place, missed = errors.place, missed + errors.missed_bytes
    traffic.missed += missed
    traffic.forget(now, cfg.slot_s)
    return judge(traffic, cfg, reading, now=now, service=ctx.service.name)


class NotInFormat(Exception):
    """Most of the last lines were not understood; the text is one of them."""


class Following:
    """Counts what is read into the traffic. Used on one thread at a time."""

    def __init__(self, cfg: Config, traffic: Traffic, *, now: float, since: float | None) -> None:
        self._lines = Lines(cfg.format, cfg.pattern)
        self._ignore: Callable[[str], object] = re.compile(cfg.ignore).search if cfg.ignore else lambda _: False
        self._traffic, self._now, self._since = traffic, now, None if since is None else min(since, now)
        self._counter = Counter(traffic, now, cfg.slot_s, cfg.slow_after, cfg.top)

    def take(self, piece: LogPiece) -> None:
        """Count the requests of these lines. Raises ``NotInFormat``."""
        understood, strange = [], ""
        for number, line in enumerate(piece.lines, 1):
            if not line:
                continue
            try:
                request = self._lines.parse(line)
            except Unparsed:
                understood.append("-")
                strange = line
                continue
            understood.append("+")
            if request is None or self._ignore(request.what):
                continue
            spread = None if self._since is None else self._since + (self._now - self._since) * number / len(piece.lines)
            self._counter.count(request, request.at if request.at is not None else spread)
        self._traffic.note("".join(understood))
        if strange and self._traffic.mostly_unparsed():
            raise NotInFormat(repr(one_line(strange[:LINE_CHARS], limit=EXAMPLE)))

    def take_errors(self, piece: LogPiece) -> None:
        """Count the failures of upstream servers in these lines of nginx's error log."""
        for line in piece.lines:
            failure = upstream_failure(line)
            if failure is not None and (at := seconds_of(failure[0])) is not None:
                self._counter.blame(failure[1], failure[2], at)


# --- what it means ---------------------------------------------------------------------------------------------------


def judge(traffic: Traffic, cfg: Config, reading: Reading, *, now: float, service: str) -> Observed:
    """What the window means. Pure."""
    window = summed(slot for _, slot in sorted(traffic.slots.items()))
    down = {name: known for name, known in traffic.upstreams.items() if _is_down(known, cfg, now)}
    findings = [
        *(_down(name, known, window, service) for name, known in sorted(down.items())),
        *_shares(window, cfg, service),
    ]
    return Observed(tuple(_samples(traffic, window, down, reading)), tuple(findings), keep=kept(traffic))


def _samples(traffic: Traffic, window: Summary, down: Iterable[str], reading: Reading) -> Iterable[Sample]:
    for status in ("1xx", "2xx", "3xx", "4xx", "5xx"):
        yield REQUESTS(traffic.statuses.get(status, 0), status=status)
    yield from (SLOW_TOTAL(traffic.slow), UNPARSED(traffic.unparsed), MISSED(traffic.missed), BEHIND(reading.behind))
    yield RECENT(window.requests)
    if window.requests:
        for ratio, count in ((ERROR_RATIO, window.server_errors), (DENIED_RATIO, window.unauthorized), (SLOW_RATIO, window.slow)):
            yield ratio(count / window.requests)
    for name, times in window.times.items():
        for percent, seconds in _percentiles(times):
            yield DURATION(seconds, time=name, percentile=percent)
    for name, seen in window.upstreams.items():
        yield UP_REQUESTS(seen.requests, upstream=name)
        yield UP_FAILED(seen.failed, upstream=name)
        for percent, seconds in _percentiles(seen.times):
            yield UP_DURATION(seconds, upstream=name, percentile=percent)
    for name in traffic.upstreams:
        yield UP(name not in down, upstream=name)


def _is_down(known: Upstream, cfg: Config, now: float) -> bool:
    """By the access log, or where that does not name upstream servers by the error log; only while it is still being tried."""
    refused = known.failed_in_a_row >= cfg.down_after and known.failed_at > now - cfg.window
    blamed = sum(known.errors.values()) >= cfg.down_after and known.error_at > known.answered_at
    return refused or blamed


def _down(name: str, known: Upstream, window: Summary, service: str) -> Finding:
    shown = f"{known.proxy} ({name})" if known.proxy and known.proxy != name else name
    seen = window.upstreams.get(name)
    facts = {
        "reason": known.reason,
        "not answered": f"{known.failed_in_a_row} in a row" + (f", {seen.failed} of {seen.requests} in the window" if seen else ""),
        "last answer": clock_time(known.answered_at) if known.answered_at else "none seen",
        "last failure": clock_time(max(known.failed_at, known.error_at)),
        "first": f"is it running, is its port bound? curl -sv http://{name}/health",
    }
    summary = f"{service} gets no answer from {shown}" + (f": {known.reason}" if known.reason else "")
    count = max(known.failed_in_a_row, sum(known.errors.values()))
    return UPSTREAM_DOWN(summary, labels={"upstream": name}, facts={key: text for key, text in facts.items() if text}, value=count)


def _shares(window: Summary, cfg: Config, service: str) -> Iterable[Finding]:
    if window.requests < cfg.min_requests:
        return
    span = f"in the last {cfg.window / 60:g} min"

    def share(count: int) -> float:
        return 100 * count / window.requests if count >= cfg.min_count else 0.0

    if (percent := share(window.server_errors)) > cfg.max_5xx_percent:
        summary = f"{percent:.0f} % of the requests to {service} failed with 5xx {span}, more than {cfg.max_5xx_percent:g} %"
        facts = {"failed": f"{window.server_errors} of {window.requests}", "latest": window.failed, **_by_upstream(window)}
        if 2 * window.timeouts > window.server_errors:
            facts = {"503 or 504": f"{window.timeouts} of {window.server_errors}", **facts}
            yield TIMEOUT_ERRORS(f"{summary}, mostly timeouts (503, 504)", facts=facts, value=percent)
        else:
            yield SERVER_ERRORS(summary, facts=facts, value=percent)
    if (percent := share(window.unauthorized)) >= cfg.max_401_percent:
        summary = f"{percent:.0f} % of the requests to {service} were answered with 401 {span}: can anybody log in?"
        yield UNAUTHORIZED(summary, facts={"unauthorized": f"{window.unauthorized} of {window.requests}"}, value=percent)
    if (percent := share(window.slow)) > cfg.max_slow_percent:
        summary = f"{percent:.0f} % of the requests to {service} took longer than {cfg.slow_after:g} s {span}"
        facts = {"slow": f"{window.slow} of {window.requests}", "slowest": f"{window.slowest_s:.1f} s, {window.slowest}"}
        facts |= {f"{name} time": text for name, times in window.times.items() if (text := _shown(times))}
        facts |= {f"of {name}": text for name, seen in sorted(window.upstreams.items()) if (text := _shown(seen.times))}
        yield SLOW(summary, facts=facts, value=percent)


def _percentiles(times: dict[int, int]) -> Iterable[tuple[int, float]]:
    values = ((percent, percentile(times, percent)) for percent in PERCENTILES)
    return [(percent, seconds) for percent, seconds in values if seconds is not None]


def _shown(times: dict[int, int]) -> str:
    return ", ".join(f"p{percent} {seconds:.3g} s" for percent, seconds in _percentiles(times))


def _by_upstream(window: Summary) -> dict[str, str]:
    failing = sorted(window.upstreams.items(), key=lambda item: -item[1].failed)
    return {f"not answered by {name}": f"{seen.failed} of {seen.requests}" for name, seen in failing[:5] if seen.failed}
