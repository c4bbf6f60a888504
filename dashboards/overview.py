"""The one Grafana dashboard so far: how the platform does, who waits to be told, and whether the monitor itself can be trusted."""

from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from dashboards.panels import DATASOURCE, GREEN, ORANGE, PURPLE, RED, Panel, figures, lines, number_panels, states

UID = "platform-monitor-overview"

_OURS = 'job=~"$job"'
_CHOSEN = 'job=~"$job", service=~"$service"'


def overview() -> models.Dashboard:
    """Build the dashboard. It carries no data source of its own: a variable picks one."""
    dashboard = (
        builders.Dashboard("Platform overview")
        .uid(UID)
        .description("Services, database, jobs and incidents of the platform, and the health of the monitor that watches them.")
        .tags(["platform-monitor"])
        .readonly()
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
    )
    for variable in _variables():
        dashboard.with_variable(variable)
    rows = (("Platform", _platform()), ("Database and jobs", _database()), ("Delivery", _delivery()), ("The monitor itself", _self()))
    for row, panels in rows:
        dashboard.with_row(builders.Row(row))
        for panel in panels:
            dashboard.with_panel(panel)
    return number_panels(dashboard.build())


def _variables() -> Iterator[builders.DatasourceVariable | builders.QueryVariable]:
    yield builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield _choice("job", "Job", "label_values(monitor_build_info, job)")
    yield _choice("service", "Service", f"label_values(monitor_check_outcome{{{_OURS}}}, service)")


def _choice(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(text="All", value="$__all"))
    )


def _platform() -> Iterator[Panel]:
    yield figures(
        "Services",
        "Whether each service answers its health address as expected. A service that is missing here could not be looked at.",
        "short",
        [(f"min by (service) (monitor_http_up{{{_CHOSEN}}})", "{{service}}")],
        width=12,
        steps=((None, RED), (1, GREEN)),
        words={"0": ("down", RED), "1": ("up", GREEN)},
        none="could not look",
    )
    yield figures(
        "Open incidents",
        "Incidents that are not resolved, acknowledged or not, by severity.",
        "short",
        [(f'sum by (severity) (monitor_incidents{{{_OURS}, state=~"open|acked"}})', "{{severity}}")],
        width=8,
        steps=((None, GREEN), (1, RED)),
        none="no data",
    )
    yield figures(
        "Checks that cannot look",
        "A check that cannot look proves nothing: what it watches may be broken.",
        "short",
        [(f'sum(monitor_check_outcome{{{_CHOSEN}, outcome="blind"}})', "blind")],
        width=4,
        steps=((None, GREEN), (1, PURPLE)),
        none="no data",
    )
    yield states(
        "What the checks saw",
        "Latest outcome of every check: ok, found something, or could not look. A gap means that the check did not run.",
        [
            (
                f'max by (check, service) (monitor_check_outcome{{{_CHOSEN}, outcome="found"}})'
                f' + 2 * max by (check, service) (monitor_check_outcome{{{_CHOSEN}, outcome="blind"}})',
                "{{service}} {{check}}",
            )
        ],
        width=12,
        words={"0": ("ok", GREEN), "1": ("found", RED), "2": ("could not look", PURPLE)},
    )
    yield lines(
        "Latency by phase",
        "Where the time of a health probe goes, averaged over the chosen services: name resolution, connecting, TLS, waiting, transfer.",
        "s",
        [(f"avg by (phase) (monitor_http_duration_seconds{{{_CHOSEN}}})", "{{phase}}")],
        width=6,
        stacked=True,
    )
    yield lines(
        "Latency by service",
        "Whole time of a health probe. From 2 s on the runbook calls it high (INC-005).",
        "s",
        [(f"sum by (service) (monitor_http_duration_seconds{{{_CHOSEN}}})", "{{service}}")],
        width=6,
        steps=((None, GREEN), (2, ORANGE)),
    )


