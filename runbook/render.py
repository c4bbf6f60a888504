"""Diagnoses, plans and outcomes as plain text for a terminal at night: aligned, wrapped, and safe to print whatever the database said.

Text only, no colours and no markup: whoever prints it must print it literally.
"""

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from monitor.domain import Diagnosis, Evidence, Plan, Step
from runbook.outcomes import Applied, StepOutcome, StepStatus, count

WIDTH = 100
MARKS = {
    StepStatus.WOULD: "would",
    StepStatus.DONE: "done",
    StepStatus.SKIPPED: "skipped",
    StepStatus.FAILED: "FAILED",
    StepStatus.UNKNOWN: "UNKNOWN",
    StepStatus.NOT_RUN: "not run",
}


def diagnosis(found: Diagnosis, *, width: int = WIDTH) -> str:
    """The cause first, then what was not seen, what may help, and the evidence."""
    lines = [*_wrap(f"{found.code}  {found.cause}", width, indent=len(found.code) + 2), ""]
    if found.blind:
        lines += ["COULD NOT LOOK AT (so do not read this as healthy)", *_bullets(found.blind, width), ""]
    if found.proposals:
        lines += ["MAY HELP", *_bullets((f"monitor runbook plan {name}" for name in found.proposals), width), ""]
    for evidence in found.evidence:
        lines += [*_evidence(evidence, width), ""]
    return "\n".join(lines).rstrip() + "\n"


def plan(shown: Plan, *, width: int = WIDTH) -> str:
    """Everything that will happen: each step's exact SQL and parameters, and the digest that ``apply`` will ask for."""
    lines = [*_wrap(f"{shown.name} on {shown.service}", width), *_wrap(shown.summary, width), ""]
    before = None
    for number, step in enumerate(shown.steps, 1):
        lines += [*_wrap(f"{number}. {step.title}", width, indent=len(f"{number}. ")), *_step(step, before), ""]
        before = step
    asked = ", ".join(f"{clean(name)}={clean(value)}" for name, value in shown.params)
    facts = [("parameters", asked), ("lock", clean(shown.lock)), ("digest", shown.digest)]
    return "\n".join([*lines, *(f"{name:<10}  {value}" for name, value in facts if value)]) + "\n"


def outcomes(ran: Sequence[StepOutcome], *, width: int = WIDTH) -> str:
    """One line per step: what became of it, and why."""
    if not ran:
        return "no steps\n"
    margin = max(len(MARKS[outcome.status]) for outcome in ran) + 2
    lines = [
        line
        for outcome in ran
        for line in _wrap(f"{MARKS[outcome.status]:<{margin}}{clean(outcome.step.title)}: {clean(outcome.detail)}", width, indent=margin)
    ]
    return "\n".join([*lines, count(tuple(ran))]) + "\n"


def applied(run: Applied, *, width: int = WIDTH) -> str:
    """The outcomes, what verification saw, and what else a person should know."""
    verdict = "verified" if run.verified else "NOT VERIFIED"
    lines = _wrap(f"{verdict}: {run.verification}", width, indent=len(verdict) + 2)
    return outcomes(run.outcomes, width=width) + "\n".join([*lines, *_bullets(run.notes, width)]) + "\n"


def clean(text: str) -> str:
    """The text on one line, with everything that could move the cursor, colour, hide or reverse text made visible."""
    return "".join(character if _printable(character) else _escaped(character) for character in text.replace("\n", " ").replace("\t", " "))


def _printable(character: str) -> bool:
    return not unicodedata.category(character).startswith("C") and character not in "\u2028\u2029"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _evidence(evidence: Evidence, width: int) -> list[str]:
    lines = [clean(evidence.title).upper()]
    if evidence.columns:
        lines += [f"  {line}" for line in _table(evidence.columns, evidence.rows, width - 2)]
    for line in evidence.text.splitlines():
        lines += _wrap(line, width - 2, indent=2, margin="  ")
    return lines


def _step(step: Step, before: Step | None) -> list[str]:
    """SQL as it is sent, and its parameters aligned beneath: never wrapped, so that it can be copied, and not repeated."""
    repeats = before is not None and before.sql == step.sql
    statement = ["   | (the same statement)"] if repeats else [f"   | {clean(line)}" for line in step.sql.splitlines()]
    name_width = max((len(name) for name, _ in step.params), default=0)
    promise = [] if step.expect_rows is None else [f"   must match exactly {step.expect_rows} row{'' if step.expect_rows == 1 else 's'}"]
    return [
        *statement,
        *(f"     {clean(name):<{name_width}} = {clean(repr(value))}" for name, value in step.params),
        *promise,
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns aligned when they fit; else one block a row, a line a value, so that ids stay whole and can be copied."""
    cells = [[clean(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(_width(row[index]) for row in cells) for index in range(len(columns))]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return [line for number, row in enumerate(cells[1:], 1) for line in _block(number, cells[0], row, width)]
    return [_line(cells[0], widths), "  ".join("-" * size for size in widths), *(_line(row, widths) for row in cells[1:])]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (size - _width(cell)) for cell, size in zip(cells, widths, strict=True)).rstrip()


def _block(number: int, names: Sequence[str], cells: Sequence[str], width: int) -> list[str]:
    """One row as ``name  value`` lines; values that are empty are left out."""
    margin = max(_width(name) for name in names) + 2
    lines = [f"-- {number}"]
    for name, cell in zip(names, cells, strict=True):
        if cell:
            lines += _wrap(f"{name}{' ' * (margin - _width(name))}{cell}", width, indent=margin)
    return lines


def _width(text: str) -> int:
    """Terminal columns taken: East Asian wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _wrap(text: str, width: int, *, indent: int = 0, margin: str = "") -> list[str]:
    return textwrap.wrap(clean(text), width, initial_indent=margin, subsequent_indent=margin + " " * indent, break_on_hyphens=False) or [""]


def _bullets(items: Iterable[str], width: int) -> list[str]:
    return [line for item in items for line in _wrap(f"- {item}", width, indent=4, margin="  ")]
