"""An alert fires, and is over, when both the count of runs and the time are reached; and who waits for time alone does not hammer."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from alerts.decide import Known, Policy, decide, next_look_s
from alerts.explain import describe, rule
from alerts.fingerprint import fingerprint
from monitor.domain import Alert, AlertPolicy, AlertState, CheckResult, Decision, Observed, Outcome, Severity
from tests.unit.test_decide import DOWN, POLICY, T0, World

SLOWLY = AlertPolicy(fail_after=2, recover_after=2, blind_after=2, fail_for_s=60, recover_for_s=120)


class Looked(World):
    """A world in which every look is so many seconds after the one before, and says how soon it wants the next."""

    def look(self, outcome: Outcome, after_s: float) -> float | None:
        self.now += timedelta(seconds=after_s)
        known = self.known()
        findings = (DOWN("down"),) if outcome is Outcome.FOUND else ()
        error = "no way" if outcome is Outcome.BLIND else None
        result = CheckResult("http/auth", "http", "auth", outcome, self.now, 0.0, Observed(findings=findings), error)
        decided = decide(known, result, self.policy, self.now)
        self.take(decided)
        return next_look_s(known, decided, "http/auth", self.policy.alert, self.now)

    def state(self) -> AlertState | None:
        found = [alert.state for alert in self.alerts.values() if dict(alert.labels)["alertname"] == DOWN.name]
        return found[0] if found else None


def looked(policy: AlertPolicy = SLOWLY) -> Looked:
    return Looked(replace(POLICY, alert=policy))


def test_it_fires_when_both_the_count_and_the_time_are_reached() -> None:
    world = looked()
    assert world.look(Outcome.FOUND, 0) == 0  # a count is missing: soon
    assert world.look(Outcome.FOUND, 2) == 58  # only time is missing: when it is reached
    assert world.look(Outcome.FOUND, 15) == 43
    assert world.state() is AlertState.PENDING
    assert world.look(Outcome.FOUND, 43) is None
    assert world.state() is AlertState.FIRING
    assert world.told() == [("triggered", "page")]


def test_time_alone_does_not_confirm() -> None:
    world = looked()
    world.look(Outcome.FOUND, 0)
    world.look(Outcome.OK, 1000)
    world.look(Outcome.FOUND, 1000)
    assert world.state() is AlertState.PENDING


def test_it_is_over_when_both_the_count_and_the_time_are_reached() -> None:
    world = looked(replace(SLOWLY, fail_after=1, fail_for_s=0))
    world.look(Outcome.FOUND, 0)
    assert world.look(Outcome.OK, 10) == 0
    assert world.look(Outcome.OK, 2) == 118
    assert world.look(Outcome.OK, 60) == 58
    assert world.state() is AlertState.FIRING
    world.look(Outcome.FOUND, 1)  # one bad run: the good ones start anew
    assert world.look(Outcome.OK, 200) == 0
    assert world.look(Outcome.OK, 119) == 1
    world.look(Outcome.OK, 1)
    assert world.state() is AlertState.RESOLVED
    assert world.told() == [("triggered", "page"), ("resolved", "page")]


def test_a_run_that_could_not_look_neither_counts_nor_stops_the_clock() -> None:
    world = looked()
    world.look(Outcome.FOUND, 0)
    world.look(Outcome.BLIND, 30)
    world.look(Outcome.FOUND, 30)
    assert world.state() is AlertState.FIRING


def test_blindness_itself_knows_no_time() -> None:
    world = looked()
    assert world.look(Outcome.BLIND, 0) == 0
    world.look(Outcome.BLIND, 1)
    assert world.told() == [("triggered", "slack")]


def test_a_check_that_flaps_fires_at_once_all_the_same() -> None:
    world = looked()
    print_ = fingerprint((("alertname", "ServiceDown"), ("check", "http"), ("service", "auth")))
    world.policy = replace(world.policy, flapping=frozenset({print_}))
    world.look(Outcome.FOUND, 0)
    assert world.state() is AlertState.FIRING


def test_what_waits_for_a_cause_is_not_looked_at_again_and_again() -> None:
    world = looked(replace(SLOWLY, fail_for_s=0))
    suspect = Alert(
        "f00", "base/db", "db/X", (("alertname", "X"),), None, Severity.P1, "x", (), AlertState.PENDING, 1, 0, T0,
        service="db", home="db/X", fells=True,
    )  # fmt: skip
    policy: Policy = replace(world.policy, depends_on=frozenset({"base/db"}))
    result = CheckResult("http/auth", "http", "auth", Outcome.FOUND, T0, 0.0, Observed(findings=(DOWN("down"),)))
    known = Known(causes=(suspect,))
    for wanted in (0, 0, None):  # counting, counted, waiting
        decided = decide(known, result, policy, T0)
        assert next_look_s(known, decided, "http/auth", policy.alert, T0) == wanted
        known = replace(known, alerts=decided.alerts or known.alerts)
    assert [alert.state for alert in known.alerts] == [AlertState.PENDING]


def test_it_is_said_what_is_missing() -> None:
    assert rule(SLOWLY).endswith(
        "fires after 2 bad runs in a row that go on for 1 min and is over after 2 good ones in a row that go on for 2 min"
    )
    assert rule(AlertPolicy()) == "an alert fires after 2 bad runs in a row and is over after 2 good ones in a row"
    assert rule(AlertPolicy(1, 1)) == "an alert fires at the first bad run and is over at the first good one"
    assert rule(AlertPolicy(1, 1, 90, 45)) == "an alert fires when bad runs go on for 1.5 min and is over when good ones go on for 45 s"
    world = looked()
    world.look(Outcome.FOUND, 0)
    (pending,) = world.alerts.values()
    assert "1 of 2 bad runs in a row, and not before 12:01:00 UTC: nobody is told yet" in describe(pending, policy=SLOWLY)
    world.look(Outcome.FOUND, 60)
    world.look(Outcome.OK, 60)
    (firing,) = world.alerts.values()
    assert "1 of 2 good runs so far, and not over before 12:04:00 UTC" in describe(firing, policy=SLOWLY)


steps = st.lists(st.tuples(st.sampled_from(Outcome), st.sampled_from([0, 1, 15, 29, 30, 31, 60, 600])), max_size=40)
policies = st.builds(
    AlertPolicy,
    fail_after=st.integers(1, 3),
    recover_after=st.integers(1, 3),
    fail_for_s=st.sampled_from([0.0, 30.0, 61.0]),
    recover_for_s=st.sampled_from([0.0, 30.0, 61.0]),
)


@given(steps, policies)
def test_it_fires_and_ends_as_streaks_say(script: list[tuple[Outcome, int]], policy: AlertPolicy) -> None:
    """The reference knows nothing of alerts: only the streak of looks that saw the same."""
    world, fires, streak = looked(policy), False, []
    for outcome, after_s in script:
        world.look(outcome, after_s)
        if outcome is Outcome.BLIND:
            continue
        wanted, count, seconds = (
            (Outcome.OK, policy.recover_after, policy.recover_for_s) if fires else (Outcome.FOUND, policy.fail_after, policy.fail_for_s)
        )
        streak = [*streak, world.now] if outcome is wanted else []
        if len(streak) >= count and (world.now - streak[0]).total_seconds() >= seconds:
            fires, streak = not fires, []
        assert (world.state() is AlertState.FIRING) is fires
        assert (world.state() is AlertState.PENDING) is (not fires and bool(streak))


@given(steps, policies)
def test_whoever_looks_when_asked_is_never_asked_in_vain(script: list[tuple[Outcome, int]], policy: AlertPolicy) -> None:
    """Where only time is missing, a look at the moment asked for settles it."""
    world = looked(policy)
    for outcome, after_s in script:
        again_s = world.look(outcome, after_s)
        if again_s and outcome is not Outcome.BLIND:
            world.look(outcome, again_s)
            assert world.state() is (AlertState.FIRING if outcome is Outcome.FOUND else AlertState.RESOLVED)


def test_nothing_changes_nothing_is_asked() -> None:
    assert next_look_s(Known(), Decision(), "http/auth", SLOWLY, T0) is None
