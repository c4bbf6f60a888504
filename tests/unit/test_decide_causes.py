"""Root causes: what a fallen service explains joins its incident, pages nobody, and is looked at anew when the cause is over."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from alerts.decide import Known, Policy, decide
from monitor.domain import (
    Alert,
    AlertPolicy,
    AlertState,
    CheckResult,
    Decision,
    EscalationStep,
    FindingKind,
    Incident,
    IncidentState,
    Observed,
    Outcome,
    Severity,
)

DB_DOWN = FindingKind("DatabaseDown", Severity.P1, "INC-002", "down", fells=True)
DOWN = FindingKind("ServiceDown", Severity.P1, "INC-001", "down", fells=True)
SLOW = FindingKind("ServiceSlow", Severity.P3, "INC-005", "slow")
NETWORK_DOWN = FindingKind("OwnNetworkDown", Severity.P2, None, "down", fells=True, doubts=True)
CHAIN = (EscalationStep(0, "on-call", ("page",)),)
DEPENDS_ON = {
    "postgres": {"postgres"},
    "auth": {"auth", "postgres"},
    "nginx": {"nginx", "auth", "postgres"},
    "net": {"net"},
    "far": {"far", "net"},
}
SEES = {"pg/postgres": DB_DOWN, "http/auth": DOWN, "http/nginx": DOWN, "slow/auth": SLOW, "slow/postgres": SLOW,
        "witness/net": NETWORK_DOWN, "http/far": DOWN}  # fmt: skip


class World:
    """The store in small: hands out what is known with the causes that the real one would look up."""

    def __init__(self, **depends_on: str) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.alerts: dict[str, Alert] = {}
        self.incidents: dict[str, Incident] = {}
        self.told: list[tuple[str, str]] = []
        self.linger = timedelta(0)
        self.depends_on = {check.replace("__", "/"): frozenset({other}) for check, other in depends_on.items()}

    def live(self) -> list[Alert]:
        return [alert for alert in self.alerts.values() if alert.state is not AlertState.RESOLVED]

    def echoes(self) -> list[Alert]:
        ended = [alert for alert in self.alerts.values() if alert.resolved_at is not None and alert.firing_since is not None]
        return [alert for alert in ended if alert.resolved_at >= self.now - self.linger] if self.linger else []

    def open(self) -> dict[str, Incident]:
        return {i.group: i for i in self.incidents.values() if i.state is not IncidentState.RESOLVED}

    def see(self, instance: str, *, bad: bool = True, times: int = 1, blind: bool = False) -> None:
        service = instance.split("/")[1]
        kind = SEES[instance]
        depends_on = self.depends_on.get(instance, frozenset())
        policy = Policy(AlertPolicy(2, 2, 2), dict.fromkeys(Severity, CHAIN), depends_on=depends_on)
        for _ in range(times):
            self.now += timedelta(seconds=15)
            outcome = Outcome.BLIND if blind else Outcome.FOUND if bad else Outcome.OK
            observed = Observed(findings=(kind(f"{kind.name} at {service}"),) if bad and not blind else ())
            result = CheckResult(
                instance, instance.split("/", maxsplit=1)[0], service, outcome, self.now, 0.01, observed, "no" if blind else None
            )
            suspects = self.live() + self.echoes()
            causes = tuple(a for a in suspects if (a.fells and a.service in DEPENDS_ON[service]) or a.instance in depends_on)
            self.take(decide(Known(tuple(self.live()), self.open(), causes), result, policy, self.now))

    def take(self, decided: Decision) -> None:
        self.alerts.update({alert.fingerprint: alert for alert in decided.alerts})
        self.incidents.update({incident.id: incident for incident in decided.incidents})
        self.told += [(intent.transition.value, self.incidents[intent.incident_id].group) for intent in decided.intents]

    def state_of(self, instance: str) -> AlertState:
        return next(alert.state for alert in self.alerts.values() if alert.instance == instance)


def test_what_a_fallen_database_explains_joins_its_incident_and_pages_nobody() -> None:
    world = World()
    world.see("pg/postgres", times=2)
    world.see("http/auth", times=3)
    world.see("slow/auth", times=3)
    assert world.told == [("triggered", "postgres/INC-002")]
    assert world.state_of("http/auth") is AlertState.FIRING
    assert {alert.group for alert in world.live()} == {"postgres/INC-002"}


def test_the_echo_of_what_is_over_tells_nobody_and_what_lasts_longer_does() -> None:
    world = World()
    world.linger = timedelta(minutes=5)
    world.see("pg/postgres", times=2)
    world.see("slow/auth", times=2)
    world.see("pg/postgres", bad=False, times=2)
    world.see("slow/auth", times=19)  # every 15 seconds
    assert world.told == [("triggered", "postgres/INC-002"), ("resolved", "postgres/INC-002")]
    world.see("slow/auth", times=2)
    assert world.told[2:] == [("triggered", "auth/INC-005")]


def test_a_suspicion_that_came_to_nothing_has_no_echo() -> None:
    world = World()
    world.linger = timedelta(minutes=5)
    world.see("pg/postgres")
    world.see("pg/postgres", bad=False)
    world.see("slow/auth", times=2)
    assert world.told == [("triggered", "auth/INC-005")]


def test_what_is_seen_through_a_dead_network_does_not_make_its_incident_worse() -> None:
    world = World()
    world.see("witness/net", times=2)
    world.see("http/far", times=3)
    assert world.told == [("triggered", "net/OwnNetworkDown")]
    assert [incident.severity for incident in world.open().values()] == [Severity.P2]
    world.see("witness/net", bad=False, times=2)
    world.see("http/far", times=2)  # the network is back, and this is still down: now it counts
    assert world.told[1:] == [("resolved", "net/OwnNetworkDown"), ("triggered", "far/INC-001")]


def test_a_symptom_waits_while_its_cause_is_only_suspected() -> None:
    world = World()
    world.see("pg/postgres")  # pending
    world.see("http/auth", times=3)
    assert world.told == []
    assert world.state_of("http/auth") is AlertState.PENDING
    world.see("pg/postgres")
    world.see("http/auth")
    assert world.told == [("triggered", "postgres/INC-002")]


def test_a_suspicion_that_was_wrong_holds_nothing_back() -> None:
    world = World()
    world.see("pg/postgres")
    world.see("http/auth", times=2)
    world.see("pg/postgres", bad=False)
    world.see("http/auth")
    assert world.told == [("triggered", "auth/INC-001")]


def test_when_the_cause_is_over_a_symptom_that_stays_opens_its_own_incident() -> None:
    world = World()
    world.see("pg/postgres", times=2)
    world.see("http/auth", times=2)
    world.see("pg/postgres", bad=False, times=2)
    assert world.told == [("triggered", "postgres/INC-002"), ("resolved", "postgres/INC-002")]
    assert world.state_of("http/auth") is AlertState.PENDING
    world.see("http/auth", times=2)
    assert world.told[2:] == [("triggered", "auth/INC-001")]


def test_when_the_cause_is_over_a_symptom_that_ends_is_never_told() -> None:
    world = World()
    world.see("pg/postgres", times=2)
    world.see("http/auth", times=2)
    world.see("pg/postgres", bad=False, times=2)
    world.see("http/auth", bad=False)
    assert world.told == [("triggered", "postgres/INC-002"), ("resolved", "postgres/INC-002")]
    assert world.live() == []


def test_an_incident_that_people_know_keeps_its_own_resolve() -> None:
    world = World()
    world.see("http/auth", times=2)
    world.see("pg/postgres", times=2)
    world.see("http/auth", bad=False, times=2)
    assert ("resolved", "auth/INC-001") in world.told


def test_a_chain_of_services_folds_into_the_one_root() -> None:
    world = World()
    world.see("pg/postgres", times=2)
    world.see("http/auth", times=2)
    world.see("http/nginx", times=2)
    assert world.told == [("triggered", "postgres/INC-002")]


def test_a_check_that_is_blind_because_its_service_is_down_is_no_second_page() -> None:
    world = World()
    world.see("pg/postgres", times=2)
    world.see("slow/postgres", blind=True, times=3)
    assert world.told == [("triggered", "postgres/INC-002")]


def test_a_check_may_depend_on_a_check() -> None:
    world = World(slow__auth="http/nginx")
    world.see("http/nginx", times=2)
    world.see("slow/auth", times=2)
    assert world.told == [("triggered", "nginx/INC-001")]


@given(st.lists(st.tuples(st.sampled_from(sorted(SEES)), st.sampled_from(["bad", "good", "blind"])), max_size=60))
def test_whatever_happens_every_trigger_gets_its_resolve_and_nothing_stays_silent(events: list[tuple[str, str]]) -> None:
    world = World()
    for instance, what in events:
        world.see(instance, bad=what == "bad", blind=what == "blind")
        for alert in world.live():
            if alert.state is AlertState.FIRING:
                assert alert.group in world.open(), "a firing alert that no open incident stands for"
        for incident in world.open().values():
            assert incident.told == ("page",)
            at_home = [a for a in world.live() if a.group == incident.group and a.home == a.group and a.state is AlertState.FIRING]
            assert at_home, "an incident that only holds what it once explained"
    for _ in range(2):
        for instance in SEES:
            world.see(instance, bad=False, times=2)
    assert world.open() == {}
    groups = {group for _, group in world.told}
    for group in groups:
        said = [what for what, where in world.told if where == group and what in {"triggered", "resolved"}]
        assert said == ["triggered", "resolved"] * (len(said) // 2)


def test_an_alert_written_before_causes_were_known_still_resolves() -> None:
    world = World()
    world.see("http/auth", times=2)
    world.alerts = {print_: alert._replace(fells=False) for print_, alert in world.alerts.items()}
    world.see("http/auth", bad=False, times=2)
    assert world.open() == {}
