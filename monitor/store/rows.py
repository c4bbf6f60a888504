"""Rows to domain values and back. No SQL here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
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
from monitor.store.schema import EPOCH, MICROSECOND

_WORDS = msgspec.json.Decoder(tuple[str, ...])
_TRANSITIONS = {transition.value: transition for transition in Transition}
_SEVERITIES = {int(severity): severity for severity in Severity}
_STATES = {state.value: state for state in IncidentState}


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


def digest_item_of(row: Sequence[Any]) -> DigestItem:
    """By position, in the order of the fields, and as the driver has them: thousands are made at once."""
    (number, transition, reason, id_, code, service, severity, state, title, summary, evidence, first_step, opened_at, resolved_at,
     acked_by, asked) = row  # fmt: skip
    return DigestItem(
        number,
        _TRANSITIONS[transition],
        reason,
        id_,
        code,
        service,
        _SEVERITIES[severity],
        _STATES[state],
        title,
        summary,
        _words(evidence),
        first_step,
        EPOCH + opened_at * MICROSECOND,
        None if resolved_at is None else EPOCH + resolved_at * MICROSECOND,
        acked_by,
        asked,
    )


def _words(value: Any) -> tuple[str, ...]:
    """JSON text, or what PostgreSQL's driver has decoded already. msgspec refuses half a character, which the text may have."""
    if not isinstance(value, str):
        return tuple(value)
    try:
        return _WORDS.decode(value)
    except msgspec.DecodeError:
        return tuple(json.loads(value))


def _labels(value: list[list[str]]) -> Labels:
    return tuple((name, text) for name, text in value)
