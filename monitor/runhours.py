"""How often each check ran in each hour, how it ended and how long it took: counted here, written to the store by and by."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from monitor.domain import CheckResult
from monitor.store import RunHour, hour_of

MOST_WAITING = 100_000
"""Hours of check instances that wait while the store cannot be written; the oldest are dropped first."""
_HOUR = timedelta(hours=1)


class RunHours:
    """``see`` every result, write what ``take`` gives, and ``give_back`` what could not be written."""

    def __init__(self) -> None:
        self._begins = self._ends = datetime.min.replace(tzinfo=UTC)
        """The hour that is being counted."""
        self._counting: dict[str, RunHour] = {}
        """By instance."""
        self._waiting: dict[tuple[str, datetime], RunHour] = {}
        """By instance and hour: of other hours, or given back."""

    def see(self, result: CheckResult) -> None:
        if not self._begins <= result.started_at < self._ends:  # an hour began, or the clock was set
            self._wait(self._counting.values())
            self._counting = {}
            self._begins = hour_of(result.started_at)
            self._ends = self._begins + _HOUR
        counted = self._counting.get(result.instance)
        if counted is None:
            counted = self._counting[result.instance] = RunHour(result.instance, self._begins, result.check, result.service)
        counted.add(result.outcome, result.duration_s)

    def take(self) -> tuple[RunHour, ...]:
        """What was counted since it was taken last, one of each instance and hour."""
        if self._waiting:
            self._wait(self._counting.values())
        taken = tuple((self._waiting or self._counting).values())
        self._waiting, self._counting = {}, {}
        return taken

    def give_back(self, hours: Iterable[RunHour]) -> None:
        """What could not be written is written with the next."""
        self._wait(hours)

    def _wait(self, hours: Iterable[RunHour]) -> None:
        for one in hours:
            known = self._waiting.setdefault((one.instance, one.hour), one)
            if known is not one:
                known.merge(one)
        while len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
