"""HTTP probes over libcurl: what an exchange is, and what each way of failing means.

Owns limits (deadline, header and body size, verified TLS, no redirects, no proxy) and the classification of libcurl's codes.
"""

import asyncio
import errno
import os
from functools import partial
from itertools import chain

import pycurl

from monitor.clock import Clock
from monitor.errors import CannotLook
from monitor.plugins import one_line
from monitor.probes.curl_thread import CurlThread, Transfer
from monitor.probes.http_tls import Expiries, verify_tls
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpPhases, HttpReason, HttpRequest

MAX_HEADER_BYTES = 65_536
CONCURRENCY = 500
GRACE_S = 0.25
"""How long after its deadline an exchange may still report before its waiter is told that our own thread is late."""
FAIR_SHARE = 0.8
"""A timeout is the target's fault only when the target had at least this share of the deadline."""
USER_AGENT = "platform-monitor"
_USUAL_HEADERS = [f"User-Agent: {USER_AGENT}".encode()]


class CurlProbe:
    """Implements :class:`monitor.probes_contract.HttpProbe`: one thread, libcurl, a new connection each time.

    Use from one event loop. ``fetch`` raises ``CannotLook`` when the fault is on our side: our own queue, a request that cannot be
    sent, no CA bundle, no sockets left, or a dead probe thread.
    """

    def __init__(self, clock: Clock, *, concurrency: int = CONCURRENCY) -> None:
        self._clock = clock
        self._expiries = Expiries(clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[_Exchange] = set()
        self._dead: str | None = None
        self._curl = CurlThread(clock, limit=concurrency, equip=_equip, deliver=self._deliver, died=self._died)

    async def fetch(self, request: HttpRequest) -> HttpAnswer | HttpFailure:
        """Make one exchange; ``request.deadline_s`` runs from this call on. Failures of the target are values."""
        if self._dead:
            raise CannotLook(self._dead)
        _refuse_unsendable(request)
        loop = self._loop = asyncio.get_running_loop()
        exchange = _Exchange(request, self._clock, loop.create_future(), self._expiries)
        guard = loop.call_later(request.deadline_s + GRACE_S, self._give_up, exchange)
        self._open.add(exchange)
        self._curl.submit(exchange)
        try:
            return await exchange.future
        except asyncio.CancelledError:
            self._curl.cancel(exchange)
            raise
        finally:
            guard.cancel()
            self._open.discard(exchange)

    async def close(self) -> None:
        """Stop the thread. Whoever still waits is told that the probe was closed."""
        self._bury("the HTTP probe is closed")
        await asyncio.to_thread(self._curl.close)

    def _give_up(self, exchange: "_Exchange") -> None:
        if exchange.is_over:  # it is our own loop that comes to it late
            exchange.resolve()
            return
        self._curl.cancel(exchange)
        exchange.fail(CannotLook(exchange.late_because()))

    def _deliver(self, over: list[Transfer]) -> None:
        self._in_loop(partial(_resolve, over))

    def _died(self, exc: Exception) -> None:
        self._in_loop(partial(self._bury, f"the HTTP probe thread died ({exc!r}): restart the monitor"))

    def _in_loop(self, call: "partial[None]") -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed, so nobody waits
            return

    def _bury(self, why: str) -> None:
        self._dead = self._dead or why
        for exchange in list(self._open):
            exchange.fail(CannotLook(why))


def _resolve(over: list[Transfer]) -> None:
    for transfer in over:
        assert isinstance(transfer, _Exchange)
        transfer.resolve()


class _Exchange:
    """One request on its way, with its buffers and in the end its outcome."""

    def __init__(self, request: HttpRequest, clock: Clock, future: "asyncio.Future[HttpAnswer | HttpFailure]", expiries: Expiries) -> None:
        self.request = request
        self.trust = request.ca_file or ""
        self.leaves_traces = request.method != "GET" or bool(request.body) or "@" in request.url  # a handle keeps credentials, too
        self.future = future
        self.asked_at = clock.monotonic()
        self.abandoned = False
        self.given_s = 0.0
        """How much of the deadline was left when the exchange started; 0 while it waits in our own queue."""
        self._clock = clock
        self._expiries = expiries
        self._expires_at: float | None = None
        """What is known of the server's certificates; None when they are read with this exchange."""
        self._headers: list[bytes] = []
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._too_large: tuple[HttpReason, str] | None = None
        self._outcome: HttpAnswer | HttpFailure | CannotLook | None = None

    # --- in the event loop -------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self._outcome is not None

    def resolve(self) -> None:
        """Hand the outcome to whoever waits."""
        if self.future.done():
            return
        if isinstance(self._outcome, CannotLook):
            self.future.set_exception(self._outcome)
        elif self._outcome is not None:
            self.future.set_result(self._outcome)

    def fail(self, error: CannotLook) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def late_because(self) -> str:
        if self.given_s:
            return f"the HTTP probe thread gave no outcome within {self.request.deadline_s:g} s: the monitor is overloaded"
        return f"the probe waited {self.request.deadline_s:g} s in our own queue: probe less often or raise the concurrency"

    # --- in the thread -----------------------------------------------------------------------------------------------

    def begin(self, handle: pycurl.Curl) -> bool:
        left_s = self.request.deadline_s - (self._clock.monotonic() - self.asked_at)
        if left_s < 0.001:
            self._outcome = CannotLook(self.late_because())
            return False
        self.given_s = left_s
        try:
            _prepare(handle, self.request, left_s, self._on_header, self._on_body)
            if self.request.url.startswith("https://"):
                self._expires_at = self._expiries.of(self.request.url)
                verify_tls(handle, self.request.ca_file, read_chain=self._expires_at is None)
        except (pycurl.error, TypeError, ValueError) as exc:
            self._outcome = CannotLook(f"the request to {self.request.url!r} cannot be sent: {exc}")
            return False
        return True

    def end(self, handle: pycurl.Curl, code: int, message: str) -> None:
        is_tls = self.request.url.startswith("https://")
        phases = _phases(handle, tls=is_tls)
        if is_tls and (code != pycurl.E_OK or self._expires_at is None):
            self._expires_at = self._expiries.learn(self.request.url, handle if code == pycurl.E_OK else None)
        if code == pycurl.E_OK:
            self._outcome = HttpAnswer(
                status=int(handle.getinfo(pycurl.RESPONSE_CODE)),
                header_lines=tuple(self._headers),
                body=b"".join(self._body),
                phases=phases,
                tls_days_left=self._tls_days_left(),
            )
        elif self._too_large:
            self._outcome = HttpFailure(*self._too_large, phases)
        elif code == pycurl.E_OPERATION_TIMEDOUT and self.given_s < FAIR_SHARE * self.request.deadline_s:
            self._outcome = CannotLook(
                f"the probe waited {self.request.deadline_s - self.given_s:.1f} s of its {self.request.deadline_s:g} s in our own queue:"
                " probe less often or raise the concurrency"
            )
        elif code == pycurl.E_OPERATION_TIMEDOUT and self._header_bytes:
            self._outcome = HttpFailure(HttpReason.TOO_SLOW, _words(code, message, 0, self.request), phases)
        else:
            self._outcome = _failure(handle, code, message, phases, self.request)

    def _on_header(self, line: bytes) -> int:
        self._header_bytes += len(line)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._too_large = (HttpReason.HEADERS_TOO_LARGE, f"the headers are larger than {MAX_HEADER_BYTES} bytes")
            return -1
        self._headers.append(line)
        return len(line)

    def _on_body(self, chunk: bytes) -> int:
        self._body_bytes += len(chunk)
        if self._body_bytes > self.request.max_body_bytes:
            self._too_large = (HttpReason.TOO_LARGE, f"the body is larger than {self.request.max_body_bytes} bytes")
            return -1
        self._body.append(chunk)
        return len(chunk)

    def _tls_days_left(self) -> float | None:
        """Days until the first certificate of the chain expires."""
        return None if self._expires_at is None else (self._expires_at - self._clock.now().timestamp()) / 86_400


def _refuse_unsendable(request: HttpRequest) -> None:
    """Keep what would break the request's framing away from the wire."""
    if not request.url.startswith(("http://", "https://")):
        raise CannotLook(f"{request.url!r} is not an http:// or https:// address")
    if not "".join((request.url, request.method, *chain.from_iterable(request.headers))).isprintable():
        raise CannotLook(f"the request to {request.url!r} holds control characters: look at its path, method and headers")


def _equip(handle: pycurl.Curl) -> None:
    """What all exchanges have in common."""
    set_option = handle.setopt
    set_option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    set_option(pycurl.NOSIGNAL, 1)
    set_option(pycurl.PROXY, "")
    set_option(pycurl.FRESH_CONNECT, 1)
    set_option(pycurl.FORBID_REUSE, 1)
    set_option(pycurl.DNS_CACHE_TIMEOUT, 0)
    set_option(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    set_option(pycurl.ACCEPT_ENCODING, "gzip, deflate")


def _prepare(handle: pycurl.Curl, request: HttpRequest, left_s: float, on_header: object, on_body: object) -> None:
    """What an exchange has of its own. All but the method and a body is set every time, so that nothing of the one before is left."""
    set_option = handle.setopt
    set_option(pycurl.URL, request.url)
    set_option(pycurl.TIMEOUT_MS, max(1, int(left_s * 1000)))
    set_option(pycurl.HEADERFUNCTION, on_header)
    set_option(pycurl.WRITEFUNCTION, on_body)
    set_option(pycurl.HTTPHEADER, _header_lines(request))
    if request.method == "HEAD":
        set_option(pycurl.NOBODY, 1)
    elif request.body:
        set_option(pycurl.POSTFIELDS, request.body)
        set_option(pycurl.CUSTOMREQUEST, request.method)
    elif request.method != "GET":
        set_option(pycurl.CUSTOMREQUEST, request.method)


def _header_lines(request: HttpRequest) -> list[bytes]:
    if not request.headers:
        return _USUAL_HEADERS
    lines = [f"{name}: {value}".encode() for name, value in request.headers]
    return lines if any(name.lower() == "user-agent" for name, _ in request.headers) else lines + _USUAL_HEADERS


def _phases(handle: pycurl.Curl, *, tls: bool) -> HttpPhases:
    """Cut the exchange at libcurl's timers, which count from its start. The phase in which it ended gets what is left."""
    getinfo = handle.getinfo
    total_s = getinfo(pycurl.TOTAL_TIME)  # a timer of a phase that did not end stands at 0
    found = getinfo(pycurl.NAMELOOKUP_TIME) or total_s
    connected = max(found, getinfo(pycurl.CONNECT_TIME) or total_s)
    secured = max(connected, getinfo(pycurl.APPCONNECT_TIME) or total_s) if tls else connected
    answered = max(secured, getinfo(pycurl.STARTTRANSFER_TIME) or total_s)
    return HttpPhases(found, connected - found, secured - connected, answered - secured, max(answered, total_s) - answered, total_s)


# --- what libcurl's codes mean ---------------------------------------------------------------------------------------

_REASONS = {
    pycurl.E_COULDNT_RESOLVE_HOST: HttpReason.DNS,
    pycurl.E_OPERATION_TIMEDOUT: HttpReason.TIMEOUT,
    pycurl.E_GOT_NOTHING: HttpReason.RESET,
    pycurl.E_SEND_ERROR: HttpReason.RESET,
    pycurl.E_PARTIAL_FILE: HttpReason.RESET,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: HttpReason.GARBAGE,  # libcurl's CURLE_WEIRD_SERVER_REPLY
    pycurl.E_UNSUPPORTED_PROTOCOL: HttpReason.GARBAGE,  # HTTP/0.9, that is, no status line
    pycurl.E_BAD_CONTENT_ENCODING: HttpReason.GARBAGE,
    100: HttpReason.HEADERS_TOO_LARGE,  # CURLE_TOO_LARGE, which pycurl does not name: one header line beyond libcurl's own cap
    pycurl.E_SSL_CONNECT_ERROR: HttpReason.TLS,
    pycurl.E_SSL_CERTPROBLEM: HttpReason.TLS,
    pycurl.E_SSL_CIPHER: HttpReason.TLS,
}
_OURS = {
    pycurl.E_URL_MALFORMAT: "the address is malformed",
    pycurl.E_SSL_CACERT_BADFILE: "the CA file cannot be read",
    pycurl.E_OUT_OF_MEMORY: "the monitor is out of memory",
    pycurl.E_FAILED_INIT: "libcurl cannot start",
}
_OUR_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
# OpenSSL's X509_V_ERR_* of openssl/x509_vfy.h. libcurl compares the host name itself, before the chain, and then leaves 1 (0 in
# older releases).
_TLS_REASONS = {
    0: HttpReason.TLS_WRONG_HOST,
    1: HttpReason.TLS_WRONG_HOST,
    9: HttpReason.TLS_EXPIRED,  # not yet valid
    10: HttpReason.TLS_EXPIRED,
    18: HttpReason.TLS_UNTRUSTED,
    19: HttpReason.TLS_UNTRUSTED,
    20: HttpReason.TLS_UNTRUSTED,
    21: HttpReason.TLS_UNTRUSTED,
    62: HttpReason.TLS_WRONG_HOST,
    64: HttpReason.TLS_WRONG_HOST,  # an IP address
}


def _failure(handle: pycurl.Curl, code: int, message: str, phases: HttpPhases, request: HttpRequest) -> HttpFailure | CannotLook:
    os_errno = int(handle.getinfo(pycurl.OS_ERRNO))
    if code in _OURS:
        return CannotLook(f"{request.url!r} cannot be probed, {_OURS[code]}: {message}")
    if os_errno in _OUR_ERRNOS:
        return CannotLook(f"{request.url!r} cannot be probed, the monitor's machine has no socket left: {os.strerror(os_errno)}")
    return HttpFailure(_reason(handle, code, os_errno), _words(code, message, os_errno, request), phases)


def _reason(handle: pycurl.Curl, code: int, os_errno: int) -> HttpReason:
    if code == pycurl.E_OPERATION_TIMEDOUT and not handle.getinfo(pycurl.NAMELOOKUP_TIME):
        return HttpReason.DNS
    if code == pycurl.E_COULDNT_CONNECT:
        return HttpReason.REFUSED if os_errno == errno.ECONNREFUSED else HttpReason.UNREACHABLE
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        return _TLS_REASONS.get(int(handle.getinfo(pycurl.SSL_VERIFYRESULT)), HttpReason.TLS)
    if code == pycurl.E_RECV_ERROR:
        return HttpReason.RESET if os_errno else HttpReason.GARBAGE
    return _REASONS.get(code, HttpReason.OTHER)


def _words(code: int, message: str, os_errno: int, request: HttpRequest) -> str:
    if code == pycurl.E_OPERATION_TIMEDOUT:
        message = f"no whole answer within {request.deadline_s:g} s ({message})"
    elif code == pycurl.E_COULDNT_CONNECT and os_errno:
        message = f"{os.strerror(os_errno)} ({message})"
    return one_line(message or f"libcurl code {code}")
