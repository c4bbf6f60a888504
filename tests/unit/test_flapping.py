"""Flap damping: the measure by tables, and what it does to alerts."""

from dataclasses import replace

import pytest

from alerts.flapping import change_share, is_flapping
from monitor.domain import Outcome
from tests.unit.test_decide import DOWN, POLICY, World

WORDS = {".": Outcome.OK, "x": Outcome.FOUND, "?": Outcome.BLIND}


def run(text: str) -> tuple[Outcome, ...]:
    return tuple(WORDS[char] for char in text)


@pytest.mark.parametrize(
    ("recent", "was", "flaps"),
    [
        ("", False, False),
        ("." * 21, True, False),
        (".x" * 10 + ".", False, True),
        ("." * 15 + "xxxxxx", False, False),
        (".........x.x.x.......", False, True),
        ("...........x.x.......", False, False),
        ("..........x..x.x.....", True, True),
        ("??.?x??.?x??.?x??", False, False),
        ("?.?x?.?x?.?x?.?x?.?x?", False, True),
    ],
)
def test_it_flaps_when_newer_results_change_much(recent: str, was: bool, flaps: bool) -> None:
    assert is_flapping(run(recent), was) is flaps


def test_the_share_is_between_nothing_and_everything() -> None:
    assert change_share(run("x.")) == pytest.approx(0.059)
    assert change_share(run(".x" * 30)) == pytest.approx(0.99)


def test_a_flapping_check_opens_one_alert_and_keeps_it_until_it_is_calm() -> None:
    """Bad and good by turns: never two bad runs in a row, and yet people hear of it, once."""
    world = World(replace(POLICY, alert=replace(POLICY.alert, fail_after=2, recover_after=1)))
    recent: list[Outcome] = []
    flapping = False
    for outcome in run("." * 10 + "x." * 30 + "." * 30):
        recent.append(outcome)
        flapping = is_flapping(recent, flapping)
        world.policy = replace(world.policy, flapping=flapping)
        world.found(DOWN) if outcome is Outcome.FOUND else world.ok()
    assert world.told() == [("triggered", "page"), ("resolved", "page")]
