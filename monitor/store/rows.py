"""Rows to domain values and back. No SQL here."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import RowMapping as Row

from monitor.domain import (
    Alert,
    AlertState,
    EscalationStep,
    Incident,
    IncidentState,
    Labels,
    Matcher,
    Receipt,
    ResponsePolicy,
    Severity,
    Silence,
    TimelineEntry,
)


def alert_row(alert: Alert) -> dict[str, object]:
    return {
        "fingerprint": alert.fingerprint,
        "instance": alert.instance,
        "group_key": alert.group,
        "service": alert.service,
        "home": alert.home,
        "fells": alert.fells,
        "doubts": alert.doubts,
        "labels": [list(pair) for pair in alert.labels],
        "code": alert.code,
        "severity": int(alert.severity),
        "summary": alert.summary,
        "facts": [list(pair) for pair in alert.facts],
        "state": alert.state.value,
        "bad_runs": alert.bad_runs,
        "good_runs": alert.good_runs,
        "pending_since": alert.pending_since,
        "firing_since": alert.firing_since,
        "resolved_at": alert.resolved_at,
        "good_since": alert.good_since,
        "annotations": [list(pair) for pair in alert.annotations],
        "generator_url": alert.generator_url,
        "ends_at": alert.ends_at,
        "ends_unsaid": alert.ends_unsaid,
        "updated_at": alert.updated_at,
    }


def alert_of(row: Row) -> Alert:
    return Alert(
        fingerprint=row["fingerprint"],
        instance=row["instance"],
        group=row["group_key"],
        service=row["service"],
        home=row["home"],
        fells=row["fells"],
        doubts=row["doubts"],
        labels=_labels(row["labels"]),
        code=row["code"],
        severity=Severity(row["severity"]),
        summary=row["summary"],
        facts=_labels(row["facts"]),
        state=AlertState(row["state"]),
        bad_runs=row["bad_runs"],
        good_runs=row["good_runs"],
        pending_since=row["pending_since"],
        firing_since=row["firing_since"],
        resolved_at=row["resolved_at"],
        good_since=row["good_since"],
        annotations=_labels(row["annotations"]),
        generator_url=row["generator_url"],
        ends_at=row["ends_at"],
        ends_unsaid=row["ends_unsaid"],
        updated_at=row["updated_at"],
    )


def incident_row(incident: Incident) -> dict[str, object]:
    return {
        "id": incident.id,
        "group_key": incident.group,
        "code": incident.code,
        "service": incident.service,
        "severity": int(incident.severity),
        "state": incident.state.value,
        "title": incident.title,
        "summary": incident.summary,
        "evidence": list(incident.evidence),
        "first_step": incident.first_step,
        "opened_at": incident.opened_at,
        "chain": [_step_row(step) for step in incident.chain],
        "chain_since": incident.chain_since,
        "told": list(incident.told),
        "step": incident.step,
        "next_escalation_at": incident.next_escalation_at,
        "acked_at": incident.acked_at,
        "acked_by": incident.acked_by,
        "resolved_at": incident.resolved_at,
        "response": asdict(incident.response),
        "asked": incident.asked,
        "muted": list(incident.muted),
        "muted_at": incident.muted_at,
        "breached_at": incident.breached_at,
        "ack_expires_at": incident.ack_expires_at,
        "remind_at": incident.remind_at,
        "wake_at": incident.wake_at,
    }


def incident_of(row: Row) -> Incident:
    return Incident(
        id=row["id"],
        group=row["group_key"],
        code=row["code"],
        service=row["service"],
        severity=Severity(row["severity"]),
        state=IncidentState(row["state"]),
        title=row["title"],
        summary=row["summary"],
        evidence=tuple(row["evidence"]),
        first_step=row["first_step"],
        opened_at=row["opened_at"],
        chain=tuple(_step_of(step) for step in row["chain"]),
        chain_since=row["chain_since"],
        told=tuple(row["told"]),
        step=row["step"],
        next_escalation_at=row["next_escalation_at"],
        acked_at=row["acked_at"],
        acked_by=row["acked_by"],
        resolved_at=row["resolved_at"],
        response=ResponsePolicy(**row["response"]),
        asked=row["asked"],
        muted=tuple(row["muted"]),
        muted_at=row["muted_at"],
        breached_at=row["breached_at"],
        ack_expires_at=row["ack_expires_at"],
        remind_at=row["remind_at"],
    )


def _step_row(step: EscalationStep) -> dict[str, object]:
    return {**asdict(step), "channels": list(step.channels), "contacts": list(step.contacts)}


def _step_of(row: Mapping[str, Any]) -> EscalationStep:
    """Chains written by older versions know channels only."""
    return EscalationStep(
        row["after_s"], row["who"], tuple(row["channels"]), tuple(row.get("contacts", ())), row.get("business_hours", False)
    )


def silence_row(silence: Silence) -> dict[str, object]:
    return {**asdict(silence), "matchers": [asdict(matcher) for matcher in silence.matchers]}


def silence_of(row: Row) -> Silence:
    return Silence(**{**row, "matchers": tuple(Matcher(**matcher) for matcher in row["matchers"])})


def timeline_of(row: Row) -> TimelineEntry:
    return TimelineEntry(row["incident_id"], row["at"], row["kind"], row["text"], row["actor"])


def receipt_row(receipt: Receipt) -> dict[str, object]:
    return {"reference": receipt.reference, "detail": [list(pair) for pair in receipt.detail]}


def receipt_of(value: Mapping[str, Any] | None) -> Receipt | None:
    return None if value is None else Receipt(value["reference"], _labels(value["detail"]))


def _labels(value: list[list[str]]) -> Labels:
    return tuple((name, text) for name, text in value)
