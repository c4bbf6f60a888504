"""Every query of every dashboard, run by a real Prometheus over a real scrape of what the exposition shows."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from checks import BUILTINS as CHECKS
from dashboards import grafana
from monitor.domain import CheckResult, Metric, Observed, Outcome
from monitor.metrics import Exposition, names
from tests.integration.real_prometheus import Prometheus, Serving, wait_until

Ask = Callable[..., Any]
"""``ask("query", query="up")``: the ``data`` of Prometheus' answer."""

VALUES = {"phase": ("dns", "connect", "tls", "wait", "transfer"), "state": ("active", "idle"), "application": ("data-service", "(other)")}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A Prometheus that has scraped a full exposition at least twice."""
    exposition = full_exposition()
    with Serving(exposition) as target, Prometheus(tmp_path_factory.mktemp("prometheus"), target) as url:

        def ask(what: str, **params: str) -> Any:
            with urlopen(f"{url}/api/v1/{what}?{urlencode(params)}", timeout=10) as answer:
                return json.load(answer)["data"]

        def scraped_twice() -> bool:
            found = ask("query", query="count_over_time(monitor_build_info[1m])")["result"]
            return bool(found) and float(found[0]["value"][1]) >= 2

        wait_until(scraped_twice)
        yield ask


def full_exposition() -> Exposition:
    """Two services under every built-in check, with every metric the checks declare."""
    exposition = Exposition("0.1.0")
    exposition.seed_channels(["pagerduty", "slack"])
    for metric in (names.DEADMAN_BEAT, names.STORE_UP, names.CONFIG_RELOAD_SUCCESSFUL, names.CONFIG_RELOAD_SUCCESS_TIME):
        exposition.set(metric, 1)
    for metric in (names.OWN_STATEMENTS, names.OWN_BUSY):
        exposition.set(metric, 1, service="postgres")
    exposition.set(names.OWN_CONNECTS, 1, service="postgres", kind="held")
    for metric in (names.UPKEEP_LAST_SUCCESS, names.UPKEEP_DRIFT):
        exposition.set(metric, 1, channel="pagerduty")
    exposition.add(names.UPKEEP, channel="pagerduty", outcome="ok")
    exposition.add(names.UPKEEP_REPAIRS, channel="pagerduty", repair="left")
    for check in CHECKS:
        for service in ("auth", "data"):
            samples = [metric(1, **labels) for metric in check.metrics for labels in label_sets(metric)]
            exposition.record(
                CheckResult(
                    instance=f"{check.name}/{service}",
                    check=check.name,
                    service=service,
                    outcome=Outcome.OK,
                    started_at=datetime(2026, 11, 23, tzinfo=UTC),
                    duration_s=0.01,
                    observed=Observed(tuple(samples)),
                )
            )
    return exposition


def label_sets(metric: Metric) -> list[dict[str, str]]:
    sets: list[dict[str, str]] = [{}]
    for label in metric.labels:
        sets = [{**known, label: value} for known in sets for value in VALUES.get(label, ("a", "b"))]
    return sets


# --- what is wrong with a dashboard's queries ------------------------------------------------------------------------


def problems(dashboard: Mapping[str, Any], ask: Ask) -> list[str]:
    """Every query and variable that finds nothing, and every legend that names a label the result does not have."""
    found = []
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found += variable_problems(variable, ask)
    for panel in panels(dashboard):
        for target in panel["targets"]:
            place = f"{panel['title']} {target['refId']}"
            series = ask("query", query=filled(target["expr"]))["result"]
            if not series:
                found.append(f"{place}: no series: {target['expr']}")
            for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]):
                if any(label not in one["metric"] for one in series):
                    found.append(f"{place}: no label {label}")
    return found


def variable_problems(variable: Mapping[str, Any], ask: Ask) -> list[str]:
    call = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    if call is None:
        return [f"variable {variable['name']}: not understood: {variable['query']}"]
    values = {one["metric"].get(call[2]) for one in ask("query", query=filled(call[1]))["result"]} - {None}
    return [] if values else [f"variable {variable['name']}: no values"]


def filled(expression: str) -> str:
    for name, value in {"$__rate_interval": "1m", "$job": ".+", "$service": ".+"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable was not filled in: {expression}"
    return expression


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return grafana.build(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def built(written: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Every dashboard as it was written."""
    return [json.loads(path.read_text()) for path in written if path.suffix == ".json"]


