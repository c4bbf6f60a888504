"""The moments of a crontab's schedule, by the wall clock of a time zone, over both changes of summer time."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo

from cronsim import CronSim

_REPEATED = timedelta(hours=3)
"""Longer than any stretch that a clock repeats when summer time ends."""


def moments_after(schedule: str, moment: datetime, timezone: tzinfo) -> Iterator[datetime]:
    """Every moment of the schedule that is later, in order, in UTC. Raises ``CronSimError`` for what is no schedule.

    Cron's own iterator goes wrong when it is started within a repeated hour, or goes backwards into one: it begins before.
    """
    for local in CronSim(schedule, (moment - _REPEATED).astimezone(timezone)):
        found = local.astimezone(UTC)
        if found > moment:
            yield found
