"""The exposition: what is shown, what vanishes, what is capped, and that no text breaks the format."""

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from checks import BUILTINS
from monitor.domain import CheckResult, Metric, Observed, Outcome, Sample
from monitor.metrics import Exposition, names
from monitor.metrics.docs import reference
from tests.conftest import tool

AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
LATENCY = Metric("monitor_http_phase_seconds", "Time spent in a phase.", ("phase",))
USED = Metric("monitor_pg_connections", 'Connections, by "state"\nand \\ application.', ("state",))


def result(*samples: Sample, service: str = "auth", outcome: Outcome = Outcome.OK, name: str = "health") -> CheckResult:
    return CheckResult(
        instance=f"{name}/{service}",
        check="http_health",
        service=service,
        outcome=outcome,
        started_at=AT,
        duration_s=0.25,
        observed=Observed(samples),
    )


def series(exposition: Exposition) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every series of the page, read by the reference parser; fails on one given twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(exposition.render().decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"given twice: {key}"
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_a_result_becomes_series_with_its_subject_first() -> None:
    exposition = Exposition("1.2.3")
    exposition.record(result(LATENCY(0.5, phase="dns"), LATENCY(1.5, phase="wait")))
    text = exposition.render().decode()
    assert 'monitor_http_phase_seconds{check="health",service="auth",phase="dns"} 0.5\n' in text
    found = series(exposition)
    assert found[key("monitor_check_outcome", check="health", service="auth", outcome="ok")] == 1
    assert found[key("monitor_check_outcome", check="health", service="auth", outcome="blind")] == 0
    assert found[key("monitor_check_duration_seconds", check="health", service="auth")] == 0.25
    assert found[key("monitor_check_last_run_timestamp_seconds", check="health", service="auth")] == AT.timestamp()
    assert found[key("monitor_check_runs_total", check="health", service="auth", outcome="ok")] == 1
    assert any(name == "monitor_build_info" and ("version", "1.2.3") in labels for name, labels in found)


SOME_SAMPLES = st.lists(
    st.builds(LATENCY, st.integers(0, 2), phase=st.sampled_from(["dns", "wait"]))
    | st.builds(USED, st.integers(0, 2), state=st.sampled_from(["idle", "active"])),
    max_size=6,
).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(SOME_SAMPLES, st.sampled_from(Outcome), st.booleans()), min_size=1, max_size=8))
def test_what_is_shown_is_the_latest_result_whatever_came_before(runs: list[tuple[tuple[Sample, ...], Outcome, bool]]) -> None:
    exposition = Exposition("1")
    for samples, outcome, is_scraped in runs:
        exposition.record(result(*samples, outcome=outcome))
        if is_scraped:
            exposition.render()
    alone = Exposition("1")
    alone.record(result(*samples, outcome=outcome))
    counted = ("monitor_check_runs_total", "monitor_series_dropped_total")
    shown, wanted = ({name: value for name, value in series(one).items() if name[0] not in counted} for one in (exposition, alone))
    assert shown == wanted
    runs_by_outcome = {of: series(exposition)[key(counted[0], check="health", service="auth", outcome=of)] for of in Outcome}
    assert runs_by_outcome == {of: sum(of is outcome for _, outcome, _ in runs) for of in Outcome}


def test_each_family_stands_once_with_help_and_type() -> None:
    exposition = Exposition("1")
    for service in ("auth", "data"):
        exposition.record(result(LATENCY(1, phase="dns"), USED(2, state="idle"), service=service))
    text = exposition.render().decode()
    for metric in (LATENCY, USED, *names.PER_CHECK):
        assert text.count(f"# HELP {metric.name} ") == 1
        assert text.count(f"# TYPE {metric.name} {metric.kind}\n") == 1
    by_name = {family.name: family for family in text_string_to_metric_families(text)}
    assert by_name["monitor_pg_connections"].documentation == USED.help
    assert len(by_name["monitor_pg_connections"].samples) == 2


def test_samples_of_a_gone_subject_vanish() -> None:
    exposition = Exposition("1")
    exposition.record(result(LATENCY(1, phase="dns"), USED(2, state="idle")))
    exposition.render()
    exposition.record(result(LATENCY(3, phase="tls")))
    found = series(exposition)
    assert key("monitor_http_phase_seconds", check="health", service="auth", phase="tls") in found
    assert key("monitor_http_phase_seconds", check="health", service="auth", phase="dns") not in found
    assert "monitor_pg_connections" not in exposition.render().decode().replace('metric="monitor_pg_connections"', "")
    exposition.forget("health/auth")
    assert not any("service" in dict(labels) for _, labels in series(exposition))


