"""Do the standbys follow, from the primary's side and from the standby's own, and do replication slots keep WAL for nobody?"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from checks import pg_sight, pg_slots
from checks.pg_epoch import kept_counters, since
from checks.words import lasted, many, sized
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, PluginConfig, check, one_line
from monitor.probes_contract import Row

STANDBYS = Metric("monitor_pg_standbys", "Standbys and other receivers of WAL that are connected to this server.")
LAG_BYTES = Metric(
    "monitor_pg_replication_lag_bytes",
    "WAL that was not sent to the standby, or is not written, flushed, replayed there.",
    ("standby", "stage"),
)
LAG_SECONDS = Metric("monitor_pg_replication_lag_seconds", "How long ago was written what the standby lacks.", ("standby", "stage"))
REPLAY_BYTES = Metric("monitor_pg_standby_replay_lag_bytes", "On a standby: WAL received and not replayed yet.")
REPLAY_SECONDS = Metric("monitor_pg_standby_replay_lag_seconds", "On a standby: age of what is not replayed yet; 0 while all is.")
RECEIVING = Metric("monitor_pg_standby_receiving", "On a standby: 1 while it streams WAL from its primary.")
PAUSED_METRIC = Metric("monitor_pg_standby_paused", "On a standby: 1 while replay is paused.")
CONFLICTS_METRIC = Metric(
    "monitor_pg_standby_conflicts_total", "On a standby: statements cancelled because replay went first.", ("reason",), "counter"
)

BEHIND = FindingKind("StandbyBehind", Severity.P3, None, "A standby lags: failing over to it now would lose that much.")
NOT_STREAMING = FindingKind("StandbyNotStreaming", Severity.P3, None, "A standby is connected, but has not come to streaming for long.")
MISSING = FindingKind("StandbyMissing", Severity.P2, None, "An expected standby is not connected to its primary.")
SYNC_MISSING = FindingKind(
    "SyncStandbyMissing", Severity.P1, None, "Too few synchronous standbys are connected: every commit waits for them.", fells=True
)
RECEIVER_DOWN = FindingKind("ReceiverNotStreaming", Severity.P2, None, "This standby receives no WAL from its primary.")
REPLAY_BEHIND = FindingKind("ReplayBehind", Severity.P3, None, "This standby replays later than it receives: its readers see old data.")
PAUSED = FindingKind("ReplayPaused", Severity.P3, None, "Replay is paused on this standby, by a person or by wrong settings.")
CONFLICTS = FindingKind("RecoveryConflicts", Severity.P4, None, "Statements on this standby were cancelled because replay went first.")

STAGES = ("sent", "write", "flush", "replay")
REASONS = ("tablespace", "lock", "snapshot", "bufferpin", "deadlock")
TOP = 20


class Config(PluginConfig):
    """Keys of a ``pg_replication`` check."""

    expect_standbys: int = Field(0, ge=0, description="StandbyMissing when fewer standbys are connected to a primary.")
    standbys: tuple[str, ...] = Field((), description="application_name of standbys that must be connected to a primary.")
    lag_after: Duration = Field(60.0, gt=0, description="StandbyBehind and ReplayBehind from this lag on.")
    lag_bytes: float = Field(268_435_456, gt=0, description="StandbyBehind and ReplayBehind from so many bytes on.")
    catchup_after: Duration = Field(300.0, ge=0, description="StandbyNotStreaming when it has been connected for so long without.")
    slot_inactive_after: Duration = Field(600.0, ge=0, description="SlotInactive when nobody has read for so long.")
    slot_retained_bytes: float = Field(5_368_709_120, gt=0, description="SlotRetainsWal from so many bytes on.")
    conflicts: int = Field(1, ge=1, description="RecoveryConflicts from so many since the last look on.")


@check(
    "pg_replication",
    config=Config,
    metrics=(
        *(STANDBYS, LAG_BYTES, LAG_SECONDS, *pg_slots.METRICS),
        *(REPLAY_BYTES, REPLAY_SECONDS, RECEIVING, PAUSED_METRIC, CONFLICTS_METRIC),
    ),
    finds=(BEHIND, NOT_STREAMING, MISSING, SYNC_MISSING, *pg_slots.KINDS, RECEIVER_DOWN, REPLAY_BEHIND, PAUSED, CONFLICTS),
    needs=("dsn",),
    blind="The role may not see the server's statistics, or the database does not answer.",
    why="A standby that quietly stopped is found on the day it is needed; a slot that nobody reads fills the primary's disk.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_replication(ctx: CheckContext, cfg: Config) -> Observed:
    """Looks at a primary's standbys and slots, or at a standby's receiving and replaying, whichever the server is at that moment.

    A lag in seconds is never that of an idle primary: while all that was received is replayed, it is 0.
    """
    assert ctx.pg is not None  # needs=("dsn",)
    (state,), standbys, slots = await pg_sight.look(ctx.pg, STATE, SENDERS, pg_slots.SLOTS)
    if not (state["standby"] or standbys or slots or cfg.standbys or cfg.expect_standbys or state["sync_names"]):
        return STANDS_ALONE
    kept: Mapping[str, Any] = ctx.kept.value if ctx.kept else {}
    at_s = float(state["at_s"])
    for row in standbys:
        row["name"] = one_line(row["name"], limit=63) or "(unnamed)"
    marks = kept.get("marks", {}) if kept.get("standby") == state["standby"] else {}
    marks = {name: mark(marks.get(name), reached, state["lsn"], at_s) for name, reached in _reached(state, standbys).items()}
    inactive = pg_slots.idle_since(slots, at_s, kept.get("inactive", {}))
    counters = {reason: float(state[reason]) for reason in REASONS}
    keep = {"standby": state["standby"], "marks": marks, "inactive": inactive}
    keep |= {"conflicts": kept_counters("", at_s, counters)} if state["standby"] else {}
    service = ctx.service.name
    samples = pg_slots.samples(slots, TOP)
    if state["standby"]:
        delta = since(kept.get("conflicts"), "", at_s, counters)
        samples += _samples_of_standby(state, marks, counters)
        findings = judge_standby(
            state, _lag_s(state["unreplayed_s"], marks[SELF], at_s), delta.added if delta else {}, cfg, service=service
        )
    else:
        findings = judge_primary(state, standbys, marks, cfg, service=service)
    samples += _samples_of_senders(state, standbys, marks)
    findings += pg_slots.judge(
        slots,
        at_s=at_s,
        inactive_since=inactive,
        inactive_after_s=cfg.slot_inactive_after,
        retained_bytes=cfg.slot_retained_bytes,
        service=service,
    )
    return Observed(tuple(samples), tuple(findings), keep)


STANDS_ALONE = Observed((STANDBYS(0),), keep={"standby": False, "marks": {}, "inactive": {}})
"""A primary that has nobody to replicate to, and should have nobody."""


# --- lag in seconds --------------------------------------------------------------------------------------------------

SELF = ""
"""The mark of this standby itself; the others are those of the standbys that are connected to it, by name."""


def mark(before: Mapping[str, float] | None, reached: float, target: float, at_s: float) -> dict[str, float]:
    """Where the WAL ended at ``at_s`` and was not reached yet. ``floor_s`` is a time whose WAL has been reached for certain. Pure.

    The server's own measures stand still while nothing is replayed, or grow while nothing is written; between two looks this does not.
    """
    if reached >= target:
        return {"lsn": target, "at_s": at_s, "floor_s": at_s}
    if before is None:
        return {"lsn": target, "at_s": at_s, "floor_s": 0.0}
    if reached >= before["lsn"]:
        return {"lsn": target, "at_s": at_s, "floor_s": before["at_s"]}
    return dict(before)


def _lag_s(measured: float | None, place: Mapping[str, float], at_s: float) -> float:
    """``measured`` by the server, within what the looks prove: not less than the mark's age, not more than its floor's."""
    return max(0.0, at_s - place["at_s"], min(measured or 0.0, at_s - place["floor_s"]))


def _reached(state: Row, standbys: list[Row]) -> dict[str, float]:
    """How far each has replayed; the one that is furthest behind where several have one name."""
    reached = {SELF: float(state["replayed"])} if state["standby"] else {}
    for row in standbys:
        replayed = row["replay"] if row["replay"] is not None else row["flush"]  # what only receives replays nothing
        if replayed is not None:
            reached[row["name"]] = min(reached.get(row["name"], replayed), replayed)
    return reached


# --- the primary -----------------------------------------------------------------------------------------------------


def judge_primary(state: Row, standbys: list[Row], marks: Mapping[str, Mapping[str, float]], cfg: Config, *, service: str) -> list[Finding]:
    """What is wrong with the standbys of a primary. Pure."""
    findings = _missing(state, standbys, cfg, service)
    seen: set[str] = set()
    for row in standbys:  # the furthest behind first
        if row["name"] in seen:
            continue
        seen.add(row["name"])
        if row["state"] != "streaming" and row["connected_s"] >= cfg.catchup_after:
            summary = f"the standby {row['name']} has been in state {row['state']} for {lasted(row['connected_s'])} ({service})"
            facts = {"it lacks": sized(_behind(state, row, "sent") or 0), "client": row["client"] or "local"}
            findings.append(NOT_STREAMING(summary, labels={"standby": row["name"]}, facts=facts, value=row["connected_s"]))
        place = marks.get(row["name"])
        lag_s = _lag_s(row["replay_s"], place, state["at_s"]) if place else 0.0
        lag_bytes = _behind(state, row, "replay") or _behind(state, row, "flush") or 0.0
        if lag_s >= cfg.lag_after or lag_bytes >= cfg.lag_bytes:
            facts = {f"not yet {_DONE[stage]}": sized(_behind(state, row, stage) or 0) for stage in STAGES if row[stage] is not None}
            facts |= {"state": f"{row['state']}, {row['sync_state']}", "client": row["client"] or "local", "look for": _LOOK_FOR}
            summary = f"the standby {row['name']} is {lasted(lag_s)} and {sized(lag_bytes)} behind ({service})"
            findings.append(BEHIND(summary, labels={"standby": row["name"]}, facts=facts, value=lag_s))
    return findings


_DONE = {"sent": "sent", "write": "written", "flush": "flushed", "replay": "replayed"}
_LOOK_FOR = "not sent: network or primary; not flushed: its disk; not replayed: paused replay, a long query or a lock on the standby"


def _missing(state: Row, standbys: list[Row], cfg: Config, service: str) -> list[Finding]:
    present = [row for row in standbys if not row["logical"]]
    names = {row["name"] for row in present}
    absent = [name for name in (one_line(name, limit=63) for name in cfg.standbys) if name not in names]
    needed = sync_needed(state["sync_names"])
    sync = sum([row["sync_state"] in {"sync", "quorum"} for row in present])
    waits = sync < needed and state["sync_commit"] not in {"off", "local"}
    if not (absent or waits or len(present) < cfg.expect_standbys):
        return []
    facts = {"connected": ", ".join(f"{row['name']} ({row['state']})" for row in present[:8]) or "none"}
    first = {"first": "look at the standby's log and whether it runs; a slot of its own keeps WAL for it meanwhile"}
    findings = [
        MISSING(f"the standby {name} is not connected ({service})", labels={"standby": name}, facts=first | facts) for name in absent
    ]
    if len(present) < cfg.expect_standbys:
        summary = f"{len(present)} of {many(cfg.expect_standbys, 'expected standby', 'expected standbys')} connected ({service})"
        findings.append(MISSING(summary, facts=first | facts, value=len(present)))
    if waits:
        cure = "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf(); lets commits go on, without the second copy"
        facts = {"to go on": cure, "synchronous_standby_names": one_line(state["sync_names"]), **facts}
        summary = f"{sync} of {many(needed, 'synchronous standby', 'synchronous standbys')} connected: commits hang ({service})"
        findings.append(SYNC_MISSING(summary, facts=facts, value=sync))
    return findings


def sync_needed(names: str) -> int:
    """How many standbys a commit waits for, by the text of ``synchronous_standby_names``. Pure."""
    if not names.strip():
        return 0
    counted = re.match(r"\s*(?:(?:FIRST|ANY)\s+)?(\d+)\s*\(", names, re.IGNORECASE)
    return int(counted[1]) if counted else 1


def _behind(state: Row, row: Row, stage: str) -> float | None:
    return None if row[stage] is None else max(0.0, float(state["lsn"] - row[stage]))


def _samples_of_senders(state: Row, standbys: list[Row], marks: Mapping[str, Mapping[str, float]]) -> list[Sample]:
    samples = [STANDBYS(len(standbys))]
    worst = {row["name"]: row for row in reversed(standbys[:TOP])}
    for name, row in worst.items():
        for stage in STAGES:
            behind = _behind(state, row, stage)
            samples += [LAG_BYTES(behind, standby=name, stage=stage)] if behind is not None else []
        times = {"write": row["write_s"] or 0.0, "flush": row["flush_s"] or 0.0}
        times |= {"replay": _lag_s(row["replay_s"], marks[name], state["at_s"])} if name in marks else {}
        samples += [LAG_SECONDS(seconds, standby=name, stage=stage) for stage, seconds in times.items()]
    return samples


# --- the standby -----------------------------------------------------------------------------------------------------


def judge_standby(state: Row, lag_s: float, conflicts: Mapping[str, float], cfg: Config, *, service: str) -> list[Finding]:
    """What is wrong with this standby itself; ``conflicts`` are those since the previous look, by reason. Pure."""
    findings = []
    lag_bytes = max(0.0, float(state["lsn"] - state["replayed"]))
    facts = {"received and not replayed": sized(lag_bytes), "receiver": state["receiver"] or "not running"}
    if state["silent_s"] is not None:
        facts["last word of the primary"] = f"{lasted(state['silent_s'])} ago"
    if state["follows"] and state["receiver"] != "streaming":
        first = {"first": "is the primary up, may this host log in there, is the WAL it asks for still there? See this server's log"}
        summary = f"the standby receives nothing: its receiver is {state['receiver'] or 'not running'} ({service})"
        findings.append(RECEIVER_DOWN(summary, facts=first | facts))
    if state["paused"]:
        first = {"to go on": "SELECT pg_wal_replay_resume();"}
        findings.append(PAUSED(f"replay is paused, {sized(lag_bytes)} wait ({service})", facts=first | facts, value=lag_s))
    elif lag_s >= cfg.lag_after or lag_bytes >= cfg.lag_bytes:
        first = {"look for": "long queries here that replay waits for (max_standby_streaming_delay), a slow disk"}
        summary = f"the standby replays {lasted(lag_s)} and {sized(lag_bytes)} late ({service})"
        findings.append(REPLAY_BEHIND(summary, facts=first | facts, value=lag_s))
    number = sum(conflicts.values())
    if number >= cfg.conflicts:
        by_reason = {reason: f"{count:.0f}" for reason, count in conflicts.items() if count}
        cure = {"cure": "hot_standby_feedback = on, or a longer max_standby_streaming_delay, or shorter queries here"}
        findings.append(CONFLICTS(f"replay cancelled {many(int(number), 'statement')} ({service})", facts=by_reason | cure, value=number))
    return findings


def _samples_of_standby(state: Row, marks: Mapping[str, Mapping[str, float]], conflicts: Mapping[str, float]) -> list[Sample]:
    return [
        REPLAY_BYTES(max(0.0, state["lsn"] - state["replayed"])),
        REPLAY_SECONDS(_lag_s(state["unreplayed_s"], marks[SELF], state["at_s"])),
        RECEIVING(state["receiver"] == "streaming"),
        PAUSED_METRIC(bool(state["paused"])),
        *(CONFLICTS_METRIC(number, reason=reason) for reason, number in conflicts.items()),
    ]


# --- looking ---------------------------------------------------------------------------------------------------------

# current_setting of what a role may not see is an error, and then no grant would be named; pg_settings costs much more than all the rest.
# After a restart without a primary, the end of what was received is behind what was replayed: the later of both is where WAL ends.
STATE = """
SELECT i.standby, CASE WHEN i.standby
           THEN greatest(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0'), pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'))
           ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') END::float8 AS lsn,
       CASE WHEN i.standby THEN coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0) END::float8 AS replayed,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS unreplayed_s,
       CASE WHEN i.standby THEN pg_is_wal_replay_paused() END AS paused,
       CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN current_setting('primary_conninfo') <> '' END AS follows,
       r.status AS receiver, extract(epoch FROM clock_timestamp() - r.last_msg_receipt_time)::float8 AS silent_s,
       current_setting('synchronous_standby_names') AS sync_names, current_setting('synchronous_commit') AS sync_commit,
       extract(epoch FROM clock_timestamp())::float8 AS at_s, c.tablespace, c.lock, c.snapshot, c.bufferpin, c.deadlock
