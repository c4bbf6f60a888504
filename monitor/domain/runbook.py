"""A diagnosis, a fix as data, and the line of the audit that says what was done."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from monitor.domain.core import Labels


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing looked at during a diagnosis: a small table or text, with the statement that made it."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""
    source: str = ""
    """The SQL, command or file it came from."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``cause`` is the sentence a person needs; ``proposals`` name plans (``cancel-stuck-jobs``) that may help.

    ``blind`` lists what could not be looked at: a diagnosis with blind spots is never read as healthy.
    """

    code: str
    cause: str
    evidence: tuple[Evidence, ...]
    proposals: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, as data. ``sql`` runs in a transaction; its row count must equal ``expect_rows``."""

    title: str
    sql: str
    params: tuple[tuple[str, object], ...] = ()
    expect_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A fix, as data. ``digest`` covers everything that will happen, so that what is applied is what was shown."""

    name: str
    service: str
    summary: str
    steps: tuple[Step, ...]
    params: Labels = ()
    lock: str = ""
    """Plans with the same lock never run at once."""
    digest: str = field(default="")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One append-only line: the intent before a plan runs, and the outcome after."""

    at: datetime
    plan: str
    digest: str
    phase: Literal["intent", "applied", "failed", "refused", "verified", "not-verified"]
    who: str
    why: str
    detail: str = ""
