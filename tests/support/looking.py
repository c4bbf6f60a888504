"""A check's real context, outside the running monitor: the way for tests to run one check once."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from monitor.clock import Clock, SystemClock
from monitor.domain import Observed
from monitor.plugins import AnyCheck, CheckContext, Kept, Service
from monitor.probes.heartbeats import KnownHeartbeats
from monitor.probes.host import LocalHost
from monitor.probes.logs import LogFiles
from monitor.probes.outside import Outside
from monitor.probes_contract import Heartbeats


@asynccontextmanager
async def looking_at(service: Service, *, clock: Clock | None = None, heartbeats: Heartbeats | None = None) -> AsyncIterator[CheckContext]:
    """The context that the running monitor would hand to a check on ``service``; what it opened is closed at the end."""
    outside = Outside(clock or SystemClock(), heartbeats)
    try:
        yield outside.check_context(service, name="the_check")
    finally:
        await outside.close()


async def look(check: AnyCheck, ctx: CheckContext, *, within_s: float = 5.0, **config: Any) -> Observed:
    """Run the check once with these keys of its configuration. Raises ``CannotLook``; fails the test when it takes longer."""
    async with asyncio.timeout(within_s):
        observed: Observed = await check.run(ctx, check.config.model_validate(config))
        return observed


def after(ctx: CheckContext, observed: Observed) -> CheckContext:
    """The context of the run after the one that observed this: what is kept goes through JSON, as in the store."""
    return ctx._replace(kept=Kept(at=ctx.clock.now(), value=json.loads(json.dumps(observed.keep))))


def with_parts(service: Service, *, clock: Clock | None = None, http: Any = None, pg: Any = None) -> CheckContext:
    """A context from parts that the test holds itself."""
    return CheckContext(
        service=service, clock=clock or SystemClock(), http=http, pg=pg, logs=LogFiles(), host=LocalHost(), heartbeats=KnownHeartbeats()
    )
