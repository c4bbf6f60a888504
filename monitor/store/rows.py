"""Rows to domain values and back. No SQL here."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import RowMapping as Row

from monitor.domain import (
    DigestItem,
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
    Transition,
)


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
        chain=tuple(step_of(step) for step in row["chain"]),
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


def step_row(step: EscalationStep) -> dict[str, object]:
    return {**asdict(step), "channels": list(step.channels), "contacts": list(step.contacts)}


def step_of(row: Mapping[str, Any]) -> EscalationStep:
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


def digest_item_of(row: Any) -> DigestItem:
    """By position, in the order of the fields: thousands are made at once."""
    return DigestItem(
        row[0], Transition(row[1]), row[2], row[3], row[4], row[5], Severity(row[6]), IncidentState(row[7]), row[8], row[9],
        tuple(row[10]), row[11], row[12], row[13], row[14], row[15],
    )  # fmt: skip


def _labels(value: list[list[str]]) -> Labels:
    return tuple((name, text) for name, text in value)
