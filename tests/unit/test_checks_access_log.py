"""Lines of access logs, and the arithmetic of a window of requests."""

import json
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.access_lines import GROUPS, Lines, Unparsed
from checks.access_log import Config
from checks.log_reading import kept
from checks.request_window import OTHER, SLOTS, Counter, Traffic, bucket, percentile, summed, upstream_failure

NOW = 1_795_489_445.0
HEAD = '127.0.0.1 - [2026-11-24T03:04:05+00:00] "GET /data/x?t=secret HTTP/1.1"'
TAIL = 'request_time=2.5 upstream_time=0.5, 2.0 upstream=10.0.0.1:80, 10.0.0.2:80 upstream_status=502, 200 proxy=data process_time="1.9"'


def counter(traffic: Traffic, **changes: float) -> Counter:
    return Counter(**{"traffic": traffic, "now": NOW, "slot_s": 50.0, "slow_after_s": 2.0, "top": 2} | changes)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 3000), min_size=1, max_size=200), st.sampled_from([50, 95, 99, 100]))
def test_percentiles_are_right_within_5_percent(times: list[float], percent: int) -> None:
    histogram: dict[int, int] = {}
    for seconds in times:
        histogram[bucket(seconds)] = histogram.get(bucket(seconds), 0) + 1
    exact = sorted(times)[ceil(len(times) * percent / 100) - 1]
    assert percentile(histogram, percent) == pytest.approx(max(exact, 0.001), rel=0.05)


def test_no_times_have_no_percentile() -> None:
    assert percentile({}, 50) is None
    assert bucket(1e6) == bucket(1e5)


def test_a_retried_request_is_one_of_each_server() -> None:
    request = Lines("timed").parse(f"{HEAD} 200 12 {TAIL}")
    assert request is not None
    assert (request.at, request.status, request.what) == (NOW, 200, "GET /data/x")
    assert (request.request_s, request.upstream_s, request.process_s, request.worked_s) == (2.5, 2.5, 1.9, 1.9)
    assert [(a.upstream, a.status, a.seconds, a.gone) for a in request.attempts] == [
        ("10.0.0.1:80", 502, 0.5, True),
        ("10.0.0.2:80", 200, 2.0, False),
    ]


def test_what_a_service_answers_itself_is_an_answer() -> None:
    for process_time, gone in (("0.1", False), ("-", True)):
        tail = f'request_time=0 upstream_time=0 upstream=a:1 upstream_status=504 proxy=x process_time="{process_time}"'
        request = Lines("timed").parse(f"{HEAD} 504 12 {tail}")
        assert request
        assert [attempt.gone for attempt in request.attempts] == [gone]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("timed", f"{HEAD} 200 12 request_time=0.1 upstream_time=- upstream=-"),
        ("timed", f'{HEAD} 200 12 request_time=0.1 upstream_time=- upstream=- upstream_status=- proxy=- process_time="-"'),
        ("timed", f'{HEAD} 200 12 request_time=0.1 upstream_time=- upstream=- upstream_status=- proxy=- process_time="nan"'),
        ("combined", '1.2.3.4 - a b [24/Nov/2026:03:04:05 +0000] "GET /data/x HTTP/1.1" 200 12 "-" "a \\"b\\" c"'),
        ("combined", '1.2.3.4 - - [24/Nov/2026:03:04:05 +0000] "GET /data/x HTTP/1.1" 200 -'),
        ("json", '{"timestamp": "2026-11-24T03:04:05Z", "method": "GET", "path": "/data/x", "status": 200}'),
        ("json", '{"time": 1795489445, "request": "GET /data/x HTTP/1.1", "status": "200", "duration_s": "soon"}'),
    ],
)
def test_without_upstream_or_times(form: str, line: str) -> None:
    request = Lines(form).parse(line)
    assert request is not None
    assert (request.at, request.status, request.what) == (NOW, 200, "GET /data/x")
    assert (request.process_s, request.attempts) == (None, ())


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("timed", f"{HEAD} 200 12 request_time=0.1"),
        ("timed", f"{HEAD} 200 12 {TAIL} and more"),
        ("timed", f"x{HEAD} 20 12 {TAIL}"),
        ("combined", "GET / 200"),
        ("json", "not json"),
        ("json", "[1]"),
        ("json", "[" * 5000),
    ],
)
def test_what_is_not_in_the_format_is_refused(form: str, line: str) -> None:
    with pytest.raises(Unparsed):
        Lines(form).parse(line)


