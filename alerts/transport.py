"""How notifiers reach the outside: whom TLS trusts, what ``Retry-After`` means, and blocking clients under a deadline.

Every failure leaves as a :class:`DeliveryError` that names the channel and the cause, and never a credential.
"""

import asyncio
import contextlib
import math
import os
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator

from monitor.errors import DeliveryError

T = TypeVar("T")

RETRY_AFTER_CAP_S = 3600.0


def _https_only(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError("expected an https:// address: credentials never travel in clear")
    return url


HttpsUrl = Annotated[str, AfterValidator(_https_only)]
"""An ``https://`` address, kept as it is written."""


def tls_context(ca_file: str | None, protocol: str = "https") -> ssl.SSLContext:
    """Trust the system's authorities, or exactly those in ``ca_file``. Raises a retryable ``DeliveryError`` when it cannot be read.

    Reading the system's hundred and more costs milliseconds: what was read is kept until the file changes, apart for
    each ``protocol``, since clients write into it which one they speak.
    """
    try:
        file = os.stat(ca_file or ssl.get_default_verify_paths().cafile or ssl.get_default_verify_paths().openssl_cafile)
        changed = (file.st_mtime_ns, file.st_size, file.st_ino)
    except OSError:
        changed = (0, 0, 0)  # the error, if it is one, is said by who reads it
    try:
        return _read_authorities(ca_file, protocol, changed)
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        cause = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise DeliveryError(f"ca_file {ca_file} cannot be used: {cause}", retryable=True) from exc


@lru_cache(maxsize=16)
def _read_authorities(ca_file: str | None, protocol: str, changed: tuple[int, int, int]) -> ssl.SSLContext:
    """``changed`` tells one state of the file from another."""
    return ssl.create_default_context(cafile=ca_file)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds asked for by a ``Retry-After`` header (seconds or an HTTP date), within 0 and an hour; None when absent or junk."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            at = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_CAP_S) if math.isfinite(seconds) else None


async def run_blocking(call: Callable[[], T], *, name: str, deadline_s: float) -> T:
    """Run a blocking client on a thread of its own. Raises a retryable ``DeliveryError`` at the deadline, leaving the thread behind.

    A thread of its own, and a daemon, because a provider that trickles bytes must neither use up a pool that others share nor keep
    the process from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            value = call()
        except BaseException as exc:  # noqa: BLE001 - handed whole to the awaiting task, as a thread pool would
            settle(lambda error=exc: done.set_exception(error))  # type: ignore[misc]
        else:
            settle(lambda: done.set_result(value))

    def settle(how: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if done.done() else how())

    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        async with asyncio.timeout(deadline_s):
            return await done
    except TimeoutError as exc:
        raise DeliveryError(f"{name} did not answer within {deadline_s:g} s", retryable=True) from exc
