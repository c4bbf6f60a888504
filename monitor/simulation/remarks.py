"""What a simulation could not know, and what it supposed instead: in words, beside every result."""

from collections.abc import Iterator
from datetime import datetime

from monitor.simulation.past import Past
from monitor.simulation.replay import Replayed

MOST_NAMES = 8


def remarks(past: Past, replayed: Replayed, since: datetime, *, unacknowledged: bool) -> tuple[str, ...]:
    """One sentence each, what matters most first."""
    if not past.stretches:
        return ("could not look: this state holds no history of what checks saw; it is kept from this version on",)
    return (*_not_looked(past, replayed, since), *_supposed(past, replayed, unacknowledged=unacknowledged))


def _not_looked(past: Past, replayed: Replayed, since: datetime) -> Iterator[str]:
    if past.begin > since:
        yield f"could not look before {past.begin:%Y-%m-%d %H:%M} UTC: the history begins there, and so does what was wrong by then"
    for begin, end in replayed.gaps:
        if end > since:
            yield f"could not look from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC: the monitor did not run"
    if replayed.never_looked:
        yield f"could not look through checks without a history: {_names(replayed.never_looked)}"
    if replayed.not_watched:
        yield f"not watched with this configuration: {_names(replayed.not_watched)}"


def _supposed(past: Past, replayed: Replayed, *, unacknowledged: bool) -> Iterator[str]:
    if replayed.configured_otherwise:
        yield (
            "judged as they were: thresholds of a check's own keys cannot be replayed, only severity rules over a finding's number; "
            f"other keys than then have {_names(replayed.configured_otherwise)}"
        )
    if replayed.unknown:
        yield f"left out, because the checks find it no more: {_names(replayed.unknown)}"
    if past.left_out:
        yield f"left out: {past.left_out} notifications about failing channels, by stand-ins, or sent again after an outage"
    if unacknowledged:
        yield f"acknowledgements: none, as asked; {len(past.acknowledgements)} were recorded"
    else:
        others = f"{replayed.not_taken} had no incident to take; " if replayed.not_taken else ""
        yield f"acknowledgements: {replayed.taken} as recorded; {others}what nobody took then, nobody takes"
    yield "every, timeout and recheck are not replayed: looks are where they were, so a moment may be late by one interval"


def _names(names: tuple[str, ...]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
