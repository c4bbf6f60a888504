"""What the state of a monitor says about the past: what its checks saw, what people did, and what was sent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from alerts.posted import INSTANCE, PostedAlert
from monitor.domain import Alert, Incident, Silence, TimelineEntry
from monitor.store import Recorded, Sent
from monitor.stretches import EXTEND_EVERY_S, Stretch

SHORTEST_GAP = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Somebody took an incident."""

    at: datetime
    group: str
    who: str


@dataclass(frozen=True, slots=True)
class Posting:
    """A foreign alert that began or ended."""

    at: datetime
    posted: PostedAlert


@dataclass(frozen=True, slots=True)
class Past:
    stretches: tuple[Stretch, ...]
    """In the order of their begins."""
    silences: tuple[Silence, ...]
    incidents: dict[str, Incident]
    sent: tuple[Sent, ...]
    """What rules decided to send: in the order of time."""
    left_out: int
    """Notifications that no rule decided: of stand-ins, of channels that fail, and what was sent again."""
    acknowledgements: tuple[Acknowledgement, ...]
    postings: tuple[Posting, ...]
    until: datetime

    @property
    def begin(self) -> datetime:
        """Of what can be replayed."""
        return self.stretches[0].first_at if self.stretches else self.until

    def gaps(self, shortest: timedelta) -> tuple[tuple[datetime, datetime], ...]:
        """When the monitor did not run, or what it saw last was lost: nobody looked, and a start followed.

        What it saw in the newest minutes may not be written yet.
        """
        found, covered = [], self.begin
        for stretch in self.stretches:
            if stretch.starts and stretch.first_at - covered > shortest:
                found.append((covered, stretch.first_at))
            covered = max(covered, stretch.last_at)
        if self.until - covered > timedelta(seconds=EXTEND_EVERY_S) + shortest:
            found.append((covered, self.until))
        return tuple(found)


def past_of(recorded: Recorded, until: datetime) -> Past:
    """Everything that the state knows, up to a moment. Raises ``StoreError``."""
    stretches, sent = tuple(recorded.stretches()), recorded.sent()
    timelines: dict[str, list[TimelineEntry]] = {}
    for entry in recorded.timeline():
        timelines.setdefault(entry.incident_id, []).append(entry)
    alerts, incidents = recorded.alerts(), {incident.id: incident for incident in recorded.incidents()}
    rows = [row for row in sent if row.incident_id in incidents]
    ruled = _ruled(rows, timelines, {alert.group for alert in alerts if alert.instance == "delivery/monitor"}, incidents)
    return Past(
        stretches=stretches,
        silences=recorded.silences(),
        incidents=incidents,
        sent=ruled,
        left_out=len(rows) - len(ruled),
        acknowledgements=tuple(
            Acknowledgement(entry.at, incidents[id_].group, entry.actor)
            for id_, entries in timelines.items()
            if id_ in incidents
            for entry in entries
            if entry.kind == "acked"
        ),
        postings=_postings(alerts, incidents.values(), timelines),
        until=until,
    )


def _ruled(
    rows: Sequence[Sent], timelines: dict[str, list[TimelineEntry]], own: set[str], incidents: dict[str, Incident]
) -> tuple[Sent, ...]:
    """Every decision of a rule has its line in the timeline at the same moment; what a stand-in or a comparison sent has not.

    A channel that was only told as a stand-in hears the end too; that is left out with it.
    """
    lines = {(entry.incident_id, entry.at, entry.kind) for entries in timelines.values() for entry in entries}
    decided = [row for row in rows if (row.incident_id, row.at, row.transition.value) in lines]
    begun = {(row.incident_id, row.channel) for row in decided if row.opens}
    return tuple(row for row in decided if (row.incident_id, row.channel) in begun and incidents[row.incident_id].group not in own)


def _postings(alerts: Iterable[Alert], incidents: Iterable[Incident], timelines: dict[str, list[TimelineEntry]]) -> tuple[Posting, ...]:
    """Begins and ends of foreign alerts, from the lines of their incidents: an alert's row knows only its last time.

    A line that has other words than every alert of the group has today stands for one of them: what folds is alike.
    """
    foreign = [alert for alert in alerts if alert.instance == INSTANCE]
    by_words = {(alert.group, alert.summary): alert for alert in foreign}
    own = {alert.group for alert in alerts if alert.instance != INSTANCE}
    by_group = {alert.group: alert for alert in foreign if alert.group not in own}
    found: list[Posting] = []
    for incident in incidents:
        fires: dict[str, Alert] = {}
        for entry in timelines.get(incident.id, ()):
            word, _, words = entry.text.partition(": ")
            alert = by_words.get((incident.group, words)) or by_group.get(incident.group)
            if alert is not None and (entry.kind == "opened" or (entry.kind == "alert" and word == "also")):
                fires[alert.fingerprint] = alert
                found.append(Posting(entry.at, PostedAlert(dict(alert.labels), dict(alert.annotations), entry.at)))
            elif alert is not None and entry.kind == "alert":
                fires.pop(alert.fingerprint, None)
                found.append(_end(entry.at, alert))
            elif entry.kind == "resolved":
                found += [_end(entry.at, alert) for alert in fires.values()]
    return tuple(sorted(found, key=lambda posting: posting.at))


def _end(at: datetime, alert: Alert) -> Posting:
    return Posting(at, PostedAlert(dict(alert.labels), dict(alert.annotations), ends_at=at))