@pytest.mark.parametrize("row", [{"event": "started"}, {"status": True}, {"status": 7}, {"status": "ok"}])
def test_json_of_something_else_is_no_request(row: dict[str, object]) -> None:
    assert Lines("json").parse(json.dumps(row)) is None


@given(st.text(), st.sampled_from(["timed", "combined", "json"]))
def test_any_line_is_understood_or_refused(line: str, form: str) -> None:
    try:
        request = Lines(form).parse(line)
    except Unparsed:
        return
    assert request is None or 100 <= request.status <= 999


def test_the_window_slides_and_what_is_older_counts_in_totals_only() -> None:
    traffic = Traffic()
    lines, count = Lines("timed"), counter(traffic).count
    request = lines.parse(f"{HEAD} 500 12 {TAIL}")
    assert request
    for age_s in (0, 100, 249, 400):
        count(request, NOW - age_s)
    count(request, None)
    window = summed(traffic.slots.values())
    assert (window.requests, window.server_errors, traffic.statuses) == (3, 3, {"5xx": 5})
    traffic.forget(NOW + 200, 50.0)
    assert summed(traffic.slots.values()).requests == 2 - 1
    assert len(traffic.slots) <= SLOTS


def test_more_servers_than_told_apart_are_one() -> None:
    traffic = Traffic()
    for number in range(9):
        request = Lines("timed").parse(f"{HEAD} 502 12 request_time=0 upstream_time=0 upstream=10.0.0.{number}:80")
        assert request
        counter(traffic).count(request, NOW)
    counter(traffic).blame("10.0.0.8:80", "connect() failed", NOW)
    assert {name: seen.requests for name, seen in summed(traffic.slots.values()).upstreams.items()} == {
        "10.0.0.0:80": 1,
        "10.0.0.1:80": 1,
        OTHER: 7,
    }
    assert [known.failed_in_a_row for known in traffic.upstreams.values()] == [1, 1]
    assert json.loads(json.dumps(kept(traffic)))["slots"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '*3 connect() failed (111: Connection refused) while connecting to upstream, client: 1.1.1.1, request: "GET / HTTP/1.1", '
            'upstream: "http://127.0.0.1:8003/x", host: "a"',
            ("127.0.0.1:8003", "connect() failed (111: Connection refused)"),
        ),
        (
            "*3 upstream timed out (110: Connection timed out) while reading response header from upstream, client: 1.1.1.1, server: , "
            'request: "GET /x HTTP/1.1", upstream: "http://[::1]:80/x", host: "a"',
            ("[::1]:80", "upstream timed out (110: Connection timed out)"),
        ),
        (
            "*3 connect() to unix:/run/a.sock failed (2: No such file or directory) while connecting to upstream, client: 1.1.1.1, "
            'request: "GET / HTTP/1.1", upstream: "http://unix:/run/a.sock:/x", host: "a"',
            ("unix:/run/a.sock", "connect() to unix:/run/a.sock failed (2: No such file or directory)"),
        ),
        (
            '*3 no live upstreams while connecting to upstream, request: "GET / HTTP/1.1", upstream: "http://auth/", host: "a"',
            ("auth", "no live upstreams"),
        ),
        ('*3 open() "/connect() failed (1: x) upstream, upstream: "http://evil/" failed (2: No such file)', None),
    ],
)
def test_nginxs_words_for_a_server_that_fails(text: str, expected: tuple[str, str] | None) -> None:
    found = upstream_failure(f"2026/11/24 03:04:05 [error] 12#12: {text}")
    assert found == (expected and ("2026/11/24 03:04:05", *expected))


def test_the_documented_groups_are_those_that_a_pattern_may_have() -> None:
    pattern = "".join(f"(?P<{name}>.)" for name in GROUPS)
    assert Config(pattern=pattern).pattern == pattern
