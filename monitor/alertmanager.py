"""What Alertmanager's v2 API shows of this monitor: alerts, groups, silences and its configuration, in Alertmanager's own shapes.

Source of the shapes and rules: Alertmanager's ``api/v2/openapi.yaml`` and the behaviour of 0.25.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from alerts.matchers import literal, matches, show_matcher
from alerts.muting import Muting, match_labels, silencing, state_of
from alerts.posted import INSTANCE, PostedPolicy
from monitor.config.settings import Settings
from monitor.domain import Alert, Matcher, Severity, Silence

_OWN_ENDS = timedelta(minutes=5)
_STATE_ORDER = {"active": 0, "pending": 1, "expired": 2}


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which alerts are asked for."""

    matchers: tuple[Matcher, ...] = ()
    receiver: str = ""
    """Expression over the receiver's name; empty matches all."""
    active: bool = True
    silenced: bool = True
    inhibited: bool = True


def show_alerts(found: Iterable[Alert], muting: Muting, query: AlertQuery, external_url: str, now: datetime) -> Iterator[dict[str, Any]]:
    """The alerts that fire, as ``GET /alerts`` lists them: in the order in which they are given, that of their fingerprints."""
    for alert in found:
        labels = match_labels(alert) if alert.instance != INSTANCE else dict(alert.labels)
        if not matches(query.matchers, match_labels(alert)) or not _receives(query.receiver, alert.severity.name):
            continue
        silenced_by = [silence.id for silence in silencing(muting.silences, match_labels(alert), now)]
        silenced_by += [f"maintenance/{w.name}" for w in muting.windows if w.active_until(now) and matches(w.matchers, labels)]
        inhibited_by = [source.fingerprint for source in muting.inhibiting(alert)]
        if (silenced_by and not query.silenced) or (inhibited_by and not query.inhibited):
            continue
        suppressed = bool(silenced_by or inhibited_by)
        if not suppressed and not query.active:
            continue
        yield {
            "annotations": dict(alert.annotations) if alert.instance == INSTANCE else {"summary": alert.summary, **dict(alert.facts)},
            "endsAt": stamp(alert.ends_at or now + _OWN_ENDS),
            "fingerprint": alert.fingerprint,
            "receivers": [{"name": alert.severity.name}],
            "startsAt": stamp(alert.firing_since or alert.pending_since),
            "status": {
                "inhibitedBy": inhibited_by,
                "silencedBy": silenced_by,
                "mutedBy": [],
                "state": "suppressed" if suppressed else "active",
            },
            "updatedAt": stamp(alert.updated_at or alert.firing_since or alert.pending_since),
            "generatorURL": alert.generator_url or f"{external_url}/",
            "labels": labels,
        }


def group_alerts(shown: Iterable[dict[str, Any]], policy: PostedPolicy) -> list[dict[str, Any]]:
    """The same alerts, as ``GET /alerts/groups`` lists them: by receiver and by the labels that fold alerts."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[dict[str, Any]]] = defaultdict(list)
    for alert in shown:
        labels = tuple((name, alert["labels"][name]) for name in sorted(policy.group_by) if name in alert["labels"])
        groups[alert["receivers"][0]["name"], labels].append(alert)
    return [{"labels": dict(labels), "receiver": {"name": name}, "alerts": alerts} for (name, labels), alerts in sorted(groups.items())]


def show_silence(silence: Silence, now: datetime) -> dict[str, Any]:
    return {
        "id": silence.id,
        "status": {"state": state_of(silence, now)},
        "updatedAt": stamp(silence.updated_at),
        "comment": silence.comment,
        "createdBy": silence.created_by,
        "endsAt": stamp(silence.ends_at),
        "matchers": [{"isEqual": m.is_equal, "isRegex": m.is_regex, "name": m.name, "value": m.value} for m in silence.matchers],
        "startsAt": stamp(silence.starts_at),
    }


def show_silences(found: Iterable[Silence], matchers: tuple[Matcher, ...], now: datetime) -> list[dict[str, Any]]:
    """Active ones by their end, pending ones by their begin, expired ones last, the newest first."""
    kept = [silence for silence in found if _silence_fits(silence, matchers)]

    def place(silence: Silence) -> tuple[int, float]:
        state = state_of(silence, now)
        when = {"active": silence.ends_at, "pending": silence.starts_at, "expired": silence.ends_at}[state].timestamp()
        return _STATE_ORDER[state], -when if state == "expired" else when

    return [show_silence(silence, now) for silence in sorted(kept, key=place)]


def show_status(settings: Settings, version: str, started_at: datetime) -> dict[str, Any]:
    """``GET /status``; ``config.original`` is an Alertmanager configuration that routes as this monitor does."""
    return {
        "cluster": {"name": "", "peers": [], "status": "disabled"},
        "config": {"original": json.dumps(_configuration(settings), indent=2)},  # JSON is YAML
        "uptime": stamp(started_at),
        "versionInfo": {
            "branch": "",
            "buildDate": "",
            "buildUser": "",
            "goVersion": "",
            "revision": "",
            "version": version,
        },
    }


def receivers() -> list[dict[str, str]]:
    """One receiver for every severity: behind it is that severity's chain of escalation."""
    return [{"name": severity.name} for severity in Severity]


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds, as Alertmanager writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _configuration(settings: Settings) -> Mapping[str, Any]:
    policy = settings.posted
    said: dict[Severity, list[str]] = {severity: [severity.name] for severity in Severity}
    for word, severity in policy.severities.items():
        said[severity].append(word)
    children = [
        {"receiver": severity.name, "matchers": [show_matcher(Matcher("severity", "|".join(map(literal, words)), is_regex=True))]}
        for severity, words in said.items()
    ]
    rules = [
        {
            "source_matchers": [show_matcher(matcher) for matcher in rule.source],
            "target_matchers": [show_matcher(matcher) for matcher in rule.target],
            "equal": list(rule.equal),
        }
        for rule in settings.inhibitions
    ]
    return {
        "global": {"resolve_timeout": f"{policy.resolve_after.total_seconds():g}s"},
        "route": {"receiver": policy.default.name, "group_by": list(policy.group_by), "routes": children},
        "inhibit_rules": rules,
        "receivers": receivers(),
    }


def _receives(expression: str, name: str) -> bool:
    return not expression or matches([Matcher("receiver", expression, is_regex=True)], {"receiver": name})


def _silence_fits(silence: Silence, matchers: tuple[Matcher, ...]) -> bool:
    """A filter looks at the silence's own conditions: its literal ones are its labels."""
    return matches(matchers, {matcher.name: matcher.value for matcher in silence.matchers})
