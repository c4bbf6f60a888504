"""What is understood of log lines: one entry a thing that happened, and its shape."""

import json
import logging
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.log_entries import RANKS, Entries, Entry
from checks.log_reading import STAMP, seconds_of, stamp_of
from checks.log_shapes import SHAPE_CHARS, shape

AT = datetime(2026, 11, 24, 3, 4, 5, tzinfo=UTC).timestamp()
LOCAL = datetime(2026, 11, 24, 3, 4, 5).astimezone().timestamp()


def entries_of(lines: Iterable[str]) -> list[Entry]:
    entries = Entries()
    whole = [entry for line in lines for entry in entries.take(line)]
    return whole + list(entries.close())


@pytest.mark.parametrize(
    ("line", "at", "level", "message"),
    [
        ("2026-11-24 03:04:05,123 ERROR jobs: it failed", LOCAL + 0.123, "error", "jobs: it failed"),
        ("2026-11-24T03:04:05.5+00:00 [error] it failed", AT + 0.5, "error", "it failed"),
        ("2026/11/24 03:04:05 [crit] 12#12: *1 connect() failed", LOCAL, "critical", "12#12: *1 connect() failed"),
        ("2026-11-24 03:04:05.000 UTC [77] FATAL:  sorry, too many clients already", AT, "critical", "sorry, too many clients already"),
        ("2026-11-24 03:04:05.000 UTC [77] LOG:  checkpoint complete", AT, "info", "checkpoint complete"),
        ("[24/Nov/2026:03:04:05 +0000] WARNING low", AT, "warning", "low"),
        ("ERROR:    Exception in ASGI application", None, "error", "Exception in ASGI application"),
        ("INFO:     Uvicorn running", None, "info", "Uvicorn running"),
        ("just some words about an error", None, "unknown", "just some words about an error"),
        ("2026-13-45 99:99:99 ERROR no such day", None, "error", "no such day"),
        ("0001-01-01 00:00:00 ERROR long ago", None, "error", "long ago"),
        ('{"timestamp": "2026-11-24T03:04:05Z", "level": "error", "event": "it failed"}', AT, "error", "it failed"),
        ('{"time": 1795489445, "severity": "FATAL", "message": "it failed"}', 1795489445.0, "critical", "it failed"),
        ('{"time": 1795489445123, "level": 50, "msg": "it failed"}', 1795489445.123, "critical", "it failed"),
        ('{"level": ["x"], "event": {"a": 1}, "timestamp": true}', None, "unknown", "{'a': 1}"),
        ('{"level": "error", "event": broken', None, "unknown", '{"level": "error", "event": broken'),
    ],
)
def test_one_line(line: str, at: float | None, level: str, message: str) -> None:
    (entry,) = entries_of([line])
    assert (entry.at, entry.level, entry.message) == (pytest.approx(at), level, message)


def _trace(exc: BaseException) -> list[str]:
    return "".join(traceback.format_exception(exc)).splitlines()


def _chained() -> BaseException:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second 42\nwith another line") from None
    except ValueError as exc:
        return exc


def _caused() -> BaseException:
    try:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise OSError(5, "second") from exc
    except OSError as exc:
        return exc


def test_a_traceback_is_one_entry_with_its_last_line() -> None:
    stamp = "2026-11-24 03:04:05,123 ERROR it failed"
    lines = [
        stamp,
        *_trace(_caused()),
        "2026-11-24 03:04:06,000 INFO fine",
        stamp,
        *_trace(_chained()),
        "2026-11-24 03:04:07,000 INFO fine",
    ]
    first, fine, second, _ = entries_of(lines)
    assert (first.message, first.exception, first.text) == ("it failed", "OSError: [Errno 5] second", "OSError: [Errno 5] second")
    assert (fine.level, fine.exception) == ("info", "")
    assert second.exception == "ValueError: second 42"


def test_bare_tracebacks_are_told_apart() -> None:
    lines = _trace(_caused()) + _trace(_caused()) + ["and a line"] + _trace(ExceptionGroup("many", [ValueError("x")]))
    got = entries_of(lines)
    assert [entry.text for entry in got][:3] == ["OSError: [Errno 5] second", "OSError: [Errno 5] second", "and a line"]
    assert [entry.level for entry in got][:2] == ["error", "error"]


def test_details_belong_to_their_entry() -> None:
    lines = [
        "2026-11-24 03:04:05.000 UTC [77] ERROR:  duplicate key",
        "2026-11-24 03:04:05.000 UTC [77] DETAIL:  Key (id)=(1) already exists.",
        "2026-11-24 03:04:05.000 UTC [77] STATEMENT:  INSERT INTO a",
        "\tVALUES (1)",
        "java.lang.IllegalStateException: no",
        "Caused by: java.io.IOException: disk",
        "",
        "ERROR next",
    ]
    first, second = entries_of(lines)
    assert (first.message, first.exception) == ("duplicate key", "Caused by: java.io.IOException: disk")
    assert second.message == "next"


