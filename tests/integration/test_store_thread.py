"""The store's thread: one call after the other, errors are the caller's, and who no longer waits costs nothing."""

import asyncio
import threading

import pytest

from monitor.errors import StoreError
from monitor.store import StoreThread


async def test_calls_run_in_their_order_on_one_other_thread() -> None:
    thread, seen = StoreThread(), []

    def note(number: int, *, name: str = "") -> tuple[int, str]:
        seen.append((number, threading.get_ident()))
        return number, name

    answers = await asyncio.gather(*(thread(note, number, name="x") for number in range(20)))
    thread.close()
    assert answers == [(number, "x") for number in range(20)]
    assert [number for number, _ in seen] == list(range(20))
    assert len({ident for _, ident in seen} | {threading.get_ident()}) == 2


async def test_an_error_is_the_callers_and_the_thread_goes_on() -> None:
    thread = StoreThread()

    def fail() -> None:
        raise StoreError("no disk")

    with pytest.raises(StoreError, match="no disk"):
        await thread(fail)
    assert await thread(int, "7") == 7
    thread.close()


async def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    thread, go, ran = StoreThread(), threading.Event(), []
    held = asyncio.create_task(thread(go.wait))
    given_up = asyncio.create_task(thread(ran.append, "given up"))
    kept = asyncio.create_task(thread(ran.append, "kept"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(held, kept)
    thread.close()
    assert ran == ["kept"]
