"""The metrics page against the real reader, and against the cost of the usual writer."""

import json
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from monitor.domain import CheckResult, Metric, Observed, Outcome
from monitor.metrics import Exposition
from tests.integration.real_prometheus import Prometheus, Serving, wait_until

HOSTILE = Metric("monitor_hostile", 'Help with "quotes", a \\ and a\nsecond line.', ("application",))
NAMES = ('"} 1\nevil 1\n', "back\\slash", "Zoë 日本 🦉", "{}#", "\\n", "a" * 3000)


def result(service: str, applications: tuple[str, ...], value: float = 1) -> CheckResult:
    return CheckResult(
        instance=f"connections/{service}",
        check="connections",
        service=service,
        outcome=Outcome.OK,
        started_at=datetime(2026, 11, 23, tzinfo=UTC),
        duration_s=0.01,
        observed=Observed(tuple(HOSTILE(value, application=name) for name in applications)),
    )


def test_prometheus_reads_hostile_labels_as_they_are_and_forgets_the_gone(tmp_path: Path) -> None:
    exposition = Exposition("0.1.0")
    exposition.record(result("database", NAMES))
    with Serving(exposition) as target, Prometheus(tmp_path, target) as url:

        def applications() -> set[str]:
            with urlopen(f"{url}/api/v1/query?{urlencode({'query': 'monitor_hostile'})}", timeout=10) as answer:
                return {one["metric"]["application"] for one in json.load(answer)["data"]["result"]}

        wait_until(lambda: applications() == set(NAMES))
        with urlopen(f"{url}/api/v1/label/__name__/values", timeout=10) as answer:
            assert "evil" not in json.load(answer)["data"]
        exposition.record(result("database", ("psql",)))
        wait_until(lambda: applications() == {"psql"})
