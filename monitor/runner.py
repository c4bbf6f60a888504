"""Runs one check once: deadline, containment, caps and timing. The only place that catches what a check raises."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from alerts.severity import rate
from monitor.clock import Clock
from monitor.config.settings import CheckInstance
from monitor.domain import CheckResult, Finding, Observed, Outcome, Sample, Severity
from monitor.errors import CannotLook
from monitor.memory import Memory
from monitor.plugins import AnyCheck, CheckContext, Kept, one_line

MAX_SAMPLES = 2000
MAX_FINDINGS = 200
MAX_ERROR_CHARS = 500
MAX_FACTS = 50

_NOTHING = Observed()
_METRIC = attrgetter("metric")
_SAMPLES = frozenset({Sample})


class Runner:
    """Turns every ending of a check into a ``CheckResult``: a check that raises, hangs or returns junk is BLIND, with the reason."""

    def __init__(self, clock: Clock, context: Callable[[CheckInstance, Kept | None], CheckContext], memory: Memory | None = None) -> None:
        self._clock = clock
        self._context = context
        self._memory = memory or Memory()
        self._orphans: dict[str, asyncio.Task[Observed]] = {}

    async def run(self, instance: CheckInstance) -> CheckResult:
        """Run once; returns no later than the instance's timeout. A check that ignores its cancellation is abandoned, one per instance."""
        started_at, started = self._clock.now(), self._clock.monotonic()
        observed, error = _NOTHING, None
        orphan = self._orphans.get(instance.key)
        if orphan is not None and not orphan.done():
            error = "the previous run is still hanging and does not end when cancelled"
        else:
            if orphan is not None:
                del self._orphans[instance.key]
            try:
                observed = _storable(await self._within_deadline(instance))
                _refuse_junk(instance.check, observed)
                if observed.keep is not None:
                    self._memory.keep(instance, started_at, observed.keep)
            except CannotLook as exc:
                observed, error = _NOTHING, str(exc)
            except Exception as exc:  # noqa: BLE001 - a plugin may raise anything; it is contained and named here
                observed, error = _NOTHING, f"the check failed: {type(exc).__name__}: {exc}"
        outcome = Outcome.BLIND if error is not None else Outcome.FOUND if observed.findings else Outcome.OK
        result = CheckResult(
            instance=instance.key,
            check=instance.name,
            service=instance.service.name,
            outcome=outcome,
            started_at=started_at,
            duration_s=self._clock.monotonic() - started,
            observed=observed,
            error=error if error is None else one_line(error, limit=MAX_ERROR_CHARS),
        )
        return rate(result, instance.severities, started_at)

    async def _within_deadline(self, instance: CheckInstance) -> Observed:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        task = loop.create_task(_look(instance, self._context(instance, self._memory.recall(instance)), ended))
        deadline = loop.call_later(instance.timeout_s, _wake, ended)
        try:
            await ended
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            deadline.cancel()
        if task.done():
            if task.cancelled():
                raise CannotLook("the check cancelled itself")
            return task.result()
        task.cancel()
        self._orphans[instance.key] = task
        task.add_done_callback(_retrieve)
        raise CannotLook(f"no answer within its timeout of {instance.timeout_s:g} s")


async def _look(instance: CheckInstance, context: CheckContext, ended: "asyncio.Future[None]") -> Observed:
    try:
        return await instance.check.run(context, instance.config)
    finally:
        _wake(ended)  # whoever waits goes on in the next turn of the loop, when this task is done


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)


def _retrieve(task: "asyncio.Task[Observed]") -> None:
    """Take an abandoned task's exception, so that the loop does not report it as never retrieved."""
    if not task.cancelled():
        task.exception()


def _refuse_junk(check: AnyCheck, observed: object) -> None:
    """Raise when a check returned something other than what it declared."""
    if not isinstance(observed, Observed):
        raise CannotLook(f"the check returned {type(observed).__name__} instead of Observed")
    if len(observed.samples) > MAX_SAMPLES or len(observed.findings) > MAX_FINDINGS:
        raise CannotLook(f"the check returned more than {MAX_SAMPLES} samples or {MAX_FINDINGS} findings")
    if not _SAMPLES.issuperset(map(type, observed.samples)):
        raise CannotLook("the check returned a sample that was not made by calling one of its metrics")
    strange = set(map(id, map(_METRIC, observed.samples)))  # by identity: few, where hashing each would cost
    strange.difference_update(map(id, check.metrics))
    if not strange and not observed.findings:
        return
    undeclared = sorted(
        {sample.metric.name for sample in observed.samples if id(sample.metric) in strange and sample.metric not in check.metrics}
        | {finding.kind.name for finding in observed.findings if finding.kind not in check.finds}
    )
    if undeclared:
        raise CannotLook(f"the check returned what it did not declare: {', '.join(undeclared)}")


def _storable(observed: Observed) -> Observed:
    """The same with texts that every store, mail and page can carry. Raises ``CannotLook`` for what is no finding at all."""
    if not isinstance(observed, Observed) or not observed.findings:
        return observed
    return replace(observed, findings=tuple(_clean(finding) for finding in observed.findings[: MAX_FINDINGS + 1]))


def _clean(finding: Finding) -> Finding:
    if not isinstance(finding, Finding) or not isinstance(finding.severity, Severity | None) or not isinstance(finding.summary, str):
        raise CannotLook("the check returned a finding whose kind, summary or severity is of the wrong type")
    try:
        labels = tuple((one_line(name), one_line(value)) for name, value in finding.labels)
        facts = tuple((one_line(name), one_line(value, limit=MAX_ERROR_CHARS)) for name, value in finding.facts[:MAX_FACTS])
    except (TypeError, ValueError) as exc:
        raise CannotLook("the check returned a finding whose labels or facts are not pairs of texts") from exc
    return replace(finding, labels=labels, facts=facts, summary=one_line(finding.summary, limit=MAX_ERROR_CHARS))
