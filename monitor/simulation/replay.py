"""The replay: what was seen and done, in the order of time, through the decisions that the running monitor makes.

A run that cannot change anything is not looked at: a check that is well, or that goes on firing, costs one step a stretch.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from alerts import escalation
from alerts.decide import CHECK_BLIND, Policy, decide, groups_of, settle
from alerts.muting import Muting
from alerts.posted import INSTANCE, accept, receive
from monitor.config.settings import Settings
from monitor.domain import AlertPolicy, AlertState, CheckResult, Decision, Guide, Incident, IncidentState, Outcome
from monitor.engine import TICK_S
from monitor.memory import shape_of
from monitor.policies import causes_of, policy_of
from monitor.simulation.past import SHORTEST_GAP, Acknowledgement, Past, Posting
from monitor.simulation.track import Track
from monitor.simulation.world import Told, World
from monitor.store import Causes

BEGIN, RUN, POST, ACKNOWLEDGE, MUTE, WAKE = range(6)
"""What may happen, in the order in which it does at the same moment."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it, and what could not be known."""

    told: tuple[Told, ...]
    incidents: Mapping[str, Incident]
    runs: int
    gaps: tuple[tuple[datetime, datetime], ...]
    """When nobody looked."""
    never_looked: tuple[str, ...]
    """Checks of the configuration without any history."""
    not_watched: tuple[str, ...]
    """Checks with history that are not in the configuration."""
    configured_otherwise: tuple[str, ...]
    """Checks whose own keys are others than when they looked: their thresholds were judged as they were then."""
    unknown: tuple[str, ...]
    """Findings that the checks do not know any more."""
    taken: int
    """Acknowledgements that fitted an incident."""
    not_taken: int
    """Acknowledgements without an incident to fit."""


