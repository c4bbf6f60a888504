"""What counts and canary mean together: the whole table."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from checks.pg_connections import (
    DATABASE_LIMIT,
    DOWN,
    EXHAUSTED,
    HANDSHAKES,
    HIGH,
    LIMIT_HIGH,
    ROLE_LIMIT,
    Config,
    Counts,
    Limit,
    judge,
    still_known,
)
from monitor.domain import FindingKind
from monitor.plugins import Kept
from monitor.probes_contract import Login, LoginState


def counts(used: int, *, starting: int = 0) -> Counts:
    """``used`` of 100 usable slots."""
    states = (("active", 0), ("idle", used - starting), ("idle_in_transaction", 0), ("starting", starting), ("other", 0))
    return Counts(103, 3, states, (("data-service", used),))


def login(state: LoginState) -> Login:
    return Login(state, 0.012, "FATAL: so\nit is" if state is not LoginState.OK else "")


@pytest.mark.parametrize(
    ("used", "state", "kind"),
    [
        (counts(10), LoginState.OK, None),
        (counts(79), LoginState.OK, None),
        (counts(80), LoginState.OK, HIGH),
        (counts(94), LoginState.OK, HIGH),
        (counts(95), LoginState.OK, EXHAUSTED),
        (counts(103), LoginState.OK, EXHAUSTED),
        (counts(100), LoginState.EXHAUSTED, EXHAUSTED),
        (counts(5), LoginState.EXHAUSTED, HANDSHAKES),
        (counts(100, starting=95), LoginState.EXHAUSTED, HANDSHAKES),
        (counts(5), LoginState.HANDSHAKE_STUCK, HANDSHAKES),
        (None, LoginState.HANDSHAKE_STUCK, HANDSHAKES),
        (None, LoginState.EXHAUSTED, EXHAUSTED),
        (None, LoginState.DOWN, DOWN),
        (counts(5), LoginState.DOWN, DOWN),
        (counts(5), LoginState.ROLE_LIMIT, ROLE_LIMIT),
        (counts(5), LoginState.DATABASE_LIMIT, DATABASE_LIMIT),
        (counts(96), LoginState.REJECTED, EXHAUSTED),
        (counts(5), LoginState.REJECTED, None),
        (counts(5), LoginState.UNCLASSIFIED, None),
        (None, LoginState.OK, None),
        (None, LoginState.UNCLASSIFIED, None),
    ],
)
def test_meaning(used: Counts | None, state: LoginState, kind: FindingKind | None) -> None:
    findings = judge(used, login(state), Config(), service="postgres")
    assert [finding.kind for finding in findings] == ([kind] if kind else [])
    for finding in findings:
        facts = dict(finding.facts)
        assert facts["canary login"].endswith("after 12 ms")
        assert all(text.isprintable() for text in (finding.summary, *facts.values()))
        assert "postgres" in finding.summary
        if used:
            assert f"{used.used} of 100 usable" in facts["used"]


FULL, NEAR, FREE = Limit("role", "app", 20, 20), Limit("database", "shop", 50, 40), Limit("role", "batch", 10, 1)


def test_limits_are_told_before_they_are_reached() -> None:
    seen = replace(counts(10), limits=(FULL, NEAR, FREE))
    told = judge(seen, login(LoginState.OK), Config(), service="postgres")
    assert [finding.summary for finding in told] == [
        "the role app has used up 100 % of its own connection limit (postgres)",
        "the database shop has used up 80 % of its own connection limit (postgres)",
    ]
    assert dict(told[0].labels) == {"scope": "role", "name": "app"}
    reached = judge(seen, login(LoginState.ROLE_LIMIT), Config(), service="postgres")
    assert [finding.kind for finding in reached] == [ROLE_LIMIT, LIMIT_HIGH]  # the role's own is not told twice
    assert dict(reached[0].facts)["limits reached"] == "role app 20/20"


def test_only_the_kind_of_limit_is_a_label() -> None:
    (role,) = judge(None, login(LoginState.ROLE_LIMIT), Config(), service="postgres")
    assert role.labels == (("limit", "role"),)
    (down,) = judge(None, login(LoginState.DOWN), Config(), service="postgres")
    assert down.labels == ()


def test_thresholds_are_ordered() -> None:
    with pytest.raises(ValidationError, match="below critical_percent"):
        Config(warn_percent=95, critical_percent=95)


@pytest.mark.parametrize(
    ("seen", "kept", "login_every", "known"),
    [
        (counts(10), {"at_s": 980.0, "duration_s": 0.01}, 30, True),
        (counts(40), {"at_s": 980.0, "duration_s": 0.01}, 30, True),
        (counts(41), {"at_s": 980.0, "duration_s": 0.01}, 30, False),  # more than half of warn_percent
        (counts(10, starting=1), {"at_s": 980.0, "duration_s": 0.01}, 30, False),
        (replace(counts(10), limits=(Limit("role", "app", 10, 5),)), {"at_s": 980.0, "duration_s": 0.01}, 30, False),
        (counts(10), {"at_s": 973.0, "duration_s": 0.01}, 30, False),  # due, though the look comes a little early
        (counts(10), {"at_s": 1001.0, "duration_s": 0.01}, 30, False),  # the clock was set back
        (counts(10), {"at_s": 1000.0, "duration_s": 0.01}, 0, False),
        (counts(10), {}, 30, False),  # the one before failed
        (counts(10), None, 30, False),
        (None, {"at_s": 980.0, "duration_s": 0.01}, 30, False),
    ],
)
def test_when_the_latest_login_still_counts(seen: Counts | None, kept: dict[str, float] | None, login_every: float, known: bool) -> None:
    before = None if kept is None else Kept(datetime.fromtimestamp(980, UTC), kept)
    latest = still_known(seen, before, Config(login_every=login_every), now_s=1000.0)
    assert latest == (Login(LoginState.OK, 0.01) if known else None)
