"""One check instance in a simulation: its stretches, run by run, as far as a run can change anything."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from alerts.decide import fingerprints_of
from alerts.flapping import NOTHING, RESULTS, Swings
from alerts.severity import rate
from monitor.config.settings import CheckInstance
from monitor.domain import CheckResult, Finding, FindingKind, Observed, Outcome
from monitor.stretches import Stretch


@dataclass(slots=True)
class Track:
    """Steps through the runs of an instance. ``asleep``: the rest of the stretch changes nothing unless something else does."""

    instance: CheckInstance
    ahead: deque[Stretch] = field(default_factory=deque)
    stretch: Stretch | None = None
    asleep: bool = False
    unknown: set[str] = field(default_factory=set)
    """Findings that the check, as it is configured now, does not know."""
    calm: bool = False
    """Whether the last run changed nothing and nothing waits: a run that is judged the same is not looked at again."""
    _moments: Iterator[datetime] = field(default_factory=lambda: iter(()))
    _swings: Swings = field(default_factory=Swings)
    _left: int = 0
    _raw: CheckResult | None = None
    _judged: CheckResult | None = None

    @property
    def flapping(self) -> frozenset[str]:
        """Fingerprints of what comes and goes."""
        return self._swings.flapping

    def next_moment(self) -> datetime | None:
        """Of the next run in the present stretch."""
        return next(self._moments, None)

    def moment_after(self, at: datetime) -> datetime | None:
        """Of the first run in the present stretch that comes later."""
        return next((moment for moment in self._moments if moment > at), None)

    def begin(self) -> None:
        """Go into the next stretch."""
        self.stretch = stretch = self.ahead.popleft()
        self._moments, self._left = stretch.moments(), stretch.runs
        self._raw, self._judged = self._result(stretch), None
        self.asleep = self.calm = False
        if stretch.starts and not self._swings.swung:  # only of what swung are the results kept over a restart
            self._swings = Swings()

    def see(self, at: datetime) -> tuple[CheckResult, bool] | None:
        """The run of that moment, judged by today's rules, and whether it is judged otherwise than the one before.

        None when nothing of what was found is known to the check any more: then nobody can say what it would have seen.
        """
        if self._raw is None:
            return None
        judged = rate(self._raw, self.instance.severities, at)
        changed = self._judged is None or judged.observed != self._judged.observed
        self._judged = judged
        self._left -= 1
        self._swings.see(judged.outcome, _found(judged))
        return judged, changed

    def skip(self) -> None:
        """Sleep through the rest of the stretch: all that is left of it in memory is what its runs found."""
        assert self.stretch is not None
        found = NOTHING if self._judged is None else _found(self._judged)
        for _ in range(min(self._left, RESULTS + 1)):
            self._swings.see(self.stretch.outcome, found)
        self._left, self.asleep = 0, True

    def _result(self, stretch: Stretch) -> CheckResult | None:
        kinds: dict[str, FindingKind] = {kind.name: kind for kind in self.instance.check.finds}
        self.unknown |= {one.kind for one in stretch.seen} - kinds.keys()
        known = [one for one in stretch.seen if one.kind in kinds]
        if stretch.seen and not known:
            return None
        found = tuple(Finding(kinds[one.kind], one.labels, one.summary, severity=one.said, value=one.value) for one in known)
        return CheckResult(
            instance=self.instance.key,
            check=self.instance.name,
            service=self.instance.service.name,
            outcome=stretch.outcome,
            started_at=stretch.first_at,
            duration_s=0.0,
            observed=Observed(findings=found),
            error=(stretch.error or None) if stretch.outcome is Outcome.BLIND else None,
        )


def _found(result: CheckResult) -> frozenset[str]:
    return frozenset(fingerprints_of(result)) if result.outcome is Outcome.FOUND else NOTHING
