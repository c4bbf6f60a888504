"""``depends_on``, severity rules and business hours in the file: resolved, and refused with their place when they cannot be."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from monitor.domain import Severity
from monitor.errors import ConfigError
from tests.support.configured import MAIL, load

STEP = '[{after = "0s", who = "on-call", channels = ["mail"]}]'
BASE = f"""
[services.db]
url = "http://127.0.0.1:1"
[services.auth]
url = "http://127.0.0.1:2"
depends_on = ["db"]
[services.nginx]
url = "http://127.0.0.1:3"
depends_on = ["auth"]
[checks.http_health]
services = ["db", "auth", "nginx"]
[checks.slow]
check = "http_health"
services = ["auth"]
depends_on = ["http_health"]
{MAIL}[escalation]
P1 = {STEP}
P2 = {STEP}
P3 = {STEP}
P4 = {STEP}
"""


def problem(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    (only,) = caught.value.problems
    return str(only)


def test_a_service_knows_all_it_depends_on_near_and_far(tmp_path: Path) -> None:
    upstream = {i.service.name: i.upstream for i in load(tmp_path, BASE).instances if i.name == "http_health"}
    assert upstream == {"db": {"db"}, "auth": {"auth", "db"}, "nginx": {"nginx", "auth", "db"}}


def test_a_check_depends_on_the_one_of_the_same_service_or_on_all(tmp_path: Path) -> None:
    (slow,) = (i for i in load(tmp_path, BASE).instances if i.name == "slow")
    assert slow.depends_on == {"http_health/auth"}
    far = load(tmp_path, BASE.replace('depends_on = ["http_health"]', 'depends_on = ["http_health/db"]'))
    assert next(i for i in far.instances if i.name == "slow").depends_on == {"http_health/db"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('depends_on = ["db"]', 'depends_on = ["dbb"]', 'services.auth.depends_on[0]: there is no service "dbb" (did you mean "db"?)'),
        ('depends_on = ["db"]', 'depends_on = ["auth"]', "a service cannot depend on itself"),
        ('depends_on = ["http_health"]', 'depends_on = ["http_helth"]', 'there is no check "http_helth" (did you mean "http_health"?)'),
        ('depends_on = ["http_health"]', 'depends_on = ["slow"]', "a check cannot depend on itself"),
        ('depends_on = ["http_health"]', 'severity = [{severity = "P1", finding = "ServiceDwn"}]', 'did you mean "ServiceDown"?'),
        ('depends_on = ["http_health"]', 'severity = [{severity = "P7"}]', "checks.slow.severity[0].severity"),
        (
            "[services.db]",
            '[business_hours]\nstart = "17:00"\nend = "09:00"\n[services.db]',
            "business_hours.end: must be later than start",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in problem(tmp_path, BASE.replace(old, new, 1))


def test_circles_are_refused(tmp_path: Path) -> None:
    text = BASE.replace("[services.db]", '[services.db]\ndepends_on = ["nginx"]')
    with pytest.raises(ConfigError, match="in turn"):
        load(tmp_path, text)
    text = BASE.replace("[checks.http_health]", '[checks.http_health]\ndepends_on = ["slow"]')
    with pytest.raises(ConfigError, match="in a circle"):
        load(tmp_path, text)


def test_severity_rules_keep_their_order_and_their_hours(tmp_path: Path) -> None:
    rules = 'severity = [{severity = "P1", at_least = 5, hours = "business"}, {severity = "P4", finding = "ServiceSlow", hours = "off"}]'
    (slow,) = (i for i in load(tmp_path, BASE.replace('depends_on = ["http_health"]', rules)).instances if i.name == "slow")
    first, second = slow.severities
    assert (first.severity, first.at_least, first.outside) == (Severity.P1, 5.0, False)
    assert (second.severity, second.finding, second.outside) == (Severity.P4, "ServiceSlow", True)
    assert first.hours is not None
    assert str(first.hours.timezone) == "UTC"


def test_many_services_are_read_in_a_moment(tmp_path: Path) -> None:
    many = "".join(f'[services.s{n}]\nurl = "http://127.0.0.1:{n + 10}"\ndepends_on = ["db"]\n' for n in range(3000))
    assert len(load(tmp_path, BASE + many).services) == 3003


NETWORK = f"""
[monitor]
network = "internet"
[services.internet]
depends_on = ["router"]
[services.router]
url = "https://router.example.com"
[services.far]
url = "https://shop.example.com"
[services.far_db]
dsn = {{ env = "FAR_DSN" }}
[services.replicas]
instances = ["http://127.0.0.1:1", "http://10.0.0.7:1"]
[services.near]
url = "http://localhost:1"
[services.near_v6]
url = "http://[::1]:1"
[services.near_db]
dsn = {{ env = "NEAR_DSN" }}
[checks.tcp]
services = ["internet", "router", "far", "far_db", "replicas", "near", "near_v6", "near_db"]
address = "127.0.0.1:1"
{MAIL}[escalation]
P1 = {STEP}
P2 = {STEP}
P3 = {STEP}
P4 = {STEP}
"""


DSNS = {"FAR_DSN": "host=db.example.com dbname=shop", "NEAR_DSN": "host=/run/postgresql dbname=shop"}


def test_what_lies_beyond_this_machine_depends_on_the_network(tmp_path: Path) -> None:
    instances = load(tmp_path, NETWORK, DSNS).instances
    assert {i.service.name for i in instances if "internet" in i.upstream} == {"internet", "far", "far_db", "replicas"}


def test_a_network_that_is_no_service_is_refused(tmp_path: Path) -> None:
    text = NETWORK.replace('network = "internet"', 'network = "internett"')
    assert 'monitor.network: there is no service "internett" (did you mean "internet"?)' in problem(tmp_path, text, DSNS)
