"""What is looked at: one check a file, and the contract that every check is written against.

A check is ``async def name(ctx, cfg) -> Observed`` under :func:`check`. It looks once, returns what it saw, and raises
:class:`CannotLook` when it could not see. To add one: a file here, a line in ``BUILTINS``, a test.
"""

from checks.access_log import access_log
from checks.backups import backups
from checks.data_freshness import data_freshness
from checks.disk import disk
from checks.dns import dns_name
from checks.due_dates import due_dates
from checks.email_jobs import email_jobs
from checks.failed_jobs import failed_jobs
from checks.heartbeat import heartbeat
from checks.http_health import http_health
from checks.job_progress import job_progress
from checks.job_queue import job_queue
from checks.load import load
from checks.log_errors import log_errors
from checks.log_rotation import log_rotation
from checks.login import login
from checks.memory import memory
from checks.pg_bloat import pg_bloat
from checks.pg_blocking import pg_blocking
from checks.pg_checkpoints import pg_checkpoints
from checks.pg_connections import pg_connections
from checks.pg_counters import pg_counters
from checks.pg_idle_in_transaction import pg_idle_in_transaction
from checks.pg_indexes import pg_indexes
from checks.pg_long_queries import pg_long_queries
from checks.pg_prepared_transactions import pg_prepared_transactions
from checks.pg_replication import pg_replication
from checks.pg_sequences import pg_sequences
from checks.pg_settings import pg_settings
from checks.pg_sizes import pg_sizes
from checks.pg_statements import pg_statements
from checks.pg_vacuum import pg_vacuum
from checks.pg_wal import pg_wal
from checks.pg_wraparound import pg_wraparound
from checks.processes import processes
from checks.service_instances import service_instances
from checks.sftp import sftp
from checks.smtp_server import smtp_server
from checks.sources import sources
from checks.sql_query import sql_query
from checks.stuck_jobs import stuck_jobs
from checks.tcp import tcp
from checks.tenants import tenants
from checks.tls import tls
from checks.witness import witness
from monitor.clock import Clock
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import AnyCheck, Check, CheckContext, Duration, LocalPath, PluginConfig, Secret, Service, check, one_line
from monitor.probes_contract import (
    HttpAnswer,
    HttpFailure,
    HttpPhases,
    HttpProbe,
    HttpReason,
    HttpRequest,
    Login,
    LoginState,
    Postgres,
)

BUILTINS: tuple[AnyCheck, ...] = (
    access_log,
    backups,
    data_freshness,
    disk,
    dns_name,
    due_dates,
    email_jobs,
    failed_jobs,
    heartbeat,
    http_health,
    job_progress,
    job_queue,
    load,
    log_errors,
    log_rotation,
    login,
    memory,
    pg_bloat,
    pg_blocking,
    pg_checkpoints,
    pg_connections,
    pg_counters,
    pg_idle_in_transaction,
    pg_indexes,
    pg_long_queries,
    pg_prepared_transactions,
    pg_replication,
    pg_sequences,
    pg_settings,
    pg_sizes,
    pg_statements,
    pg_vacuum,
    pg_wal,
    pg_wraparound,
    processes,
    service_instances,
    sftp,
    smtp_server,
    sources,
    sql_query,
    stuck_jobs,
    tcp,
    tenants,
    tls,
    witness,
)

__all__ = [
    "BUILTINS",
    "AnyCheck",
    "CannotLook",
    "Check",
    "CheckContext",
    "Clock",
    "Duration",
    "Finding",
    "FindingKind",
    "HttpAnswer",
    "HttpFailure",
    "HttpPhases",
    "HttpProbe",
    "HttpReason",
    "HttpRequest",
    "LocalPath",
    "Login",
    "LoginState",
    "Metric",
    "Observed",
    "PluginConfig",
    "Postgres",
    "Sample",
    "Secret",
    "Service",
    "Severity",
    "check",
    "one_line",
]