def test_a_blind_run_shows_no_old_values_and_counts_runs() -> None:
    exposition = Exposition("1")
    exposition.record(result(LATENCY(1, phase="dns")))
    exposition.record(result(outcome=Outcome.BLIND))
    found = series(exposition)
    assert key("monitor_http_phase_seconds", check="health", service="auth", phase="dns") not in found
    assert found[key("monitor_check_outcome", check="health", service="auth", outcome="blind")] == 1
    assert found[key("monitor_check_outcome", check="health", service="auth", outcome="ok")] == 0
    assert found[key("monitor_check_runs_total", check="health", service="auth", outcome="ok")] == 1
    assert found[key("monitor_check_runs_total", check="health", service="auth", outcome="blind")] == 1


def test_a_scrape_without_news_is_the_same_and_one_with_news_is_not() -> None:
    exposition = Exposition("1")
    exposition.record(result(LATENCY(1, phase="dns")))
    first = exposition.render()
    assert exposition.render() == first
    exposition.set(names.STORE_UP, 1)
    assert exposition.render() != first


def test_a_large_page_comes_in_pieces_and_stays_whole_when_results_come_and_go_between_them() -> None:
    exposition = Exposition("1")
    services = [f"s{number:05}" for number in range(6_000)]
    for service in services:
        exposition.record(result(LATENCY(1, phase="dns"), service=service))
    pages = exposition.pages()
    pieces = [next(pages)]
    for service in services[::2]:
        exposition.forget(f"health/{service}")
    for service in services[1::2]:
        exposition.record(result(LATENCY(2, phase="tls"), service=service))
    pieces += pages
    assert len(pieces) > 3
    assert all(piece.endswith(b"\n") for piece in pieces)
    page = b"".join(pieces).decode()
    lines = [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines)
    assert page.count("# TYPE monitor_http_phase_seconds gauge\n") == 1
    assert len(re.findall(r'^monitor_http_phase_seconds\{check="health",service="s\d+",phase="tls"\} 2\.0$', page, re.MULTILINE)) == 3_000
    assert exposition.render().decode().count("\nmonitor_http_phase_seconds{") == 3_000


def test_a_family_is_capped_and_the_rest_is_counted() -> None:
    exposition = Exposition("1", series_per_family=3)
    flood = result(*(USED(n, state=f"s{n}") for n in range(10)))
    exposition.record(flood)
    exposition.record(result(USED(1, state="x"), service="data"))
    found = series(exposition)
    assert sum(name == "monitor_pg_connections" for name, _ in found) == 3 + 1  # each instance has its own share
    assert found[key("monitor_series_dropped_total", metric="monitor_pg_connections")] == 7
    assert key("monitor_pg_connections", check="health", service="data", state="x") in found


def test_two_checks_that_measure_the_same_stand_side_by_side() -> None:
    exposition = Exposition("1")
    exposition.record(result(LATENCY(1, phase="dns"), name="health"))
    exposition.record(result(LATENCY(2, phase="dns"), LATENCY(3, phase="dns"), name="health-again"))
    found = series(exposition)
    assert found[key("monitor_http_phase_seconds", check="health", service="auth", phase="dns")] == 1
    assert found[key("monitor_http_phase_seconds", check="health-again", service="auth", phase="dns")] == 3


def test_what_cannot_be_written_is_left_out_and_counted() -> None:
    exposition = Exposition("1")
    spaced = Metric("monitor bad", "x")
    taken = Metric("monitor_http_phase_seconds", "Another meaning.", ("other",))
    reserved = Metric("monitor_twice", "Names the label that is added.", ("service",))
    exposition.record(
        result(LATENCY(1, phase="dns"), spaced(1), taken(1, other="a"), reserved(1, service="b"), Sample(USED, ("a", "too many"), 1))
    )
    found = series(exposition)
    assert key("monitor_http_phase_seconds", check="health", service="auth", phase="dns") in found
    for name in ("monitor bad", "monitor_http_phase_seconds", "monitor_twice", "monitor_pg_connections"):
        assert found[key("monitor_series_dropped_total", metric=name)] == 1


def test_rare_counters_start_at_zero() -> None:
    exposition = Exposition("1")
    exposition.seed_channels(["pagerduty"])
    exposition.add(names.NOTIFICATIONS, channel="pagerduty", outcome="sent")
    exposition.seed_channels(["pagerduty"])
    found = series(exposition)
    assert found[key("monitor_notifications_total", channel="pagerduty", outcome="dead")] == 0
    assert found[key("monitor_notifications_total", channel="pagerduty", outcome="sent")] == 1
    assert found[key("monitor_outbox_dead", channel="pagerduty")] == 0
    assert found[key("monitor_incidents", severity="P1", state="open")] == 0
    exposition.clear(names.OUTBOX_DEAD)
    assert key("monitor_outbox_dead", channel="pagerduty") not in series(exposition)


