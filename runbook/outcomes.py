"""What came of a plan, as values: one outcome per step, and one for the whole run."""

from dataclasses import dataclass
from enum import StrEnum

from monitor.domain import Finding, Plan, Step


class StepStatus(StrEnum):
    WOULD = "would"
    """Dry run: it did exactly what it promised, and was rolled back."""
    DONE = "done"
    """Committed, with the promised row count."""
    SKIPPED = "skipped"
    """Nothing matched any more; nothing was changed."""
    FAILED = "failed"
    """Refused by the server or the wrong row count; rolled back."""
    UNKNOWN = "unknown"
    """The connection was lost while committing: nobody knows."""
    NOT_RUN = "not-run"
    """An earlier step failed, or a dry run cannot try it."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """``rows`` is what the server counted, None when it never answered; ``detail`` is one line for a person."""

    step: Step
    status: StepStatus
    detail: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """One run of a plan. ``findings`` are what verification still found wrong; ``notes`` what a person should know besides."""

    plan: Plan
    outcomes: tuple[StepOutcome, ...]
    verified: bool
    """Everything that was changed was looked at again, and is as the plan wants it. True when nothing was changed."""
    verification: str
    """One sentence on what was looked at again."""
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a step failed, was left out because of one, or has an unknown end."""
        return any(outcome.status not in (StepStatus.DONE, StepStatus.SKIPPED) for outcome in self.outcomes)

    @property
    def ok(self) -> bool:
        return self.verified and not self.failed


def count(outcomes: tuple[StepOutcome, ...]) -> str:
    """``2 done, 1 skipped``; ``no steps`` when there are none."""
    totals = [(status, sum(outcome.status is status for outcome in outcomes)) for status in StepStatus]
    return ", ".join(f"{total} {status.value}" for status, total in totals if total) or "no steps"
