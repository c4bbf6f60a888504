"""What a log-in, the instances of a service and the sources of its data mean: the tables behind the checks."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from checks.login import Config as LoginConfig
from checks.login import Tried, refused
from checks.login import judge as judge_login
from checks.service_instances import Config as InstancesConfig
from checks.service_instances import Told, read
from checks.service_instances import judge as judge_instances
from checks.sources import Config as SourcesConfig
from checks.sources import judge as judge_sources
from checks.synthetic_user import Pass, Refusal, SyntheticUser, log_in
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpPhases, HttpReason, HttpRequest

NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)
NOW_S = NOW.timestamp()
USER: dict[str, Any] = {"username": "ops", "password": SecretStr("right-horse"), "tenant": "demo"}
LOGIN = LoginConfig(**USER)
PASS = Pass((("Authorization", "Bearer secret-token"), ("X-Tenant-Id", "demo")), 0.2)


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def words(observed: Observed) -> str:
    return str(observed.findings)


def answer(status: int = 200, body: object = None, *, total_s: float = 0.1) -> HttpAnswer:
    return HttpAnswer(status, (), json.dumps(body).encode() if not isinstance(body, bytes) else body, HttpPhases(total_s=total_s))


class Scripted:
    """A door that gives one answer and remembers what it was asked."""

    def __init__(self, given: HttpAnswer | HttpFailure) -> None:
        self.given = given
        self.asked: list[HttpRequest] = []

    async def fetch(self, request: HttpRequest) -> HttpAnswer | HttpFailure:
        self.asked.append(request)
        return self.given


# --- logging in ------------------------------------------------------------------------------------------------------


async def test_a_log_in_is_what_the_service_takes() -> None:
    door = Scripted(answer(body={"access_token": "abc"}))
    made = await log_in(door, "http://auth/", SyntheticUser(**USER), deadline_s=3)
    assert isinstance(made, Pass)
    assert dict(made.headers) == {"Authorization": "Bearer abc", "X-Tenant-Id": "demo"}
    assert door.asked[0].url == "http://auth/api/v1/login"
    assert json.loads(door.asked[0].body) == {"tenant_id": "demo", "username": "ops", "password": "right-horse"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(body={"token": "x"}), Refusal(200, "no_token", "the answer holds no access_token")),
        (answer(body=["access_token"]), Refusal(200, "no_token", "the answer holds no access_token")),
        (answer(body=b"\xff"), Refusal(200, "no_token", "the answer holds no access_token")),
        (answer(body={"access_token": "a\r\nX-Evil: 1"}), Refusal(200, "no_token", "the answer holds no access_token")),
        (answer(401, {"error": "unauthorized", "detail": "right-horse is wrong\x1b[2J"}), Refusal(401, "unauthorized", "")),
        (answer(401, {"error": "unauthorized", "detail": "right-horse is wrong"}), Refusal(401, "unauthorized", "… is wrong")),
        (HttpFailure(HttpReason.REFUSED, "nobody", HttpPhases()), Refusal(0, "refused", "nobody")),
    ],
)
async def test_a_log_in_that_gives_no_token(given: HttpAnswer | HttpFailure, expected: Refusal) -> None:
    assert await log_in(Scripted(given), "http://auth", SyntheticUser(**USER), deadline_s=3) == expected


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Refusal(401, "unauthorized", "wrong"), "the tenant is disabled, or the identity provider does not take its password"),
        (Refusal(503, "idp_unavailable", ""), "the identity provider does not answer"),
        (Refusal(503, "database_unavailable", ""), "auth answers 503 (database_unavailable)"),
        (Refusal(0, "timeout", ""), "auth does not answer (timeout)"),
    ],
)
def test_why_nobody_can_log_in(made: Refusal, why: str) -> None:
    observed = refused(made, LOGIN, service="auth")
    assert kinds(observed) == ["CannotLogIn"]
    assert why in observed.findings[0].summary


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        ([200, 404], []),
        ([200, 401], ["TokenRejected"]),
        ([403, 401], ["AllRequestsRefused"]),
        ([0, 401], ["AllRequestsRefused"]),
        ([503, 0], ["TokenRejected"]),
        ([503, 500, 503], ["TokenRejected"]),
        ([503, 401], ["TokenRejected"]),
        ([503, 404], []),  # one service takes the token: the other's own checks say what it lacks
    ],
)
def test_where_a_token_is_refused(statuses: list[int], found: list[str]) -> None:
    tried = [Tried(f"/{number}", status, None, 0.1) for number, status in enumerate(statuses)]
    observed = judge_login(PASS, tried, [], LOGIN, service="auth")
    assert kinds(observed) == found
    assert "secret-token" not in words(observed)


def test_a_door_that_is_open_and_a_log_in_that_is_slow() -> None:
    slow = Pass(PASS.headers, 3.0)
    assert kinds(judge_login(slow, [Tried("/verify", 200, 200, 0.1)], ["/verify"], LOGIN, service="auth")) == [
        "OpenWithoutToken",
        "LoginSlow",
    ]


@pytest.mark.parametrize("address", ["verify", "ftp://x/", "/a b", "/a\nb", ""])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValidationError):
        LoginConfig(**USER, protected=(address,))


# --- instances -------------------------------------------------------------------------------------------------------

CFG = InstancesConfig()


def health(**more: object) -> dict[str, object]:
    return {"status": "healthy", "version": "1.0", "timestamp": NOW_S, "started_at": NOW_S - 60, **more}


def told(address: str = "a:1", *, given: HttpAnswer | HttpFailure | None = None, **more: object) -> Told:
    return read(address, given or answer(body=health(**more)), CFG, NOW)


def judged(
    *ones: Told, before: dict[str, Any] | None = None, front: HttpAnswer | HttpFailure | None = None, after_s: float = 0
) -> Observed:
    return judge_instances(ones, front, before or {}, CFG, now_s=NOW_S + after_s, service="data")


GONE = HttpFailure(HttpReason.REFUSED, "nobody\x1b[2J", HttpPhases())


def test_instances_that_are_well() -> None:
    assert kinds(judged(told("a:1"), told("b:1"), front=answer(404))) == []


@pytest.mark.parametrize(
    "given", [GONE, answer(500, health()), answer(200, b"<html>"), answer(200, ["healthy"]), answer(200, health(status="starting"))]
)
def test_an_instance_that_is_down_while_others_are_up(given: HttpAnswer | HttpFailure) -> None:
    observed = judged(told("a:1"), told("b:1", given=given))
    assert kinds(observed) == ["InstanceDown"]
    assert dict(observed.findings[0].labels) == {"target": "b:1"}
    assert all(text.isprintable() for pair in observed.findings[0].facts for text in pair)
    assert kinds(judged(told("b:1", given=given))) == ["AllInstancesDown"]


def test_a_proxy_that_fails_before_healthy_instances() -> None:
    assert kinds(judged(told(), front=answer(502))) == ["ProxyFailing"]
    assert kinds(judged(told(), front=GONE)) == ["ProxyFailing"]
    assert kinds(judged(told(given=GONE), front=answer(502))) == ["AllInstancesDown"]


@pytest.mark.parametrize(
    ("ahead_s", "total_s", "found"), [(1.9, 0.1, []), (2.2, 0.1, ["ClockSkew"]), (-9, 0.1, ["ClockSkew"]), (2.2, 1.0, [])]
)
def test_clocks(ahead_s: float, total_s: float, found: list[str]) -> None:
    given = answer(body=health(timestamp=NOW_S + ahead_s - total_s / 2), total_s=total_s)
    observed = judged(told(given=given))
    assert kinds(observed) == found


def test_versions_may_differ_while_a_deployment_goes_on() -> None:
    pair = (told("a:1"), told("b:1", version="1.1"))
    first = judged(*pair)
    assert kinds(first) == []
    assert kinds(judged(*pair, before=first.keep, after_s=901)) == ["VersionSkew"]
    again = judged(told("a:1"), told("b:1"), before=first.keep, after_s=60)
    assert kinds(judged(*pair, before=again.keep, after_s=901)) == []


def test_an_instance_that_is_restarted_again_and_again() -> None:
    before: dict[str, Any] = {}
    for turn in range(6):
        observed = judged(told(started_at=NOW_S + turn * 60), before=before, after_s=turn * 60)
        assert kinds(observed) == (["InstanceRestarts"] if turn >= 4 else [])
        down = judged(told(given=GONE), before=observed.keep, after_s=turn * 60 + 30)
        before = down.keep  # what is down keeps its last start
    assert kinds(judged(told(started_at=NOW_S + 300), before=before, after_s=3600)) == []


def lacking(name: str, address: str = "a:1", cfg: InstancesConfig = CFG) -> Told:
    return read(address, answer(body={key: value for key, value in health().items() if key != name}), cfg, NOW)


@pytest.mark.parametrize("name", ["version", "timestamp", "started_at"])
def test_what_is_compared_and_not_told_is_not_fine(name: str) -> None:
    with pytest.raises(CannotLook, match=f"the health answer of a:1 has no {name}: have it tell, or leave that out of compare"):
        judged(lacking(name), told("b:1"))
    observed = judged(lacking(name), told("b:1", given=GONE))
    assert kinds(observed) == ["InstanceDown"]
    assert f"has no {name}" in dict(observed.findings[0].facts)["not seen"]
    quiet = InstancesConfig.model_validate({"compare": [one for one in CFG.compare if one != name]})
    pair = (lacking(name, cfg=quiet), lacking(name, "b:1", cfg=quiet))
    assert kinds(judge_instances(pair, None, {}, quiet, now_s=NOW_S, service="data")) == []


def test_a_single_instance_needs_no_version() -> None:
    assert kinds(judged(lacking("version"))) == []


SCALARS = st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.integers()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner))


@given(st.dictionaries(st.sampled_from(["status", "version", "timestamp", "started_at"]), JSON))
def test_any_health_answer_means_something(body: dict[str, Any]) -> None:
    try:
        observed = judged(told(given=answer(body=body)))
    except CannotLook:
        return  # it is healthy, and does not say the rest
    assert json.loads(json.dumps(observed.keep)) == observed.keep
    assert all(finding.summary.isprintable() for finding in observed.findings)


# --- sources ---------------------------------------------------------------------------------------------------------

SOURCES = SourcesConfig(**USER, auth_url="http://auth")


def test_sources() -> None:
    seen = {
        "bigquery": {"available": False, "duration_s": 5.0, "error": "quota\x1b[2J"},
        "sftp": {"available": True, "duration_s": 4.0, "error": None},
        "s3": {"available": True},
    }
    observed = judge_sources(seen, SOURCES, service="data")
    assert [finding.summary for finding in observed.findings] == ["data cannot reach bigquery", "sftp takes 4.0 s to answer data"]
    assert dict(observed.findings[0].facts)["error"] == "quota [2J"


def test_a_source_that_is_down_is_not_hidden_by_one_that_is_unclear() -> None:
    observed = judge_sources({"bigquery": {"available": None}, "sftp": {"available": False}}, SOURCES, service="data")
    assert [finding.summary for finding in observed.findings] == ["data cannot reach sftp"]
    assert dict(observed.findings[0].facts)["not seen"] == "data does not say whether bigquery is available"


@pytest.mark.parametrize("seen", [{"bigquery": {}}, {"bigquery": {"available": "yes"}}])
def test_a_source_of_which_nothing_is_said_is_not_fine(seen: dict[str, Any]) -> None:
    with pytest.raises(CannotLook, match="does not say whether bigquery is available"):
        judge_sources(seen, SOURCES, service="data")