FROM (SELECT pg_is_in_recovery() AS standby) i LEFT JOIN pg_stat_wal_receiver r ON true CROSS JOIN (
    SELECT coalesce(sum(confl_tablespace), 0)::bigint AS tablespace, coalesce(sum(confl_lock), 0)::bigint AS lock,
           coalesce(sum(confl_snapshot), 0)::bigint AS snapshot, coalesce(sum(confl_bufferpin), 0)::bigint AS bufferpin,
           coalesce(sum(confl_deadlock), 0)::bigint AS deadlock
    FROM pg_stat_database_conflicts WHERE pg_is_in_recovery()
) c
"""

# A base backup that runs is no standby, though it looks like two of them.
SENDERS = """
SELECT r.application_name AS name, host(r.client_addr) AS client, r.state, r.sync_state,
       extract(epoch FROM clock_timestamp() - r.backend_start)::float8 AS connected_s,
       EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical') AS logical,
       pg_wal_lsn_diff(r.sent_lsn, '0/0')::float8 AS sent, pg_wal_lsn_diff(r.write_lsn, '0/0')::float8 AS write,
       pg_wal_lsn_diff(r.flush_lsn, '0/0')::float8 AS flush, pg_wal_lsn_diff(r.replay_lsn, '0/0')::float8 AS replay,
       extract(epoch FROM r.write_lag)::float8 AS write_s, extract(epoch FROM r.flush_lag)::float8 AS flush_s,
       extract(epoch FROM r.replay_lag)::float8 AS replay_s
FROM pg_stat_replication r WHERE r.state <> 'backup' AND r.application_name <> 'pg_basebackup'
ORDER BY coalesce(r.replay_lsn, r.flush_lsn) NULLS FIRST, r.application_name, r.pid LIMIT 100
"""
