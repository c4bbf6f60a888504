"""The monitor's own metric families, declared in one place.

Series of a check instance carry ``check`` (its name in the configuration) and ``service``; the others describe the monitor itself.
"""

from monitor.domain import IncidentState, Metric, Outcome, Severity

SUBJECT = ("check", "service")
"""Labels in front of those that a check's metrics declare: the name of its table in the configuration, and what it looks at."""

# --- every check instance --------------------------------------------------------------------------------------------

CHECK_OUTCOME = Metric(
    "monitor_check_outcome",
    "Latest outcome of a check: 1 for the one that applies, 0 for the others. blind means it could not look.",
    ("outcome",),
)
CHECK_DURATION = Metric("monitor_check_duration_seconds", "How long the latest run of a check took.")
CHECK_LAST_RUN = Metric("monitor_check_last_run_timestamp_seconds", "When the latest run of a check started.")
CHECK_RUNS = Metric("monitor_check_runs_total", "Runs of a check, by outcome.", ("outcome",), "counter")

# --- the monitor itself ----------------------------------------------------------------------------------------------

BUILD_INFO = Metric("monitor_build_info", "Always 1; the labels say what is running.", ("version", "python"))
CONFIG_RELOAD_SUCCESSFUL = Metric("monitor_config_last_reload_successful", "1 when the configuration was last read without an error.")
CONFIG_RELOAD_SUCCESS_TIME = Metric("monitor_config_last_reload_success_timestamp_seconds", "When the configuration in use was read.")
INCIDENTS = Metric("monitor_incidents", "Incidents that are not resolved, by severity and state.", ("severity", "state"))
OUTBOX_PENDING = Metric("monitor_outbox_pending", "Notifications decided and not yet delivered.", ("channel",))
OUTBOX_OLDEST = Metric("monitor_outbox_oldest_seconds", "Age of the oldest notification that is not yet delivered; 0 when there is none.")
OUTBOX_DEAD = Metric("monitor_outbox_dead", "Notifications given up on: somebody was not told.", ("channel",))
NOTIFICATIONS = Metric(
    "monitor_notifications_total",
    "Attempts to deliver a notification: sent, retried (it failed and will be tried again) or dead (given up).",
    ("channel", "outcome"),
    "counter",
)
UPKEEP = Metric(
    "monitor_upkeep_total",
    "Rounds in which a channel's far side was compared with ours, or told again what it would forget: ok or failed.",
    ("channel", "outcome"),
    "counter",
)
UPKEEP_LAST_SUCCESS = Metric("monitor_upkeep_last_success_timestamp_seconds", "When the last such round succeeded.", ("channel",))
UPKEEP_REPAIRS = Metric(
    "monitor_upkeep_repairs_total",
    "What such rounds found to differ: acknowledged (here, because there), trigger, acknowledge, resolve (sent again), left (as it is).",
    ("channel", "repair"),
    "counter",
)
UPKEEP_DRIFT = Metric("monitor_upkeep_drift", "Incidents on which the channel's far side differs and stays so.", ("channel",))
DEADMAN_BEAT = Metric("monitor_deadman_last_beat_timestamp_seconds", "When the service outside last took a beat; absent before the first.")
LOOP_LAG = Metric("monitor_loop_lag_seconds", "How late the event loop ran its last timer.")
SCHEDULER_LATE = Metric("monitor_scheduler_late_seconds", "How late the latest due check was started.")
SCHEDULER_SKIPPED = Metric("monitor_scheduler_skipped_total", "Runs left out because the run before was still going.", (), "counter")
CLOCK_STEP = Metric("monitor_clock_step_seconds", "Size of the last step of the wall clock while the monitor ran, negative when set back.")
STORE_UP = Metric("monitor_store_up", "1 when the state store took the latest write.")
SERIES_DROPPED = Metric(
    "monitor_series_dropped_total",
    "Series left out of this page: over the cap of the family, given twice, or malformed.",
    ("metric",),
    "counter",
)

OWN_STATEMENTS = Metric(
    "monitor_own_pg_statements_total", "Statements that the monitor sent to a watched PostgreSQL.", ("service",), "counter"
)
OWN_BUSY = Metric("monitor_own_pg_busy_seconds_total", "Time that the monitor waited for a watched PostgreSQL.", ("service",), "counter")
OWN_CONNECTS = Metric(
    "monitor_own_pg_connects_total",
    "Connections opened to a watched PostgreSQL: held ones and canary logins.",
    ("service", "kind"),
    "counter",
)

PER_CHECK = (CHECK_OUTCOME, CHECK_DURATION, CHECK_LAST_RUN, CHECK_RUNS)
OWN = (
    BUILD_INFO,
    CONFIG_RELOAD_SUCCESSFUL,
    CONFIG_RELOAD_SUCCESS_TIME,
    INCIDENTS,
    OUTBOX_PENDING,
    OUTBOX_OLDEST,
    OUTBOX_DEAD,
    NOTIFICATIONS,
    UPKEEP,
    UPKEEP_LAST_SUCCESS,
    UPKEEP_REPAIRS,
    UPKEEP_DRIFT,
    DEADMAN_BEAT,
    LOOP_LAG,
    SCHEDULER_LATE,
    SCHEDULER_SKIPPED,
    CLOCK_STEP,
    STORE_UP,
    SERIES_DROPPED,
    OWN_STATEMENTS,
    OWN_BUSY,
    OWN_CONNECTS,
)

OUTCOMES = tuple(Outcome)
NOTIFICATION_OUTCOMES = ("sent", "retried", "dead")
UNRESOLVED = (IncidentState.OPEN, IncidentState.ACKED)
SEVERITIES = tuple(severity.name for severity in Severity)
