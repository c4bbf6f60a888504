"""What one HTTP exchange means: a table, and a property over hostile bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from checks.http_health import DOWN, EXPIRING, SLOW, Config, judge
from monitor.domain import Observed
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpPhases, HttpReason

URL = "http://127.0.0.1:8001/health"
HEALTHY = b'{"service": "analytics-service", "version": "0.0.1", "status": "healthy", "timestamp": 1700000000.0}'


def answer(status: int = 200, body: bytes = HEALTHY, *, took_s: float = 0.1, days_left: float | None = None) -> HttpAnswer:
    phases = HttpPhases(wait_s=took_s, total_s=took_s)
    return HttpAnswer(status, (b"X-Process-Time: 0.05\r\n",), body, phases, tls_days_left=days_left)


def seen(result: HttpAnswer | HttpFailure, **config: object) -> Observed:
    return judge(result, Config.model_validate(config), service="analytics", url=URL)


def value(observed: Observed, metric: str, *labels: str) -> float | None:
    return next((s.value for s in observed.samples if s.metric.name == metric and s.labels == labels), None)


def test_a_healthy_answer_finds_nothing_and_measures_everything() -> None:
    observed = seen(answer(), expect_json={"status": "healthy"}, expect_body="analytics-service")
    assert observed.findings == ()
    assert value(observed, "monitor_http_up") == 1
    assert value(observed, "monitor_http_status") == 200
    assert value(observed, "monitor_http_response_bytes") == len(HEALTHY)
    assert value(observed, "monitor_http_duration_seconds", "wait") == 0.1
    assert value(observed, "monitor_http_tls_expiry_seconds") is None


@pytest.mark.parametrize(
    ("result", "config", "words"),
    [
        (answer(503), {}, "status 503 instead of 200"),
        (answer(204), {"expect_status": (200, 201)}, "status 204 instead of 200 or 201"),
        (answer(302), {}, "status 302"),
        (answer(body=b'{"status": "degraded"}'), {"expect_json": {"status": "healthy"}}, "status is 'degraded' instead of 'healthy'"),
        (answer(body=b'{"service": "x"}'), {"expect_json": {"status": "healthy"}}, "no field 'status'"),
        (answer(body=b"<html>"), {"expect_json": {"status": "healthy"}}, "not JSON"),
        (answer(body=b"\xff\xfe"), {"expect_json": {"status": "healthy"}}, "not JSON"),
        (answer(body=b"[" * 100_000), {"expect_json": {"status": "healthy"}}, "not JSON"),
        (answer(body=b"[1]"), {"expect_json": {"status": "healthy"}}, "not a JSON object"),
        (answer(body=b'{"ready": false}'), {"expect_json": {"ready": "true"}}, "ready is 'false' instead of 'true'"),
        (answer(body=b"Hello"), {"expect_body": "Welcome"}, "does not contain 'Welcome'"),
        (HttpFailure(HttpReason.REFUSED, "Connection refused", HttpPhases()), {}, "connection refused"),
        (HttpFailure(HttpReason.TIMEOUT, "no whole answer within 5 s", HttpPhases(total_s=5)), {}, "no answer in time"),
        (HttpFailure(HttpReason.TOO_LARGE, "the body is larger than 5 bytes", HttpPhases()), {}, "too large"),
    ],
)
def test_down(result: HttpAnswer | HttpFailure, config: dict[str, object], words: str) -> None:
    observed = seen(result, **config)
    (finding,) = observed.findings
    assert finding.kind is DOWN
    assert finding.labels == ()
    assert words in finding.summary
    assert "analytics" in finding.summary
    assert dict(finding.facts)["url"] == URL
    assert value(observed, "monitor_http_up") == 0


def test_every_reason_has_words_and_the_same_identity() -> None:
    findings = [seen(HttpFailure(reason, "detail", HttpPhases())).findings[0] for reason in HttpReason]
    assert len({finding.labels for finding in findings}) == 1
    assert len({finding.summary for finding in findings}) == len(HttpReason)


def test_slow_is_found_only_of_a_good_answer() -> None:
    (slow,) = seen(answer(took_s=2.5)).findings
    assert slow.kind is SLOW
    assert "2.50 s" in slow.summary
    assert dict(slow.facts)["slowest phase"] == "wait 2.50 s"
    assert value(seen(answer(took_s=2.5)), "monitor_http_up") == 1
    assert [finding.kind for finding in seen(answer(500, took_s=2.5)).findings] == [DOWN]


def test_an_expiring_certificate_is_found_beside_the_rest() -> None:
    assert [finding.kind for finding in seen(answer(days_left=13.9)).findings] == [EXPIRING]
    assert seen(answer(days_left=14.1)).findings == ()
    assert [finding.kind for finding in seen(answer(500, days_left=0.5)).findings] == [DOWN, EXPIRING]
    assert "12 hours" in seen(answer(days_left=0.5)).findings[0].summary
    assert value(seen(answer(days_left=2)), "monitor_http_tls_expiry_seconds") == 2 * 86_400


@given(st.binary(max_size=5000) | st.text(max_size=2000).map(str.encode))
def test_a_hostile_body_reaches_people_short_and_clean(body: bytes) -> None:
    for config in ({"expect_status": (201,)}, {"expect_json": {"status": "healthy"}}):
        for finding in seen(answer(body=body), **config).findings:
            for text in (finding.summary, *(fact for _, fact in finding.facts)):
                assert text.isprintable()
                assert len(text) < 400


@pytest.mark.parametrize(
    "bad",
    [
        {"path": "health"},
        {"path": "/a\nb"},
        {"expect_status": ()},
        {"expect_status": (42,)},
        {"slow_after": "5s", "deadline": "5s"},
        {"method": "HEAD", "expect_body": "x"},
        {"headers": {"X": "a\r\nEvil: 1"}},
        {"headers": {"X: y": "a"}},
        {"secret_headers": {"Authorization": SecretStr("a\nb")}},
        {"max_body_bytes": 0},
        {"unknown": 1},
    ],
)
def test_nonsense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(bad)
