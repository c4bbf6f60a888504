"""Alerts, incidents and what goes with them as plain values in the order of their table's columns, and back. No SQL here.

Moments are microseconds since 1970, lists are JSON text. What many rows have in common (a chain, a promise) is encoded once.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from monitor.domain import (
    Alert,
    AlertState,
    EscalationStep,
    Incident,
    IncidentState,
    Labels,
    Matcher,
    ResponsePolicy,
    Severity,
    Silence,
    TimelineEntry,
)
from monitor.store.rows import step_of, step_row
from monitor.store.schema import micros, moment_of

_PAIRS = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_WORDS = msgspec.json.Decoder(tuple[str, ...])
_SEVERITIES = {int(severity): severity for severity in Severity}
_ALERT_STATES = {state.value: state for state in AlertState}
_INCIDENT_STATES = {state.value: state for state in IncidentState}


def alert_values(alert: Alert) -> tuple[Any, ...]:
    (fingerprint, instance, group, labels, code, severity, summary, facts, state, bad_runs, good_runs, pending_since, service, home, fells,
     doubts, firing_since, resolved_at, good_since, annotations, generator_url, ends_at, ends_unsaid, updated_at) = alert  # fmt: skip
    return (
        fingerprint,
        instance,
        group,
        service,
        home,
        fells,
        doubts,
        _text(labels),
        code,
        int(severity),
        summary,
        _text(facts),
        state.value,
        bad_runs,
        good_runs,
        micros(pending_since),
        _micros(firing_since),
        _micros(resolved_at),
        _micros(good_since),
        _text(annotations),
        generator_url,
        _micros(ends_at),
        ends_unsaid,
        _micros(updated_at),
    )


def alert_from(row: Sequence[Any]) -> Alert:
    (fingerprint, instance, group, service, home, fells, doubts, labels, code, severity, summary, facts, state, bad_runs, good_runs,
     pending_since, firing_since, resolved_at, good_since, annotations, generator_url, ends_at, ends_unsaid, updated_at) = row  # fmt: skip
    return Alert(
        fingerprint=fingerprint,
        instance=instance,
        group=group,
        labels=_pairs(labels),
        code=code,
        severity=_SEVERITIES[severity],
        summary=summary,
        facts=_pairs(facts),
        state=_ALERT_STATES[state],
        bad_runs=bad_runs,
        good_runs=good_runs,
        pending_since=moment_of(pending_since),
        service=service,
        home=home,
        fells=bool(fells),
        doubts=bool(doubts),
        firing_since=_moment(firing_since),
        resolved_at=_moment(resolved_at),
        good_since=_moment(good_since),
        annotations=_pairs(annotations),
        generator_url=generator_url,
        ends_at=_moment(ends_at),
        ends_unsaid=bool(ends_unsaid),
        updated_at=_moment(updated_at),
    )


def incident_values(incident: Incident) -> tuple[Any, ...]:
    return (
        incident.id,
        incident.group,
        incident.code,
        incident.service,
        int(incident.severity),
        incident.state.value,
        incident.title,
        incident.summary,
        _text(incident.evidence),
        incident.first_step,
        micros(incident.opened_at),
        _chain_text(incident.chain),
        micros(incident.chain_since),
        _text(incident.told),
        incident.step,
        _micros(incident.next_escalation_at),
        _micros(incident.acked_at),
        incident.acked_by,
        _micros(incident.resolved_at),
        _response_text(incident.response),
        incident.asked,
        _text(incident.muted),
        _micros(incident.muted_at),
        _micros(incident.breached_at),
        _micros(incident.ack_expires_at),
        _micros(incident.remind_at),
        _micros(incident.wake_at),
    )


def incident_from(row: Sequence[Any]) -> Incident:
    """The same incident is read again with each batch of alerts that joins it: where a row is nothing but texts and numbers, once."""
    try:
        return _incident_of(tuple(row))
    except TypeError:  # PostgreSQL's driver has made lists of JSON already
        return _incident(row)


def _incident(row: Sequence[Any]) -> Incident:
    (id_, group, code, service, severity, state, title, summary, evidence, first_step, opened_at, chain, chain_since, told, step,
     next_escalation_at, acked_at, acked_by, resolved_at, response, asked, muted, muted_at, breached_at, ack_expires_at, remind_at,
     _wake_at) = row  # fmt: skip
    return Incident(
        id=id_,
        group=group,
        code=code,
        service=service,
        severity=_SEVERITIES[severity],
        state=_INCIDENT_STATES[state],
        title=title,
        summary=summary,
        evidence=_words(evidence),
        first_step=first_step,
        opened_at=moment_of(opened_at),
        chain=_chain_of(chain) if isinstance(chain, str) else tuple(step_of(one) for one in chain),
        chain_since=moment_of(chain_since),
        told=_words(told),
        step=step,
        next_escalation_at=_moment(next_escalation_at),
        acked_at=_moment(acked_at),
        acked_by=acked_by,
        resolved_at=_moment(resolved_at),
        response=_response_of(response) if isinstance(response, str) else ResponsePolicy(**response),
        asked=asked,
        muted=_words(muted),
        muted_at=_moment(muted_at),
        breached_at=_moment(breached_at),
        ack_expires_at=_moment(ack_expires_at),
        remind_at=_moment(remind_at),
    )


_incident_of = lru_cache(maxsize=256)(_incident)


def silence_from(row: Sequence[Any]) -> Silence:
    id_, matchers, starts_at, ends_at, created_by, comment, updated_at = row
    conditions = tuple(Matcher(**matcher) for matcher in _value(matchers))
    return Silence(
        id_,
        conditions,
        moment_of(starts_at),
        moment_of(ends_at),
        created_by,
        comment,
        moment_of(updated_at),
    )


TIMELINE = ("incident_id", "at", "kind", "text", "actor")


def timeline_values(entry: TimelineEntry) -> tuple[Any, ...]:
    """In the order of ``TIMELINE``."""
    return entry.incident_id, micros(entry.at), entry.kind, entry.text, entry.actor


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else micros(moment)


def _moment(value: int | None) -> datetime | None:
    return None if value is None else moment_of(value)


def _text(value: Sequence[Any]) -> str:
    if not value:
        return "[]"
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # half a character, from a broken log line: JSON can say it in ASCII
        return json.dumps(value)


def _pairs(value: Any) -> Labels:
    if value == "[]":
        return ()
    try:
        return _PAIRS.decode(value)
    except (msgspec.DecodeError, TypeError):
        return tuple((name, text) for name, text in _value(value))


def _words(value: Any) -> tuple[str, ...]:
    if value == "[]":
        return ()
    try:
        return _WORDS.decode(value)
    except (msgspec.DecodeError, TypeError):
        return tuple(_value(value))


def _value(value: Any) -> Any:
    """What half a character is in, or what PostgreSQL's driver has decoded already."""
    return json.loads(value) if isinstance(value, str) else value


@lru_cache(maxsize=256)
def _chain_text(chain: tuple[EscalationStep, ...]) -> str:
    return json.dumps([step_row(step) for step in chain])


@lru_cache(maxsize=256)
def _chain_of(text: str) -> tuple[EscalationStep, ...]:
    return tuple(step_of(step) for step in json.loads(text))


@lru_cache(maxsize=256)
def _response_text(response: ResponsePolicy) -> str:
    return json.dumps(asdict(response))


@lru_cache(maxsize=256)
def _response_of(text: str) -> ResponsePolicy:
    return ResponsePolicy(**json.loads(text))
