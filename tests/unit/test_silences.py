"""What "Silence 1 h" covers: exactly the group of the alerts that hold the incident open."""

from datetime import UTC, datetime

import pytest

from alerts.matchers import matches
from alerts.muting import match_labels
from alerts.posted import PostedAlert, PostedPolicy, accept
from alerts.silences import covering
from monitor.domain import Alert

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DEFAULT = PostedPolicy()


def fires(policy: PostedPolicy = DEFAULT, **labels: str) -> Alert:
    return accept(PostedAlert(labels), policy, (), T0)


@pytest.mark.parametrize(
    ("pressed", "others"),
    [
        ({"alertname": "Down", "job": "staging"}, [{"alertname": "Down", "job": "prod"}, {"alertname": "Down", "instance": "staging-1"}]),
        ({"alertname": "Down", "service": "web", "job": "a"}, [{"alertname": "Down", "job": "a"}, {"alertname": "Slow", "service": "web"}]),
        (
            {"alertname": "Down", "instance": "a"},
            [{"alertname": "Down", "instance": "b"}, {"alertname": "Down", "job": "x", "instance": "a"}],
        ),
        ({"alertname": "Down"}, [{"alertname": "Down", "service": "web"}, {"alertname": "Down", "job": "a"}]),
        ({"disk": "a"}, [{"disk": "b"}, {"alertname": "Down"}]),
    ],
)
def test_a_silence_covers_the_group_and_nothing_else(pressed: dict[str, str], others: list[dict[str, str]]) -> None:
    (matchers,) = covering([fires(**pressed)], DEFAULT)
    assert matches(matchers, match_labels(fires(**pressed)))
    assert matches(matchers, match_labels(fires(**pressed, zone="later")))
    assert not any(matches(matchers, match_labels(fires(**other))) for other in others)


def test_a_silence_goes_by_the_labels_that_make_the_groups() -> None:
    by = PostedPolicy(group_by=("cluster", "severity"))
    (matchers,) = covering([fires(by, alertname="Down", cluster="x"), fires(by, alertname="Slow", cluster="x")], by)
    assert {(one.name, one.value) for one in matchers} == {("cluster", "x"), ("severity", "P3")}
    by = PostedPolicy(group_by=("service", "cluster"))
    (matchers,) = covering([fires(by, alertname="Down", cluster="x", job="a")], by)
    assert matches(matchers, match_labels(fires(by, cluster="x", job="b")))
    (matchers,) = covering([fires(by, alertname="Down")], by)
    assert not matches(matchers, match_labels(fires(by, alertname="Slow")))


def test_labels_that_make_one_group_in_different_ways_are_silenced_each() -> None:
    one, two = fires(alertname="Down", service="web"), fires(alertname="Down", job="web")
    assert one.group == two.group
    covered = covering([one, two], DEFAULT)
    for alert in (one, two):
        assert any(matches(matchers, match_labels(alert)) for matchers in covered)
    assert not any(matches(matchers, match_labels(fires(alertname="Down", job="db"))) for matchers in covered)
