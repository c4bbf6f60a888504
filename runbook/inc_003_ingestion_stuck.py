"""INC-003: an ingestion job does not move. Looks at the jobs, their log, the sessions that should work for them, and the arriving rows.

Whatever could not be looked at is named; the cause is chosen from what was seen, by pure functions at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from monitor.domain import Diagnosis, Evidence, Guide
from monitor.errors import CannotLook
from monitor.plugins import RunbookContext, RunbookEntry, Service
from monitor.probes_contract import Postgres, Row
from runbook.cancel_stuck_jobs import CANCEL_STUCK_JOBS
from runbook.processing_jobs import STUCK, STUCK_AFTER_S, StuckJobs, age, find_stuck, stuck_after_s

GUIDE = Guide(
    code="INC-003",
    title="Ingestion Job Stuck",
    first_step="`monitor runbook diagnose INC-003`; if a job is stuck, `monitor runbook plan cancel-stuck-jobs`",
)

JOBS_SHOWN = 10
LOGGED_JOBS = 3
LOG_LINES = 5
APPLICATION = "data-service"
DATA_SERVICES = ("data", "data-service", "data_service", "ingestion")
"""Names under which the configuration may know the service that works the jobs."""


async def diagnose(ctx: RunbookContext) -> Diagnosis:
    """Look, in the runbook's order: stuck jobs, their log lines, the worker's sessions and who blocks them, the newest rows."""
    evidence: list[Evidence] = []
    blind: list[str] = []
    jobs = await _see_jobs(ctx, evidence, blind)
    is_stuck = jobs is not None and bool(jobs.stuck.jobs)
    if jobs and is_stuck:
        await _see_log(ctx, jobs.stuck, evidence, blind)
    sessions = await _see_sessions(ctx.pg, evidence, blind)
    arrivals = await _see_arrivals(ctx.pg, evidence, blind)
    return Diagnosis(
        code=GUIDE.code,
        cause=cause_of(jobs, sessions, arrivals),
        evidence=tuple(evidence),
        proposals=(CANCEL_STUCK_JOBS.name,) if is_stuck else (),
        blind=tuple(blind),
    )


INC_003 = RunbookEntry(GUIDE, diagnose, (CANCEL_STUCK_JOBS,))


# --- the jobs and their log ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Jobs:
    """``moving`` is looked at only when nothing is stuck."""

    stuck: StuckJobs
    moving: StuckJobs = StuckJobs((), 0)  # noqa: RUF009 - frozen
    after_s: float = STUCK_AFTER_S
    """Silent for so long, a job is stuck."""


async def _see_jobs(ctx: RunbookContext, evidence: list[Evidence], blind: list[str]) -> Jobs | None:
    after_s = stuck_after_s(ctx)
    try:
        stuck = await find_stuck(ctx.pg, older_than_s=after_s, limit=JOBS_SHOWN)
        moving = StuckJobs((), 0) if stuck.jobs else await find_stuck(ctx.pg, older_than_s=0, limit=JOBS_SHOWN)
    except CannotLook as exc:
        blind.append(f"the jobs: {exc}")
        return None
    evidence.append(_jobs_table("Stuck jobs", stuck))
    if moving.jobs:
        evidence.append(_jobs_table(f"Jobs in processing, silent for less than {age(after_s)}", moving))
    return Jobs(stuck, moving, after_s)


def _jobs_table(title: str, found: StuckJobs) -> Evidence:
    columns = ("silent for", *(name for name, _ in found.jobs[0].columns)) if found.jobs else ()
    rows = tuple((age(job.silent_s), *(value or "" for _, value in job.columns)) for job in found.jobs)
    more = found.total - len(found.jobs)
    return Evidence(title, columns, rows, text=f"and {more} more" if more else "" if rows else "none", source=STUCK.strip())


async def _see_log(ctx: RunbookContext, stuck: StuckJobs, evidence: list[Evidence], blind: list[str]) -> None:
    service = data_service(ctx.services)
    paths = [path for path in (service.log, service.error_log) if path] if service else []
    if not paths:
        blind.append('the log: no service named data with a log file is configured (set log = "…" under [services.data])')
    for path in paths:
        for job in stuck.jobs[:LOGGED_JOBS]:
            if not job.job_id.strip():
                continue
            try:
                lines = await ctx.logs.matching(path, job.job_id, limit=LOG_LINES)
            except CannotLook as exc:
                blind.append(f"the log: {exc}")
                break
            said = "\n".join(lines) or "no line names this job"
            evidence.append(Evidence(f"Last log lines of job {job.job_id}", text=said, source=f"grep {job.job_id!r} {path}"))


def data_service(services: Mapping[str, Service]) -> Service | None:
    """The service that works the jobs: by its usual names, else the one whose log is the ingestion log."""
    named = [services[name] for name in DATA_SERVICES if name in services]
    logging = [service for service in services.values() if service.log and "ingestion" in service.log]
    return next((service for service in (*named, *logging) if service.log or service.error_log), None)


# --- the sessions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """One session of the data service. ``blocked_by`` holds process ids, 0 for a prepared transaction."""

    pid: int
    state: str
    state_s: float
    """Seconds in this state."""
    waits_for: str
    query: str
    blocked_by: tuple[int, ...] = ()


SESSIONS = """
SELECT a.pid, a.application_name, a.state, extract(epoch FROM now() - a.state_change)::float8 AS state_s,
       concat_ws(' ', a.wait_event_type, a.wait_event) AS waits_for, left(a.query, 200) AS query,
       CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}' END AS blocked_by
FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = current_database() AND starts_with(a.application_name, %(application)s)
ORDER BY a.state = 'idle', a.state_change
LIMIT 20
"""
BLOCKERS = """
SELECT a.pid, a.application_name, a.usename::text AS usename, a.state, extract(epoch FROM now() - a.xact_start)::float8 AS transaction_s,
       left(a.query, 200) AS query
FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = ANY(%(pids)s::int[])
"""


@dataclass(frozen=True, slots=True)
class Sessions:
    """The data service's sessions, and a few words on each process that blocks one."""

    all: tuple[Session, ...]
    blockers: tuple[tuple[int, str], ...] = ()


async def _see_sessions(pg: Postgres, evidence: list[Evidence], blind: list[str]) -> Sessions | None:
    try:
        rows = await pg.fetch(SESSIONS, {"application": APPLICATION})
        if any(row["state"] is None for row in rows):
            raise CannotLook("the monitor's role may not see other sessions: GRANT pg_monitor TO it")
        sessions = tuple(_session(row) for row in rows)
        pids = sorted({pid for session in sessions for pid in session.blocked_by})
        blocking = await pg.fetch(BLOCKERS, {"pids": pids}) if pids else []
    except CannotLook as exc:
        blind.append(f"the sessions of {APPLICATION}: {exc}")
        return None
    cells = tuple(
        (str(s.pid), s.state, age(s.state_s), s.waits_for, ", ".join(map(str, s.blocked_by)), " ".join(s.query.split())) for s in sessions
    )
    columns = ("pid", "state", "for", "waits for", "blocked by", "last statement")
    none = "" if cells else f"no session with application_name {APPLICATION}"
    evidence.append(Evidence(f"Sessions of {APPLICATION}", columns if cells else (), cells, text=none, source=SESSIONS.strip()))
    if not pids:
        return Sessions(sessions)
    told = {row["pid"]: row for row in blocking}
    evidence.append(
        Evidence(
            "Who blocks them",
            ("pid", "application", "role", "state", "transaction for", "last statement"),
            tuple(_blocker_cells(pid, told.get(pid)) for pid in pids),
            source=BLOCKERS.strip(),
        )
    )
    return Sessions(sessions, tuple((pid, _blocker_words(pid, told.get(pid))) for pid in pids))


def _session(row: Row) -> Session:
    return Session(
        row["pid"], row["state"], row["state_s"] or 0.0, row["waits_for"], row["query"] or "", tuple(sorted(set(row["blocked_by"])))
    )


def _blocker_cells(pid: int, row: Row | None) -> tuple[str, ...]:
    if row is None:
        return (str(pid), "", "", "a prepared transaction (see pg_prepared_xacts)" if pid == 0 else "ended meanwhile", "", "")
    since = age(row["transaction_s"]) if row["transaction_s"] is not None else ""
    return (
        str(pid),
        row["application_name"] or "",
        row["usename"] or "",
        row["state"] or "",
        since,
        " ".join((row["query"] or "").split()),
    )


def _blocker_words(pid: int, row: Row | None) -> str:
    if row is None:
        return "a prepared transaction" if pid == 0 else f"pid {pid}, which has ended meanwhile"
    since = f", in its transaction for {age(row['transaction_s'])}" if row["transaction_s"] is not None else ""
    return f"pid {pid} ({row['application_name'] or row['usename'] or 'unnamed'}, {row['state'] or 'state hidden'}{since})"


# --- the arriving rows -----------------------------------------------------------------------------------------------

TABLES = ("purchase", "add_to_cart", "page_view")
ARRIVED = ("ingested_at", "loaded_at", "inserted_at", "created_at")
"""Columns that tell when a row came in, the best first."""
HAPPENED = ("event_timestamp", "event_time", "event_at", "occurred_at", "event_date")
"""Columns that tell only when the row's event happened: second best."""

