"""Plain text for a terminal at night: complete, aligned, wrapped, and harmless whatever the database said."""

import unicodedata
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from monitor.domain import Diagnosis, Evidence, Plan, Step
from runbook import render
from runbook.digest import sealed
from runbook.outcomes import Applied, StepOutcome, StepStatus

STEP = Step(
    "Cancel job j1, silent for 45 min",
    "UPDATE t\nSET status = 'failed'\nWHERE job_id = %(job_id)s",
    (("job_id", "j1"), ("older", 1800.0)),
    1,
)
PLAN = sealed(Plan("cancel-stuck-jobs", "postgres", "Cancel 1 stuck job.", (STEP,), (("limit", "10"),)))
DIAGNOSIS = Diagnosis(
    "INC-003",
    "2 jobs are stuck, job j1 the longest (silent for 45 min). data-service has no session in the database: its worker is gone or cannot "
    "connect. Restart it after cancelling.",
    (
        Evidence(
            "Stuck jobs", ("silent for", "job_id", "error_message"), (("45 min", "j1", ""), ("31 min", "j2", "x " * 60)), "and 3 more"
        ),
        Evidence("Last log lines of job j1", text="asking BigQuery\nasking BigQuery again"),
    ),
    ("cancel-stuck-jobs",),
    ("new rows in purchase: the role lacks a privilege",),
)


def test_a_diagnosis_says_cause_blind_spots_and_cures_first() -> None:
    text = render.diagnosis(DIAGNOSIS, width=60)
    order = [
        text.index(part) for part in ("2 jobs are stuck", "COULD NOT LOOK AT", "MAY HELP", "STUCK JOBS", "and 3 more", "LAST LOG LINES")
    ]
    assert order == sorted(order)
    assert max(map(len, text.splitlines())) <= 60
    assert "  -- 1\n  silent for     45 min\n  job_id         j1\n  -- 2\n" in text
    assert "  silent for  job_id  error_message\n  ----------  ------  -------------" in render.diagnosis(DIAGNOSIS, width=200)
    assert text.endswith("  asking BigQuery\n  asking BigQuery again\n")


def test_a_plan_shows_the_exact_sql_and_parameters() -> None:
    text = render.plan(PLAN)
    assert "   | UPDATE t\n   | SET status = 'failed'\n   | WHERE job_id = %(job_id)s\n" in text
    assert "     job_id = 'j1'\n     older  = 1800.0\n   must match exactly 1 row\n" in text
    twice = render.plan(replace(PLAN, steps=(STEP, replace(STEP, params=(("job_id", "j2"),)))))
    assert "   | (the same statement)\n     job_id = 'j2'\n" in twice
    assert text.endswith(f"parameters  limit=10\nlock        cancel-stuck-jobs/postgres\ndigest      {PLAN.digest}\n")


def test_outcomes_are_aligned_and_counted() -> None:
    ran = (
        StepOutcome(STEP, StepStatus.DONE, "1 row", 1),
        StepOutcome(STEP, StepStatus.FAILED, "permission denied"),
        StepOutcome(STEP, StepStatus.NOT_RUN, "x"),
    )
    text = render.outcomes(ran)
    assert text.splitlines() == [
        "done     Cancel job j1, silent for 45 min: 1 row",
        "FAILED   Cancel job j1, silent for 45 min: permission denied",
        "not run  Cancel job j1, silent for 45 min: x",
        "1 done, 1 failed, 1 not-run",
    ]
    assert render.outcomes(()) == "no steps\n"


def test_a_run_that_is_not_verified_says_so_loudly() -> None:
    run = Applied(
        PLAN,
        (StepOutcome(STEP, StepStatus.DONE, "1 row", 1),),
        verified=False,
        verification="Looked again: j1.",
        notes=("The audit failed.",),
    )
    assert render.applied(run).endswith("NOT VERIFIED: Looked again: j1.\n  - The audit failed.\n")
    assert not run.ok


def test_hostile_text_is_made_visible() -> None:
    assert render.clean("a\x1b[2Jb\rc\u202egpj.exe\x00\u2028d\n\te") == r"a\x1b[2Jb\rc\u202egpj.exe\x00\u2028d  e"


def test_wide_characters_keep_the_columns() -> None:
    evidence = Evidence("t", ("name", "n"), (("日本", "1"), ("ab", "2")))
    text = render.diagnosis(Diagnosis("INC-003", "c", (evidence,)))
    assert "  日本  1\n  ab    2\n" in text


HOSTILE = st.text(max_size=40)


@given(st.lists(st.tuples(HOSTILE, HOSTILE), max_size=3), HOSTILE, HOSTILE, st.integers(40, 120))
def test_no_text_breaks_out_of_its_place(rows: list[tuple[str, str]], text: str, cause: str, width: int) -> None:
    evidence = Evidence(text, ("one", "two"), tuple(rows), text, text)
    shown = render.diagnosis(Diagnosis("INC-003", cause, (evidence,), (text,), (text,)), width=width)
    step = Step(text, "UPDATE a", (("v", text),))
    plan = Plan("p", text, cause, (step,), ((text, text),), "l", "d")
    run = Applied(plan, (StepOutcome(step, StepStatus.DONE, text),), verified=True, verification=cause, notes=(text,))
    for rendered in (shown, render.plan(plan, width=width), render.applied(run, width=width)):
        assert all(character == "\n" or not unicodedata.category(character).startswith("C") for character in rendered)
        assert "\u2028" not in rendered
        assert "\u2029" not in rendered
