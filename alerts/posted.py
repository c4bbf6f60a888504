"""Alerts that others send in Alertmanager's form: what they mean here, how repeats merge, when they end. Pure."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from alerts.decide import Known, Policy, fold
from alerts.fingerprint import fingerprints
from monitor.domain import Alert, AlertState, Decision, Labels, Severity
from monitor.plugins import one_line

INSTANCE = "alertmanager"
"""What foreign alerts have in place of a check instance."""
SERVICE_LABELS = ("service", "job", "instance")
_BY_SERVICE = ("alertname", "service")
MOST_LABELS = 64
MOST_CHARS = 16_384
SUMMARY_CHARS = 500
_OWN_SEVERITIES = {severity.name: severity for severity in Severity}
_SEVERITIES = {"critical": Severity.P1, "page": Severity.P1, "error": Severity.P2, "high": Severity.P2, "warning": Severity.P3,
               "info": Severity.P4, "none": Severity.P4}  # fmt: skip


class PostedAlert(NamedTuple):
    """One alert as it was sent. Missing moments are None."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str] = MappingProxyType({})
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    generator_url: str = ""


@dataclass(frozen=True, slots=True)
class PostedPolicy:
    """How foreign alerts become ours."""

    severities: Mapping[str, Severity] = field(default_factory=lambda: dict(_SEVERITIES))
    """By the value of the label ``severity``; ``P1`` to ``P4`` always mean themselves."""
    default: Severity = Severity.P3
    group_by: tuple[str, ...] = _BY_SERVICE
    """Alerts with the same values of these labels fold into one incident."""
    resolve_after: timedelta = timedelta(minutes=5)
    """When an alert ends whose sender names no end and sends it no more."""

    def severity_of(self, labels: Mapping[str, str]) -> Severity:
        said = labels.get("severity", "")
        return _OWN_SEVERITIES.get(said) or self.severities.get(said, self.default)

    def group_of(self, labels: Mapping[str, str]) -> str:
        """``service/Alert``, as our own groups are called, with the other labels behind it."""
        if self.group_by == _BY_SERVICE:
            return f"{service_of(labels)}/{labels.get('alertname', 'Alert')}"
        return f"{INSTANCE}/" + ",".join(f"{name}={labels.get(name, '')}" for name in self.group_by)

    def grouping(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the labels that make the group of an alert with these labels, those that must say nothing among them."""
        if self.group_by != _BY_SERVICE:
            return self.group_by
        silent = next((place for place, name in enumerate(SERVICE_LABELS) if labels.get(name)), len(SERVICE_LABELS))
        return ("alertname", *SERVICE_LABELS[: silent + 1])


def service_of(labels: Mapping[str, str]) -> str:
    """The first of ``SERVICE_LABELS`` that says something."""
    return next((said for said in map(labels.get, SERVICE_LABELS) if said), INSTANCE)


def accept(posted: PostedAlert, policy: PostedPolicy, guides: Container[str], now: datetime) -> Alert:
    """The alert that one posting stands for. Raises ``ValueError`` in plain words when it is not acceptable."""
    (found,) = accept_all([posted], policy, guides, now)
    if isinstance(found, ValueError):
        raise found
    return found


def accept_all(sent: Iterable[PostedAlert], policy: PostedPolicy, guides: Container[str], now: datetime) -> list[Alert | ValueError]:
    """What each posting stands for, or why it is not acceptable. Many at once cost half."""
    read = [_read(posted) for posted in sent]
    prints = iter(fingerprints([words.identity for words in read if isinstance(words, _Words)]))
    found: list[Alert | ValueError] = []
    for words in read:
        if isinstance(words, ValueError):
            found.append(words)
            continue
        try:
            found.append(_accept(words, next(prints), policy, guides, now))
        except ValueError as exc:
            found.append(exc)
    return found


class _Words(NamedTuple):
    """A posting whose words are acceptable, with what says something among them."""

    posted: PostedAlert
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    identity: Labels
    """The labels, sorted."""


def _read(posted: PostedAlert) -> _Words | ValueError:
    labels, annotations = posted.labels, posted.annotations
    texts = [*labels.values(), *annotations.values()]
    if not all(texts) or "\0" in "".join(texts):
        labels, annotations = _words(labels), _words(annotations)
        texts = [*labels.values(), *annotations.values()]
    if not labels:
        return ValueError("at least one label pair required")
    bad = _bad_name((*labels, *annotations))
    if bad is not None:
        return ValueError(f"invalid label name {bad[:80]!r}")
    if len(texts) > MOST_LABELS or sum(map(len, texts)) > MOST_CHARS:
        return ValueError(f"more than {MOST_LABELS} labels and annotations, or more than {MOST_CHARS} characters in them")
    return _Words(posted, labels, annotations, tuple(sorted(labels.items())))


def _accept(words: _Words, print_: str, policy: PostedPolicy, guides: Container[str], now: datetime) -> Alert:
    posted, labels, annotations, identity = words
    starts_at = posted.starts_at or posted.ends_at or now
    if posted.starts_at is None and starts_at > now:
        starts_at = now
    ends_at = posted.ends_at or now + policy.resolve_after
    if ends_at < starts_at:
        raise ValueError("start time must be before end time")
    group = policy.group_of(labels)
    over = ends_at <= now
    code = labels.get("incident")
    return Alert(
        fingerprint=print_,
        instance=INSTANCE,
        group=group,
        home=group,
        service=one_line(service_of(labels), limit=100),
        labels=identity,
        code=code if code is not None and code in guides else None,
        severity=policy.severity_of(labels),
        summary=_summary(annotations) or " ".join(f"{name}={text}" for name, text in identity)[:SUMMARY_CHARS],
        facts=(),
        state=AlertState.RESOLVED if over else AlertState.FIRING,
        bad_runs=0 if over else 1,
        good_runs=1 if over else 0,
        pending_since=starts_at,
        firing_since=starts_at,
        resolved_at=ends_at if over else None,
        annotations=tuple(sorted(annotations.items())),
        generator_url=posted.generator_url[:2000].replace("\0", ""),
        ends_at=ends_at,
        ends_unsaid=posted.ends_at is None,
        updated_at=now,
    )


def _summary(annotations: Mapping[str, str]) -> str:
    said = annotations.get("summary") or annotations.get("description") or annotations.get("message") or ""
    return one_line(said, limit=SUMMARY_CHARS)


def receive(known: Known, sent: Iterable[Alert], policy: Policy, now: datetime) -> Decision:
    """What a batch of accepted alerts changes. A later one of the same labels counts; an end of what nobody knows is no news."""
    live = {alert.fingerprint: alert for alert in known.alerts}
    changed: dict[str, Alert] = {}
    for alert in sent:
        old = changed.get(alert.fingerprint) or live.get(alert.fingerprint)
        if old is None or old.state is AlertState.RESOLVED:
            if alert.state is AlertState.FIRING:
                changed[alert.fingerprint] = alert
            continue
        changed[alert.fingerprint] = merge(old, alert, now)
    return fold(known, tuple(changed.values()), policy, now, because="its sender says that it is over")


def lapse(known: Known, policy: Policy, now: datetime) -> Decision:
    """What ends because nobody has sent it any more: foreign alerts whose end has come."""
    return fold(known, lapsed(known.alerts, now), policy, now, because="its sender has not repeated it")


def lapsed(alerts: Iterable[Alert], now: datetime) -> tuple[Alert, ...]:
    """Those that fire though their end has come, as they are from that end on."""
    over = [alert for alert in alerts if alert.ends_at is not None and alert.ends_at <= now and alert.state is AlertState.FIRING]
    return tuple(alert._replace(state=AlertState.RESOLVED, resolved_at=alert.ends_at) for alert in over)


def merge(old: Alert, new: Alert, now: datetime) -> Alert:
    """Both sendings as one: the earlier begin, the newer words, and an end that was named over one that was not.

    It stays where it was, whatever ``group_by`` says meanwhile: the incident that it holds open is its own.
    """
    starts_at = min(old.pending_since, new.pending_since)
    ends_at, unsaid = new.ends_at, new.ends_unsaid
    assert ends_at is not None
    if new.state is AlertState.FIRING and old.ends_at is not None and old.ends_at > ends_at and not old.ends_unsaid:
        ends_at, unsaid = old.ends_at, False
    return new._replace(
        group=old.group,
        home=old.home,
        pending_since=starts_at,
        firing_since=starts_at,
        ends_at=ends_at,
        ends_unsaid=unsaid,
        resolved_at=ends_at if new.state is AlertState.RESOLVED else None,
        updated_at=now,
    )


def _words(sent: Mapping[str, str]) -> Mapping[str, str]:
    """Labels or annotations that say something, without what no database stores."""
    return {name: text.replace("\0", "\ufffd") for name, text in sent.items() if text}


@lru_cache(maxsize=4096)
def _bad_name(names: tuple[str, ...]) -> str | None:
    """The first that is no label's name. Senders use few sets of names, in few orders."""
    return next((name for name in names if not (name.isascii() and name.isidentifier())), None)
