"""Replication slots as ``pg_replication`` judges them: who keeps WAL on the primary's disk, and who has lost it already."""

from collections.abc import Mapping

from checks.words import lasted, sized
from monitor.domain import Finding, FindingKind, Metric, Sample, Severity
from monitor.plugins import one_line
from monitor.probes_contract import Row

RETAINED = Metric("monitor_pg_slot_retained_bytes", "WAL that the slot keeps from being removed.", ("slot",))
ACTIVE = Metric("monitor_pg_slot_active", "1 while somebody reads from the slot.", ("slot",))

LOST = FindingKind("SlotLost", Severity.P2, None, "The slot's WAL or rows are gone: its consumer must be set up anew.")
RETAINS = FindingKind("SlotRetainsWal", Severity.P2, None, "The slot keeps much WAL on the disk, or is about to lose it.")
INACTIVE = FindingKind("SlotInactive", Severity.P3, None, "Nobody has read from the slot for long, while it keeps WAL or dead rows.")

METRICS = (RETAINED, ACTIVE)
KINDS = (LOST, RETAINS, INACTIVE)


def samples(slots: list[Row], top: int) -> list[Sample]:
    """Of the slots that keep the most; they come in that order."""
    shown = {_name(slot): slot for slot in reversed(slots[:top])}
    return [
        sample for name, slot in shown.items() for sample in (RETAINED(slot["retained"] or 0, slot=name), ACTIVE(slot["active"], slot=name))
    ]


def idle_since(slots: list[Row], at_s: float, before: Mapping[str, float]) -> dict[str, float]:
    """Since when each inactive slot has been so, Unix seconds: the server tells from 17 on, before that it is what was seen first."""
    return {
        slot["name"]: float(slot["inactive_at_s"] if slot["inactive_at_s"] is not None else before.get(slot["name"], at_s))
        for slot in slots
        if not slot["active"]
    }


def judge(
    slots: list[Row], *, at_s: float, inactive_since: Mapping[str, float], inactive_after_s: float, retained_bytes: float, service: str
) -> list[Finding]:
    """One finding a slot, the worst that can be said of it. Slots that a standby copies from its primary are the primary's matter. Pure."""
    findings = []
    for slot in slots:
        if slot["synced"]:
            continue
        idle_s = at_s - inactive_since[slot["name"]] if slot["name"] in inactive_since else 0.0
        found = _judge_one(slot, idle_s, inactive_after_s, retained_bytes, service)
        findings += [found] if found else []
    return findings


def _judge_one(slot: Row, idle_s: float, inactive_after_s: float, retained_bytes: float, service: str) -> Finding | None:
    name = _name(slot)
    labels = {"slot": name}
    facts = {
        "reader": "active" if slot["active"] else f"none for {lasted(idle_s)}",
        "keeps": f"{sized(slot['retained'] or 0)} of WAL, WAL status {slot['wal_status'] or 'none reserved'}",
        "kind": slot["slot_type"],
        "to drop it": f"SELECT pg_drop_replication_slot('{name}'); its reader cannot go on after that",
    }
    if slot["wal_status"] == "lost" or slot["reason"]:
        why = slot["reason"] or "its WAL was removed"
        facts = {"why": why, "first": "set up its reader anew, then drop the slot", **facts}
        return LOST(f"the replication slot {name} is lost: {why} ({service})", labels=labels, facts=facts)
    if slot["wal_status"] == "unreserved" or (slot["retained"] or 0) >= retained_bytes:
        about = ", which the next checkpoint removes" if slot["wal_status"] == "unreserved" else ""
        facts = {"first": "bring its reader back, or drop the slot before the disk is full", **facts}
        summary = f"the replication slot {name} needs {sized(slot['retained'] or 0)} of WAL{about} ({service})"
        return RETAINS(summary, labels=labels, facts=facts, value=slot["retained"])
    if not slot["active"] and slot["holds"] and idle_s >= inactive_after_s:
        summary = f"nobody has read replication slot {name} for {lasted(idle_s)}; it keeps {sized(slot['retained'] or 0)} ({service})"
        return INACTIVE(summary, labels=labels, facts=facts, value=idle_s)
    return None


def _name(slot: Row) -> str:
    return one_line(slot["name"], limit=63)


# Columns that came with 16 (conflicting) and 17 are read through JSON, so that one statement serves all versions.
SLOTS = """
SELECT s.slot_name::text AS name, s.slot_type, s.active, s.wal_status, coalesce(s.restart_lsn IS NOT NULL OR s.xmin IS NOT NULL
           OR s.catalog_xmin IS NOT NULL, false) AS holds,
       greatest(0, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                                   s.restart_lsn))::float8 AS retained,
       extract(epoch FROM (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8 AS inactive_at_s,
       coalesce(to_jsonb(s) ->> 'invalidation_reason', CASE WHEN (to_jsonb(s) ->> 'conflicting')::bool THEN 'conflict' END) AS reason,
       coalesce((to_jsonb(s) ->> 'synced')::bool, false) AS synced
FROM pg_replication_slots s WHERE NOT s.temporary ORDER BY retained DESC NULLS LAST, name LIMIT 100
"""