def test_special_numbers() -> None:
    exposition = Exposition("1")
    exposition.record(result(*(USED(float(value), state=value) for value in ("nan", "inf", "-inf", "1e-300"))))
    text = exposition.render().decode()
    for state, written in (("nan", "NaN"), ("inf", "+Inf"), ("-inf", "-Inf"), ("1e-300", "1e-300")):
        assert f'state="{state}"}} {written}\n' in text


HOSTILE = st.text(st.characters(), max_size=20) | st.sampled_from(['"} 1\nevil 1\n', "\\", '\\"', "\n", "\r\n", "\u2028", "#", "{}"])


@given(service=HOSTILE, label=HOSTILE, help_text=HOSTILE, name=HOSTILE)
def test_hostile_text_never_adds_or_breaks_a_line(service: str, label: str, help_text: str, name: str) -> None:
    metric = Metric("monitor_hostile", help_text, ("label",))
    hostile = result(metric(1, label=label), service=service, name=name)
    tame = Exposition("1")
    tame.record(result(Metric("monitor_hostile", "x", ("label",))(1, label="x"), service="x", name="x"))
    exposition = Exposition(label)
    exposition.record(hostile)
    assert {name for name, _ in series(exposition)} == {name for name, _ in series(tame)}
    assert exposition.render().count(b"\n") == tame.render().count(b"\n")
    assert len(exposition.render().decode().splitlines()) == exposition.render().count(b"\n")


@example(text="100 %s %% %(x)s")
@given(text=st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), max_size=30))
def test_printable_label_values_survive_the_round_trip(text: str) -> None:
    exposition = Exposition("1")
    exposition.record(result(USED(1, state=text)))
    assert key("monitor_pg_connections", check="health", service="auth", state=text) in series(exposition)


def test_instances_are_written_side_by_side_whatever_their_texts_and_numbers() -> None:
    metric = Metric("monitor_share", "100 %s of %(all)s", ("part",))
    exposition = Exposition("1")
    exposition.record(result(metric(float("nan"), part="50 %"), service="a%r"))
    for number in (2, 3):
        exposition.record(result(metric(number, part="%%"), service="b%"))
        lines = exposition.render().decode().splitlines()
        assert "# HELP monitor_share 100 %s of %(all)s" in lines
        assert 'monitor_share{check="health",service="a%r",part="50 %"} NaN' in lines
        assert f'monitor_share{{check="health",service="b%",part="%%"}} {number}.0' in lines


def test_promtool_finds_nothing_to_complain_about() -> None:
    exposition = Exposition("1")
    exposition.seed_channels(["pagerduty", "slack"])
    exposition.record(result(LATENCY(1, phase='q"uo\\te\n'), USED(float("nan"), state="idle")))
    for metric in (names.DEADMAN_BEAT, names.STORE_UP, names.CONFIG_RELOAD_SUCCESSFUL, names.CONFIG_RELOAD_SUCCESS_TIME):
        exposition.set(metric, 1)
    exposition.set(names.OWN_CONNECTS, 1, service="db", kind="held")
    for metric in (names.UPKEEP_LAST_SUCCESS, names.UPKEEP_DRIFT):
        exposition.set(metric, 1, channel="pagerduty")
    exposition.add(names.UPKEEP, channel="pagerduty", outcome="ok")
    exposition.add(names.UPKEEP_REPAIRS, channel="pagerduty", repair="left")
    for metric in (names.OWN_STATEMENTS, names.OWN_BUSY):
        exposition.set(metric, 1, service="db")
    for metric in names.OWN:
        assert f"# TYPE {metric.name} " in exposition.render().decode()
    told = subprocess.run([tool("promtool"), "check", "metrics"], input=exposition.render(), capture_output=True, timeout=30, check=False)
    assert (told.returncode, told.stdout + told.stderr) == (0, b"")


def test_the_reference_is_not_stale() -> None:
    written = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert written.read_text() == reference(), "run: python -m monitor.metrics.docs > docs/metrics.md"


def test_every_declared_metric_keeps_the_conventions() -> None:
    declared = [*names.OWN, *names.PER_CHECK, *(metric for check in BUILTINS for metric in check.metrics)]
    assert len({metric.name for metric in declared}) == len(declared)
    for metric in declared:
        assert metric.name.startswith("monitor_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
        assert not set(metric.labels) & {"id", "url", "message", "instance", "job"}, metric.name
        assert f"`{metric.name}`" in reference()
