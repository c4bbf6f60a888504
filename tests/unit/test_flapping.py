"""Flap damping: the measure by tables, and what it does to alerts."""

from dataclasses import replace

import pytest

from alerts.decide import finding_labels
from alerts.fingerprint import fingerprint
from alerts.flapping import Swings, change_share, is_flapping
from monitor.domain import CheckResult, Finding, FindingKind, Observed, Outcome, Severity
from monitor.flaps import Flaps
from tests.unit.test_decide import DOWN, POLICY, T0, World

FULL = FindingKind("DiskFull", Severity.P4, None, "full")
WORDS = {".": Outcome.OK, "x": Outcome.FOUND, "?": Outcome.BLIND}


def flaps(recent: str, *, was: bool = False) -> bool:
    swings = Swings(flapping=frozenset({"x"} if was else ()))
    for char in recent:
        swings.see(WORDS[char], frozenset({"x"} if char == "x" else ()))
    return swings.flapping == {"x"}


@pytest.mark.parametrize(
    ("recent", "was", "expected"),
    [
        ("", False, False),
        ("." * 21, True, False),
        (".x" * 10 + ".", False, True),
        ("." * 15 + "xxxxxx", False, False),
        (".........x.x.x.......", False, True),
        ("...........x.x.......", False, False),
        ("..........x..x.x.....", True, True),
    ],
)
def test_it_flaps_when_newer_results_change_much(recent: str, was: bool, expected: bool) -> None:
    assert is_flapping([char == "x" for char in recent], was) is expected


@pytest.mark.parametrize(("recent", "expected"), [("??.?x??.?x??.?x??", False), ("?.?x?.?x?.?x?.?x?.?x?", True)])
def test_runs_that_could_not_look_say_nothing(recent: str, expected: bool) -> None:
    assert flaps(recent) is expected


def test_the_share_is_between_nothing_and_everything() -> None:
    assert change_share([True, False]) == pytest.approx(0.059)
    assert change_share([False, True] * 30) == pytest.approx(0.99)


def look(*found: Finding) -> CheckResult:
    return CheckResult("http/auth", "http", "auth", Outcome.FOUND if found else Outcome.OK, T0, 0.0, Observed(findings=found))


@pytest.mark.parametrize("beside", [(), (FULL("full"),)])
def test_what_comes_and_goes_is_one_alert_until_it_is_calm_whatever_stands_beside_it(beside: tuple[Finding, ...]) -> None:
    """Bad and good by turns: never two bad runs in a row, and yet people hear of it, once."""
    world = World(replace(POLICY, alert=replace(POLICY.alert, fail_after=2, recover_after=1)))
    swings = Flaps()
    for char in "." * 10 + "x." * 30 + "." * 30:
        seen = look(*beside, *((DOWN("down"),) if char == "x" else ()))
        swings.see(seen)
        world.policy = replace(world.policy, flapping=swings.flapping.get("http/auth", frozenset()))
        world.found(*(finding.kind for finding in seen.observed.findings)) if seen.observed.findings else world.ok()
    (down,) = (incident for incident in world.incidents.values() if incident.code == "INC-001")
    assert down.resolved_at is not None
    assert world.told().count(("triggered", "page")) == 1


def test_only_the_finding_that_swings_flaps() -> None:
    swings = Flaps()
    for char in "x." * 10:
        swings.see(look(FULL("full"), *((DOWN("down"),) if char == "x" else ())))
    assert swings.flapping == {"http/auth": frozenset({fingerprint(finding_labels(look(), DOWN("down")))})}