def test_what_python_writes_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, "job %s failed", ("7",), (OSError, _caused(), _caused().__traceback__))
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s").format(record)
    (entry,) = entries_of(text.splitlines())
    assert (entry.level, entry.message, entry.exception) == ("error", "a.b job 7 failed", "OSError: [Errno 5] second")
    assert entry.at == pytest.approx(record.created, abs=1)


def test_a_traceback_waits_one_run_for_its_end() -> None:
    entries = Entries()
    trace = _trace(_caused())
    assert [entry for line in trace[:3] for entry in entries.take(line)] == []
    assert list(entries.pause()) == []
    resumed = Entries(entries.open)
    assert [entry for line in trace[3:] for entry in resumed.take(line)] == []
    assert [entry.text for entry in resumed.pause()] == ["OSError: [Errno 5] second"]
    assert list(resumed.close()) == []
    given_up = Entries(Entry(None, "error", "", tracing=True))
    assert list(given_up.pause()) == []
    assert [entry.level for entry in given_up.pause()] == ["error"]


def test_an_entry_is_told_once_though_more_of_it_comes() -> None:
    entries = Entries()
    assert list(entries.take("2026-11-24 03:04:05 ERROR it failed")) == []
    assert [entry.message for entry in entries.pause()] == ["it failed"]
    later = Entries(entries.open)
    assert [entry for line in _trace(_caused()) for entry in later.take(line)] == []
    assert list(later.pause()) == []


@given(
    st.lists(st.text(alphabet=st.characters(blacklist_characters="\n")) | st.sampled_from(["Traceback (most recent call last):", "  x"]))
)
def test_any_lines_can_be_taken(lines: list[str]) -> None:
    for entry in entries_of(lines):
        assert entry.level in RANKS
        assert len(shape(entry.text)) <= SHAPE_CHARS


@given(
    st.dictionaries(
        st.sampled_from(["level", "event", "timestamp", "exception", "detail"]), st.recursive(st.none() | st.floats() | st.text(), st.lists)
    )
)
def test_any_json_can_be_taken(row: dict[str, object]) -> None:
    (entry,) = entries_of([json.dumps(row)])
    assert shape(entry.text).isprintable()
    assert entry.at is None or 0 < entry.at < 1e11


@given(st.datetimes(min_value=datetime(1981, 1, 1), max_value=datetime(2999, 1, 1)))  # noqa: DTZ001
def test_times_are_read_back(when: datetime) -> None:
    text = when.replace(tzinfo=UTC).isoformat()
    assert seconds_of(text) == pytest.approx(when.replace(tzinfo=UTC).timestamp(), abs=1e-3)
    found = STAMP.match(when.strftime("%Y-%m-%d %H:%M:%S rest"))
    assert found
    assert stamp_of(found) == when.replace(microsecond=0).astimezone().timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job 123 failed after 3.5 s", "job <n> failed after <n> s"),
        ("job ing_8f3a21 of tenant 'acme'", "job <id> of tenant <text>"),
        ('no "such thing" and can\'t', "no <text> and can't"),
        ("connection to 127.0.0.1:5432 refused", "connection to <n> refused"),
        ("cannot read /var/lib/app/7.csv: gone", "cannot read <path>: gone"),
        ("550e8400-e29b-41d4-a716-446655440000 at 0xdeadbeef", "<uuid> at <hex>"),
        ("GET https://x.example/a?b=c failed", "GET <url> failed"),
        ("to ann@example.com failed", "to <mail> failed"),
        ("ids 1, 2, 3, 4 failed", "ids <n>… failed"),
        ("no digits here", "no digits here"),
    ],
)
def test_what_varies_is_masked(text: str, expected: str) -> None:
    assert shape(text) == expected


@given(st.integers(), st.uuids(), st.floats(0, 1e6), st.from_regex(r"[a-z0-9 ]{0,40}", fullmatch=True))
def test_the_same_mishap_has_one_shape(number: int, uuid: object, seconds: float, name: str) -> None:
    def message(*parts: object) -> str:
        return "job {} of {} took {:.3f} s for '{}'".format(*parts)

    assert shape(message(number, uuid, seconds, name)) == shape(message(1, "550e8400-e29b-41d4-a716-446655440000", 1.0, "x"))


def test_a_quotation_that_is_cut_off_varies_no_less() -> None:
    assert shape("bad input '" + "a" * 900 + "'") == shape("bad input '" + "b c" * 900 + "'")
