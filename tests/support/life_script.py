"""What happens to the watched services in one trial, from a seed: the same for every life that the monitor needs to see it through."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from monitor.domain import Severity

SERVICES = ("auth", "data", "mail")


@dataclass(frozen=True, slots=True)
class Step:
    """``down``, ``worse``, ``up``, ``look``, ``take`` or ``silence`` a service, or ``wait`` so many seconds."""

    what: str
    service: str = ""
    seconds: float = 0.0
    settle: bool = False
    """Whether delivery is done before the next step; else it goes on beside it."""


def write_script(rng: random.Random) -> tuple[Step, ...]:
    """One or two outages, alone or a storm, each seen until it is confirmed and until it is over.

    Not three: a service that fails as often flaps, and its outages are one incident.
    """
    steps: list[Step] = []
    for _ in range(rng.choice((1, 1, 2))):
        storm = rng.sample(SERVICES, rng.choice((1, 1, 2, 3)))
        steps += [Step("down", service) for service in storm]
        steps += [Step("look", service, settle=rng.random() < 0.3) for _ in range(2) for service in storm]
        for service in storm:
            match rng.choice(("leave", "take", "worse", "silence", "sleep")):
                case "take":
                    steps.append(Step("take", service))
                case "worse":
                    steps += [Step("worse", service), Step("look", service)]
                case "silence":
                    steps.append(Step("silence", service, seconds=600))
                case "sleep":  # taken and forgotten
                    steps += [Step("take", service), Step("wait", seconds=3700)]
        if rng.random() < 0.6:
            steps.append(Step("wait", seconds=rng.choice((60, 901, 1801))))
        steps += [Step("up", service) for service in storm]
        steps += [Step("look", service, settle=rng.random() < 0.2) for _ in range(2) for service in storm]
    return tuple(steps)


def severity_at(script: Iterable[Step], service: str) -> Severity | None:
    """How bad a service is after these steps; None when it is well."""
    severity = None
    for step in script:
        if step.service == service:
            severity = {"down": Severity.P2, "worse": Severity.P1, "up": None}.get(step.what, severity)
    return severity


def outages(script: Iterable[Step]) -> Counter[str]:
    """How often each service went down."""
    return Counter(step.service for step in script if step.what == "down")