TIME_COLUMNS = """
SELECT c.relname::text AS relname, a.attname::text AS attname
FROM pg_catalog.pg_class AS c
LEFT JOIN pg_catalog.pg_attribute AS a
       ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype) AND a.attname = ANY(%(columns)s::text[])
WHERE c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname = ANY(%(tables)s::text[])
"""
NEWEST = "SELECT max({column})::text AS newest, extract(epoch FROM now() - max({column}))::float8 AS age_s FROM public.{table}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """The newest row of one table: ``age_s`` is None when it is empty."""

    table: str
    column: str
    newest: str
    age_s: float | None


async def _see_arrivals(pg: Postgres, evidence: list[Evidence], blind: list[str]) -> tuple[Arrival, ...]:
    try:
        rows = await pg.fetch(TIME_COLUMNS, {"columns": [*ARRIVED, *HAPPENED], "tables": list(TABLES)})
    except CannotLook as exc:
        blind.append(f"the arriving rows: {exc}")
        return ()
    arrivals: list[Arrival] = []
    for table in TABLES:
        try:
            arrivals.append(await _newest(pg, table, {row["attname"] for row in rows if row["relname"] == table}))
        except CannotLook as exc:
            blind.append(f"new rows in {table}: {exc}")
    cells = tuple((a.table, a.column, a.newest, "" if a.age_s is None else age(a.age_s)) for a in arrivals)
    if cells:
        evidence.append(Evidence("Newest rows", ("table", "column", "newest", "ago"), cells, source="SELECT max(column) FROM public.table"))
    return tuple(arrivals)


async def _newest(pg: Postgres, table: str, columns: set[Any]) -> Arrival:
    if not columns:
        raise CannotLook("there is no such table")
    column = next((name for name in (*ARRIVED, *HAPPENED) if name in columns), None)
    if column is None:
        raise CannotLook("it has no column that tells when a row arrived")
    query = sql.SQL(NEWEST).format(column=sql.Identifier(column), table=sql.Identifier(table))
    (row,) = await pg.fetch(query)
    return Arrival(table, column, row["newest"] or "(empty)", row["age_s"])


# --- the sentence ----------------------------------------------------------------------------------------------------

LONG_S = 60.0
"""A statement or an open transaction this old explains a job that does not move."""


def cause_of(jobs: Jobs | None, sessions: Sessions | None, arrivals: tuple[Arrival, ...]) -> str:
    """What a person needs to know first, from what was seen; never more certain than that."""
    if jobs is None:
        return "The jobs could not be looked at, so nothing can be said about them: see what could not be seen."
    stuck = jobs.stuck
    if not stuck.jobs:
        quiet = jobs.moving.jobs[0] if jobs.moving.jobs else None
        longest = f" The longest silent is job {quiet.job_id}, for {age(quiet.silent_s)}." if quiet else " No job is in processing."
        return f"Nothing is stuck: no job has been in processing without a sign of life for {age(jobs.after_s)}.{longest}"
    oldest = stuck.jobs[0]
    head = "1 job is" if stuck.total == 1 else f"{stuck.total} jobs are"
    parts = [
        f"{head} stuck, job {oldest.job_id} the longest (silent for {age(oldest.silent_s)}).",
        _reason(sessions),
        _flow(arrivals, jobs.after_s),
    ]
    if not oldest.has_heartbeat:
        parts.append("The table has no heartbeat, so a slow job looks the same: read its log lines before cancelling.")
    return " ".join(part for part in parts if part)


def _reason(sessions: Sessions | None) -> str:
    if sessions is None:
        return "Whether a session still works for it could not be seen."
    blockers = dict(sessions.blockers)
    for session in sessions.all:
        if session.blocked_by:
            by = " and ".join(blockers.get(pid, f"pid {pid}") for pid in session.blocked_by)
            return (
                f"{APPLICATION} (pid {session.pid}) has been waiting for a lock for {age(session.state_s)}, held by {by}: end that first."
            )
    for session in sessions.all:
        if session.state == "active" and session.state_s > LONG_S:
            return f"{APPLICATION} (pid {session.pid}) has been running one statement for {age(session.state_s)}: it may still be at work."
        if session.state.startswith("idle in transaction") and session.state_s > LONG_S:
            return f"{APPLICATION} (pid {session.pid}) has left a transaction open for {age(session.state_s)} and does nothing in it."
    if not sessions.all:
        return f"{APPLICATION} has no session in the database: its worker is gone or cannot connect. Restart it after cancelling."
    return f"{APPLICATION} is connected but no session works for it: its worker died, or hangs outside the database (BigQuery, SFTP)."


def _flow(arrivals: tuple[Arrival, ...], after_s: float) -> str:
    came = [(arrival.age_s, arrival.table) for arrival in arrivals if arrival.age_s is not None and arrival.column in ARRIVED]
    happened = [(arrival.age_s, arrival.table) for arrival in arrivals if arrival.age_s is not None and arrival.column in HAPPENED]
    if not came:
        return f"The newest event, in {min(happened)[1]}, is {age(min(happened)[0])} old." if happened else ""
    newest_s, table = min(came)
    if newest_s < after_s:
        return f"New rows do arrive (the newest in {table}, {age(newest_s)} ago), so other jobs move."
    return f"No new row for {age(newest_s)}."