def test_every_query_and_variable_finds_series(built: list[dict[str, Any]], ask: Ask) -> None:
    assert {dashboard["uid"]: problems(dashboard, ask) for dashboard in built} == {dashboard["uid"]: [] for dashboard in built}


def test_planted_mistakes_are_found(built: list[dict[str, Any]], ask: Ask) -> None:
    wrong = json.loads(json.dumps(built[0]))
    first, second, *_ = panels(wrong)
    first["targets"][0]["expr"] = first["targets"][0]["expr"].replace("monitor_http_up", "monitor_http_upp")
    second["targets"][0]["legendFormat"] = "{{severe}}"
    variable = next(one for one in wrong["templating"]["list"] if one["name"] == "service")
    variable["query"]["query"] = variable["query"]["query"].replace("check_outcome", "check_outcomes")
    found = problems(wrong, ask)
    assert len(found) == 3
    assert "no series" in found[1]
    assert "no label severe" in found[2]
    assert found[0] == "variable service: no values"


def test_every_declared_metric_reaches_prometheus(ask: Ask) -> None:
    known = set(ask("label/__name__/values"))
    declared = {metric.name for metric in (*names.OWN, *names.PER_CHECK, *(metric for check in CHECKS for metric in check.metrics))}
    assert declared <= known


# --- the rules of Grafana's dashboard-linter, and ours ---------------------------------------------------------------


def test_templates_and_frame(built: list[dict[str, Any]]) -> None:
    assert len({dashboard["uid"] for dashboard in built}) == len(built)
    for dashboard in built:
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert dashboard["editable"] is False
        assert re.fullmatch(r"platform-monitor-[a-z-]{1,23}", dashboard["uid"])
        assert dashboard["title"]
        assert dashboard["description"]
        assert variables["datasource"]["type"] == "datasource"
        assert variables["datasource"]["query"] == "prometheus"
        assert next(iter(variables)) == "datasource"
        for name, variable in variables.items():
            assert variable["label"], name
            if variable["type"] == "query":
                assert variable["datasource"]["uid"] == "${datasource}"
                assert variable["refresh"] == 2, "follows the time range"
                assert variable["multi"] is True
                assert variable["allValue"] == ".+"


def test_every_panel_is_described_and_complete(built: list[dict[str, Any]]) -> None:
    for dashboard in built:
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        assert 0 not in ids
        titles = [panel["title"] for panel in panels(dashboard)]
        assert len(set(titles)) == len(titles)
        for panel in panels(dashboard):
            place = panel["title"]
            assert len(panel["description"]) > 10, place
            assert panel["description"].endswith("."), place
            assert panel["fieldConfig"]["defaults"]["unit"], place
            assert panel["options"], place
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, place
            assert panel["targets"], place


def test_every_target(built: list[dict[str, Any]]) -> None:
    for dashboard in built:
        for panel in panels(dashboard):
            refs = [target["refId"] for target in panel["targets"]]
            assert all(refs), panel["title"]
            assert len(set(refs)) == len(refs), panel["title"]
            for target in panel["targets"]:
                expression, place = target["expr"], f"{panel['title']}: {target['expr']}"
                assert target["datasource"]["uid"] == "${datasource}", place
                assert target["legendFormat"], place
                selectors = re.findall(r"monitor_\w+(\{[^}]*\})?", expression)
                assert selectors, place
                assert all('job=~"$job"' in selector for selector in selectors), place
                for counter in re.findall(r"(\w*\(?)monitor_\w+_total\b", expression):
                    assert counter in {"rate(", "increase("}, place
                    assert re.match(r"sum( by \([\w, ]+\))? ?\((rate|increase)\(", expression), place
                assert all(window in {"$__rate_interval", "1h"} for window in re.findall(r"\[([^\]]+)\]", expression)), place


def test_panels_lie_on_the_grid_without_overlap(built: list[dict[str, Any]]) -> None:
    for dashboard in built:
        cells: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            position = panel["gridPos"]
            assert position["x"] + position["w"] <= 24
            mine = {(position["x"] + x, position["y"] + y) for x in range(position["w"]) for y in range(position["h"])}
            assert not cells & mine, panel["title"]
            cells |= mine


def test_writing_twice_writes_the_same(written: tuple[Path, ...], tmp_path: Path) -> None:
    again = grafana.build(tmp_path / "new" / "folder")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]
    kinds = {path.relative_to(tmp_path / "new" / "folder").parts[:-1] for path in again}
    assert kinds == {("dashboards",), ("provisioning", "dashboards"), ("provisioning", "datasources")}
