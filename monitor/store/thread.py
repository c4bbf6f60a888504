"""The one thread on which the running program touches its store: the event loop never waits for a disk."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Call it with a blocking function and its arguments; await the answer.

    A queue and a callback rather than an executor: the locks of its futures cost more than a commit's own statements.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((answer, partial(call, *args, **kwargs)))
        return await answer

    def close(self) -> None:
        """Finish what was handed over and end the thread."""
        self._calls.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (handed := self._calls.get()) is not None:
            answer, call = handed
            if answer.cancelled():  # nobody waits for it any more
                continue
            try:
                result, failed = call(), None
            except BaseException as exc:  # noqa: BLE001 - it is handed to the caller
                result, failed = None, exc
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                answer.get_loop().call_soon_threadsafe(_tell, answer, result, failed)
            del handed, answer, call, result, failed  # nothing is kept alive while this waits


def _tell(answer: "asyncio.Future[Any]", result: Any, failed: BaseException | None) -> None:
    if answer.done():
        return
    if failed is None:
        answer.set_result(result)
    else:
        answer.set_exception(failed)
