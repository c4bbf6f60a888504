"""Operation ``cancel-stuck-jobs``: give up on jobs that stopped giving signs of life, and on no other.

Every step repeats the whole condition it was planned under, so a job that came back to life meanwhile matches no row.
"""

from typing import Annotated

from pydantic import Field

from monitor.domain import FindingKind, Observed, Plan, Severity, Step, pairs
from monitor.plugins import Duration, Operation, PluginConfig, RunbookContext
from runbook.digest import sealed
from runbook.processing_jobs import StuckJob, StuckJobs, age, describe_job, find_stuck, still_processing, stuck_after_s

NAME = "cancel-stuck-jobs"


class CancelStuckJobs(PluginConfig):
    """Which jobs to give up on."""

    older_than: Annotated[Duration, Field(ge=1)] | None = None
    """Silent for at least this long; when not given, as long as the check ``stuck_jobs`` says, or the runbook's 30 minutes."""
    job_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")] | None = None
    """Only this job, and only if it is stuck."""
    limit: Annotated[int, Field(ge=1, le=100)] = 10
    """At most so many jobs in one run, the longest silent first."""


JOB_STILL_PROCESSING = FindingKind(
    "CancelledJobStillProcessing",
    Severity.P2,
    "INC-003",
    "A job that a runbook plan cancelled is in processing again: a worker is still at it.",
)

CANCEL = """\
UPDATE public.processing_jobs
SET status = 'failed', error_message = 'Manually cancelled - stuck', completed_at = now()
WHERE job_id = %(job_id)s
  AND status = 'processing'
  AND {alive_at} < now() - make_interval(secs => %(older_than_s)s)"""


async def plan(ctx: RunbookContext, params: CancelStuckJobs) -> Plan:
    """Look for stuck jobs and return one step per job, oldest first. Raises ``CannotLook``."""
    older_than_s = stuck_after_s(ctx) if params.older_than is None else params.older_than
    stuck = await find_stuck(ctx.pg, older_than_s=older_than_s, limit=params.limit, job_id=params.job_id)
    steps = tuple(_step(job, older_than_s) for job in stuck.jobs)
    shown = {"older_than": f"{older_than_s:g}s", "limit": params.limit}
    return sealed(
        Plan(
            name=NAME,
            service=ctx.service.name,
            summary=await _summary(ctx, params, stuck, older_than_s),
            steps=steps,
            params=pairs(shown if params.job_id is None else {**shown, "job_id": params.job_id}),
            lock=f"{NAME}/{ctx.service.name}",
        )
    )


def _step(job: StuckJob, older_than_s: float) -> Step:
    alive_at = "coalesce(heartbeat_at, started_at, created_at)" if job.has_heartbeat else "coalesce(started_at, created_at)"
    fence = "".join(f"\n  AND {column} IS NOT DISTINCT FROM %(seen_{column})s" for column, _ in job.seen)
    return Step(
        title=f"Cancel job {job.job_id}, silent for {age(job.silent_s)}",
        sql=CANCEL.format(alive_at=alive_at) + fence,
        params=(
            ("job_id", job.job_id),
            ("older_than_s", older_than_s),
            *((f"seen_{column}", value) for column, value in job.seen),
        ),
        expect_rows=1,
    )


async def _summary(ctx: RunbookContext, params: CancelStuckJobs, stuck: StuckJobs, older_than_s: float) -> str:
    if not stuck.jobs and params.job_id is not None:
        return f"Nothing to do: {await describe_job(ctx.pg, params.job_id)}."
    if not stuck.jobs:
        return f"Nothing to do: no job has been processing without a sign of life for {age(older_than_s)}."
    oldest = stuck.jobs[0]
    count = f"{len(stuck.jobs)} of {stuck.total} stuck jobs" if stuck.total > len(stuck.jobs) else _jobs(stuck.total)
    sentence = f"Cancel {count}, without a sign of life for {age(older_than_s)} or more (the longest: {age(oldest.silent_s)})."
    if not oldest.has_heartbeat:
        sentence += " The table has no heartbeat, so a slow job looks like a stuck one: read its log before applying."
    return sentence


def _jobs(count: int) -> str:
    return "1 stuck job" if count == 1 else f"{count} stuck jobs"


async def verify(ctx: RunbookContext, plan: Plan) -> Observed:
    """Look again: a finding for each job of the plan that is in ``processing`` still or again. Raises ``CannotLook``."""
    job_ids = [str(dict(step.params)["job_id"]) for step in plan.steps]
    alive = await still_processing(ctx.pg, job_ids) if job_ids else frozenset()
    return Observed(
        findings=tuple(
            JOB_STILL_PROCESSING(f"job {job_id} is still in processing", labels={"job_id": job_id}) for job_id in job_ids if job_id in alive
        )
    )


CANCEL_STUCK_JOBS = Operation(
    name=NAME,
    help="Give up on ingestion jobs that stopped giving signs of life: status failed, with the reason. Never touches a job that revived.",
    params=CancelStuckJobs,
    plan=plan,
    verify=verify,
)
