"""``python -m tests.support.crashing STEP run --config FILE``: the real monitor, which kills itself with -9 at one step.

STEP is the point between decision and delivery after (or before) which the process dies: decided, claimed, accepted, recorded.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from monitor.cli import main
from monitor.store.incidents import IncidentStore
from monitor.store.outbox import Outbox


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(call: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            _die()
        answer = call(*args, **kwargs)
        if getattr(answer, "intents", answer):
            _die()
        return answer

    return wrapped


STEPS: dict[str, Callable[[], None]] = {
    "decided": lambda: setattr(IncidentStore, "decide", _dying(IncidentStore.decide)),
    "claimed": lambda: setattr(Outbox, "claim", _dying(Outbox.claim)),
    "accepted": lambda: setattr(Outbox, "sent", _dying(Outbox.sent, before=True)),
    "recorded": lambda: setattr(Outbox, "sent", _dying(Outbox.sent)),
}

if __name__ == "__main__":
    STEPS[sys.argv.pop(1)]()
    main()