def _database() -> Iterator[Panel]:
    yield lines(
        "Connections, share of usable",
        "Client connections of all the slots that applications can use. From 80 % on the daily checklist fails (INC-002).",
        "percentunit",
        [(f"max by (service) (monitor_pg_connections_used_ratio{{{_CHOSEN}}})", "{{service}}")],
        width=6,
        most=1,
        steps=((None, GREEN), (0.8, ORANGE), (0.95, RED)),
    )
    yield lines(
        "Connections by state",
        "Client connections by state, and the number of usable slots they must stay below.",
        "short",
        [
            (f"sum by (service, state) (monitor_pg_connections{{{_CHOSEN}}})", "{{service}} {{state}}"),
            (f"max by (service) (monitor_pg_connections_usable{{{_CHOSEN}}})", "{{service}} usable"),
        ],
        width=6,
    )
    yield lines(
        "Connections by application",
        "Who holds the connections: the biggest by application_name.",
        "short",
        [(f"sum by (service, application) (monitor_pg_connections_by_application{{{_CHOSEN}}})", "{{application}} ({{service}})")],
        width=6,
        stacked=True,
    )
    yield lines(
        "Fresh login",
        "How long a new connection to the database takes. Proof that an application still gets in.",
        "s",
        [(f"max by (service) (monitor_pg_canary_duration_seconds{{{_CHOSEN}}})", "{{service}}")],
        width=6,
    )
    yield lines(
        "Jobs",
        "Jobs in processing, and those of them that show no sign of life (INC-003).",
        "short",
        [
            (f"sum by (service) (monitor_jobs_processing{{{_CHOSEN}}})", "{{service}} in processing"),
            (f"sum by (service) (monitor_jobs_stuck{{{_CHOSEN}}})", "{{service}} stuck"),
        ],
        width=12,
    )
    yield lines(
        "Oldest sign of life",
        "Longest time since a job in processing last showed that it lives. From 30 min on the job counts as stuck.",
        "s",
        [(f"max by (service) (monitor_jobs_oldest_heartbeat_seconds{{{_CHOSEN}}})", "{{service}}")],
        width=12,
        steps=((None, GREEN), (1800, RED)),
    )


def _delivery() -> Iterator[Panel]:
    yield figures(
        "Given up",
        "Notifications that could not be delivered and will not be tried again: somebody was not told.",
        "short",
        [(f"sum by (channel) (monitor_outbox_dead{{{_OURS}}})", "{{channel}}")],
        width=12,
        steps=((None, GREEN), (1, RED)),
        none="no channel",
    )
    yield figures(
        "Oldest waiting",
        "Age of the oldest notification that is decided and not yet delivered.",
        "s",
        [(f"max(monitor_outbox_oldest_seconds{{{_OURS}}})", "oldest")],
        width=12,
        steps=((None, GREEN), (60, ORANGE), (300, RED)),
        none="no data",
    )
    yield lines(
        "Waiting",
        "Notifications decided and not yet delivered, by channel.",
        "short",
        [(f"sum by (channel) (monitor_outbox_pending{{{_OURS}}})", "{{channel}}")],
        width=12,
        stacked=True,
    )
    yield lines(
        "Attempts",
        "Attempts to deliver per second: sent, retried (failed, and tried again later) and dead (given up).",
        "cps",
        [(f"sum by (channel, outcome) (rate(monitor_notifications_total{{{_OURS}}}[$__rate_interval]))", "{{channel}} {{outcome}}")],
        width=12,
    )


def _self() -> Iterator[Panel]:
    yield figures(
        "Version",
        "What is running.",
        "short",
        [(f"max by (version) (monitor_build_info{{{_OURS}}})", "{{version}}")],
        width=6,
        steps=((None, GREEN),),
        words={"1": ("running", GREEN)},
        none="not scraped",
    )
    yield figures(
        "State store",
        "Whether the state store takes writes. Without it, decisions are not remembered over a restart.",
        "short",
        [(f"min(monitor_store_up{{{_OURS}}})", "store")],
        width=6,
        steps=((None, RED), (1, GREEN)),
        words={"0": ("down", RED), "1": ("up", GREEN)},
        none="no data",
    )
    yield figures(
        "Configuration",
        "Whether the configuration file was last read without an error. When not, the one before stays in use.",
        "short",
        [(f"min(monitor_config_last_reload_successful{{{_OURS}}})", "configuration")],
        width=6,
        steps=((None, RED), (1, GREEN)),
        words={"0": ("refused", RED), "1": ("in use", GREEN)},
        none="no data",
    )
    yield figures(
        "Series left out",
        "Series left out of the metrics page in the last hour, because a metric has too many or gives one twice.",
        "short",
        [(f"sum(increase(monitor_series_dropped_total{{{_OURS}}}[1h]))", "left out")],
        width=6,
        steps=((None, GREEN), (1, ORANGE)),
        none="no data",
    )
    yield lines(
        "Time since the latest run",
        "By check. A line that rises beyond three intervals is a check that no longer runs.",
        "s",
        [(f"max by (check, service) (time() - monitor_check_last_run_timestamp_seconds{{{_CHOSEN}}})", "{{service}} {{check}}")],
        width=8,
    )
    yield lines(
        "Time a run takes",
        "By check, the ten slowest.",
        "s",
        [(f"topk(10, max by (check, service) (monitor_check_duration_seconds{{{_CHOSEN}}}))", "{{service}} {{check}}")],
        width=8,
    )
    yield lines(
        "Lateness",
        "How late the event loop and the scheduler are, and runs per second left out because the one before had not ended.",
        "s",
        [
            (f"max(monitor_loop_lag_seconds{{{_OURS}}})", "event loop"),
            (f"max(monitor_scheduler_late_seconds{{{_OURS}}})", "scheduler"),
            (f"sum(rate(monitor_scheduler_skipped_total{{{_OURS}}}[$__rate_interval]))", "runs left out"),
        ],
        width=8,
    )