class Replay:
    """``run`` once. ``progress`` is called with (stretches done, stretches in all)."""

    def __init__(
        self,
        past: Past,
        settings: Settings,
        guides: Mapping[str, Guide],
        *,
        unacknowledged: bool = False,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._past = past
        self._settings = settings
        self._guides = guides
        self._unacknowledged = unacknowledged
        self._progress = progress
        self._world = World()
        self._tracks = {instance.key: Track(instance) for instance in settings.instances}
        self._policies = {instance.key: policy_of(settings, guides, instance.policy) for instance in settings.instances}
        self._everybody = policy_of(settings, guides, AlertPolicy())
        fastest_s = min((instance.every_s for instance in settings.instances), default=0.0)
        self._gaps = past.gaps(max(SHORTEST_GAP, timedelta(seconds=3 * fastest_s)))
        self._heap: list[tuple[datetime, int, int, Any]] = []
        self._serial = count()
        self._done = 0
        self._taken = self._not_taken = 0
        self._mutes = bool(past.silences or settings.windows or settings.inhibitions)

    def run(self) -> Replayed:
        """Everything up to the end of the past."""
        self._schedule()
        handlers: dict[int, Callable[[datetime, Any], None]] = {
            BEGIN: self._begin,
            RUN: self._run,
            POST: self._post,
            ACKNOWLEDGE: self._acknowledge,
            MUTE: self._settle,
            WAKE: self._wake,
        }
        while self._heap and self._heap[0][0] <= self._past.until:
            at, kind, _, what = heapq.heappop(self._heap)
            handlers[kind](at, what)
        return self._result()

    # --- what may happen ---------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        past = self._past
        for stretch in past.stretches:
            if stretch.instance in self._tracks:
                self._tracks[stretch.instance].ahead.append(stretch)
        for track in self._tracks.values():
            self._go_on(track)
        for posting in past.postings:
            self._push(posting.at, POST, posting)
        if not self._unacknowledged:
            for acknowledgement in past.acknowledgements:
                self._push(acknowledgement.at, ACKNOWLEDGE, acknowledgement)
        edges = {at for silence in past.silences for at in (silence.starts_at, silence.ends_at)}
        for window in self._settings.windows:
            edges |= {at for opening in window.openings(past.begin, past.until) for at in opening}
        for at in edges:
            self._push(self._awake(at), MUTE)

    def _push(self, at: datetime, kind: int, what: object = None) -> None:
        heapq.heappush(self._heap, (at, kind, next(self._serial), what))

    def _awake(self, at: datetime) -> datetime:
        """The first moment from then on at which the monitor ran."""
        return next((end for begin, end in self._gaps if begin < at < end), at)

    def _go_on(self, track: Track) -> None:
        """To the begin of the track's next stretch."""
        if track.ahead:
            self._push(track.ahead[0].first_at, BEGIN, track)

    # --- what happens ------------------------------------------------------------------------------------------------

    def _begin(self, at: datetime, track: Track) -> None:
        track.begin()
        self._go_on(track)
        self._done += 1
        self._progress(self._done, len(self._past.stretches))
        track.next_moment()
        self._run(at, track)

    def _run(self, at: datetime, track: Track) -> None:
        looked = track.see(at)
        if looked is None:
            track.skip()
            return
        result, changed = looked
        key = track.instance.key
        if changed or not track.calm:
            well = result.outcome is Outcome.OK and not self._world.live(key)
            decided = Decision() if well else self._decide(track, result, at)
            track.calm = not decided and not track.flapping and not self._waits(key, result.outcome)
        if track.calm and not any(rule.hours for rule in track.instance.severities):
            track.skip()
            return
        following = track.next_moment()
        if following is not None:
            self._push(following, RUN, track)

    def _decide(self, track: Track, result: CheckResult, at: datetime) -> Decision:
        instance = track.instance
        policy = replace(self._policies[instance.key], depends_on=instance.depends_on, muting=self._muting(at), flapping=track.flapping)
        known = self._world.known(instance.key, groups_of(result), causes_of(instance, at))
        decided = decide(known, result, policy, at)
        self._keep(decided, at, instance.key)
        return decided

    def _waits(self, key: str, outcome: Outcome) -> bool:
        """Whether another run that sees the same could change something."""
        live = self._world.live(key)
        if outcome is Outcome.BLIND:
            blind = (alert for alert in live if dict(alert.labels)["alertname"] == CHECK_BLIND.name)
            return any(alert.state is AlertState.PENDING for alert in blind)
        return any(outcome is Outcome.OK or alert.state is AlertState.PENDING or alert.good_runs > 0 for alert in live)

    def _post(self, at: datetime, posting: Posting) -> None:
        try:
            alert = accept(posting.posted, self._settings.posted, self._guides, at)
        except ValueError:  # it was acceptable then; what cannot be read back any more tells nobody
            return
        stands = self._world.find(alert.fingerprint, INSTANCE)
        known = self._world.known("", {stands.group if stands else alert.group}, Causes())
        self._keep(receive(known, [alert], self._policy_now(at), at), at, INSTANCE)

    def _acknowledge(self, at: datetime, taken: Acknowledgement) -> None:
        incident = self._world.open_in(taken.group)
        decided = Decision() if incident is None else escalation.acknowledge(incident, taken.who, at)
        self._taken += bool(decided)
        self._not_taken += not decided
        self._keep(decided, at)

    def _settle(self, at: datetime, _: object) -> None:
        policy = self._policy_now(at)
        for incident in self._world.unresolved():
            self._keep(settle(incident, self._world.firing_in(incident.group), policy, at), at)

    def _wake(self, at: datetime, incident_id: str) -> None:
        incident = self._world.incidents[incident_id]
        if incident.state is not IncidentState.RESOLVED and incident.wake_at is not None and incident.wake_at <= at:
            self._keep(escalation.escalate(incident, at, self._settings.people), at)

    # --- what comes of it --------------------------------------------------------------------------------------------

    def _keep(self, decided: Decision, at: datetime, by: str = "") -> None:
        self._world.keep(decided, at)
        for incident in decided.incidents:
            if incident.wake_at is not None:
                soonest = at if incident.wake_at > at else at + timedelta(seconds=TICK_S)
                self._push(self._awake(max(incident.wake_at, soonest)), WAKE, incident.id)
        if decided.alerts and self._settings.inhibitions:
            self._push(at, MUTE)
        for alert in decided.alerts:
            track = self._tracks.get(alert.instance)
            if alert.instance != by and track is not None:
                self._rouse(track, at)

    def _rouse(self, track: Track, at: datetime) -> None:
        """Something else changed an alert of this instance: its next run counts again."""
        track.calm = False
        following = track.moment_after(at) if track.asleep else None
        if following is not None:
            track.asleep = False
            self._push(following, RUN, track)

    def _policy_now(self, at: datetime) -> Policy:
        return replace(self._everybody, muting=self._muting(at))

    def _muting(self, at: datetime) -> Muting:
        if not self._mutes:
            return Muting()
        active = tuple(silence for silence in self._past.silences if silence.starts_at <= at < silence.ends_at)
        inhibitions = self._settings.inhibitions
        return Muting(active, self._settings.windows, inhibitions, self._world.firing() if inhibitions else ())

    def _result(self) -> Replayed:
        looked = {stretch.instance for stretch in self._past.stretches}
        now = {key: shape_of(track.instance) for key, track in self._tracks.items()}
        otherwise = {one.instance for one in self._past.stretches if one.instance in now and one.shape != now[one.instance]}
        return Replayed(
            told=tuple(self._world.told),
            incidents=self._world.incidents,
            runs=sum(stretch.runs for stretch in self._past.stretches),
            gaps=self._gaps,
            never_looked=tuple(key for key in self._tracks if key not in looked),
            not_watched=tuple(sorted(looked - self._tracks.keys())),
            configured_otherwise=tuple(sorted(otherwise)),
            unknown=tuple(sorted({f"{name} of {key}" for key, track in self._tracks.items() for name in track.unknown})),
            taken=self._taken,
            not_taken=self._not_taken,
        )
