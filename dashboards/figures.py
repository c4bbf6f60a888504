"""What the samples of a result say in figures, for people. Pure.

Knows the metrics of the built-in checks by name only; a test holds the names against the declarations.
"""

from dashboards.wording import count, percent
from monitor.domain import CheckResult

HTTP_STATUS = "monitor_http_status"
CONNECTIONS_USABLE = "monitor_pg_connections_usable"
CONNECTIONS_USED_RATIO = "monitor_pg_connections_used_ratio"
JOBS_PROCESSING = "monitor_jobs_processing"


def connections(result: CheckResult) -> tuple[int, int] | None:
    """Used and usable connections of the server, or None when they were not counted."""
    usable, ratio = _single(result, CONNECTIONS_USABLE), _single(result, CONNECTIONS_USED_RATIO)
    return (round(usable * ratio), round(usable)) if usable is not None and ratio is not None else None


def connections_text(used: int, usable: int) -> str:
    """``41 of 97 usable connections (42.2 %)``."""
    return f"{used:,} of {usable:,} usable connections ({percent(used, usable, 1)})"


def headline(result: CheckResult) -> str:
    """One short line of what a check saw when all was well; empty for a check whose metrics are not known here."""
    status, processing, counted = _single(result, HTTP_STATUS), _single(result, JOBS_PROCESSING), connections(result)
    if status:
        return f"status {status:.0f}"
    if counted and counted[1]:
        return connections_text(*counted)
    if processing is not None:
        return f"{count(round(processing), 'job')} in processing"
    return ""


def _single(result: CheckResult, name: str) -> float | None:
    """The value of a metric without labels."""
    return next((sample.value for sample in result.observed.samples if sample.metric.name == name), None)
