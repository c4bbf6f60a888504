"""How incidents begin: what is first known of them, and who hears at once. Pure."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from alerts import escalation
from alerts.escalation import Ascent, ascend, join
from alerts.fingerprint import incident_id
from alerts.muting import Muting, muted_by
from alerts.oncall import People
from monitor.domain import (
    Alert,
    Decision,
    EscalationStep,
    Guide,
    Incident,
    IncidentState,
    Labels,
    ResponsePolicy,
    Severity,
    TimelineEntry,
    Transition,
)
from monitor.plugins import one_line

EVIDENCE_LINES = 8
MOST_LINES = 3
"""Alerts that get a line each in an incident's history when they come at once; more share one, with the first ``MOST_NAMED`` named."""
MOST_NAMED = 10
_NO_PROMISE = ResponsePolicy()
_NOT_BEGUN = Ascent(0, (), None, None, (), ())


@dataclass(frozen=True, slots=True)
class Opening:
    """Opens the incidents of one decision. Those of the same severity begin to climb the same chain: it is asked once."""

    chains: Mapping[Severity, tuple[EscalationStep, ...]]
    responses: Mapping[Severity, ResponsePolicy]
    guides: Mapping[str, Guide]
    people: People
    muting: Muting
    now: datetime
    _ascents: dict[Severity, Ascent] = field(default_factory=dict)

    def open(self, group: str, firing: Sequence[Alert]) -> Decision:
        """The incident of a group that begins to fire. It tells nobody while all of the group's own alerts are muted."""
        worst = firing[0] if len(firing) == 1 else min(firing, key=lambda alert: (alert.severity, alert.fingerprint))
        id_ = incident_id(group, self.now)
        lines = history_lines(firing, lambda alert: alert.severity.name)
        entries = tuple([TimelineEntry(id_, self.now, "opened", text) for text in lines])
        reasons = muted_by(firing, group, self.muting, self.now)
        if reasons:
            silent = self._incident(id_, group, worst, _NOT_BEGUN)
            return join(Decision(timeline=entries), escalation.mute(silent, reasons, self.now))
        done = self._ascent(worst.severity)
        return Decision(
            incidents=(self._incident(id_, group, worst, done),),
            intents=done.intents(id_),
            timeline=entries + done.timeline(id_, self.now),
        )

    def _ascent(self, severity: Severity) -> Ascent:
        done = self._ascents.get(severity)
        if done is None:
            response = self.responses.get(severity, _NO_PROMISE)
            done = ascend(self.chains[severity], self.now, 0, (), response, self.now, Transition.TRIGGERED, self.people)
            self._ascents[severity] = done
        return done

    def _incident(self, id_: str, group: str, worst: Alert, done: Ascent) -> Incident:
        guide = self.guides.get(worst.code) if worst.code else None
        return Incident(
            id=id_,
            group=group,
            code=worst.code,
            service=worst.service,
            severity=worst.severity,
            state=IncidentState.OPEN,
            title=guide.title if guide else _value(worst.labels, "alertname", "Alert"),
            summary=worst.summary,
            evidence=evidence_from(worst),
            first_step=guide.first_step if guide else _value(worst.annotations, "runbook_url", ""),
            opened_at=self.now,
            chain=self.chains[worst.severity],
            chain_since=self.now,
            told=done.told,
            step=done.step,
            next_escalation_at=done.next_at,
            response=self.responses.get(worst.severity, _NO_PROMISE),
            remind_at=done.remind_at,
        )


def evidence_from(alert: Alert) -> tuple[str, ...]:
    """What was seen, as lines. Of a foreign alert: what it says that is not shown elsewhere."""
    if alert.facts or not alert.is_foreign:
        return tuple([f"{name}: {value}" for name, value in alert.facts[:EVIDENCE_LINES]])
    said = [pair for pair in alert.annotations if pair[0] not in {"summary", "runbook_url"}]
    said += [pair for pair in alert.labels if pair[0] not in {"alertname", "severity"}]
    return tuple([f"{name}: {one_line(text)}" for name, text in said[:EVIDENCE_LINES]])


def history_lines(news: Sequence[Alert], word: Callable[[Alert], str]) -> list[str]:
    """What is written of alerts in an incident's history: a line each, or when many come at once, one line for each word."""
    if len(news) <= MOST_LINES:
        return [f"{word(alert)}: {alert.summary}" for alert in news]
    said: dict[str, list[str]] = defaultdict(list)
    for alert in news:
        said[word(alert)].append(alert.summary)
    return [
        f"{before}: {'; '.join(texts[:MOST_NAMED])}{f'; and {len(texts) - MOST_NAMED} more' if len(texts) > MOST_NAMED else ''}"
        for before, texts in said.items()
    ]


def _value(labels: Labels, wanted: str, otherwise: str) -> str:
    for name, value in labels:
        if name == wanted:
            return value
    return otherwise
