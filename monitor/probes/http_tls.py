"""TLS of the HTTP probe: what is verified, which key exchanges are offered, and when the shown certificates expire."""

import re
import ssl
from functools import lru_cache

import pycurl

from monitor.clock import Clock

READ_AGAIN_S = 300
"""How long it is taken that a server still shows the certificates that it showed, while none of them ends soon."""
SOON_S = 30 * 86_400
"""A chain that ends sooner is read with every probe, so that a renewed one counts at once."""
REMEMBERED = 50_000
"""Servers whose chains are remembered, at most."""
CA_READ_AGAIN_S = 60
"""A CA bundle is used this long before it is read again (the machine's takes 7 ms), so that a changed one counts within a minute."""
_CA_CACHE_TIMEOUT = 321
"""libcurl's CURLOPT_CA_CACHE_TIMEOUT, which pycurl does not name. libcurl would go by an old bundle for a day."""
_GROUPS = "X25519:P-256:?X448:P-384:P-521:?ffdhe2048:?ffdhe3072:?X25519MLKEM768"
"""All that OpenSSL offers by itself, the cheapest first. Since 3.5 it would make keys for the post-quantum exchange each time, which
most servers do not use; one that wants it still gets it, after one more round trip. What is verified stays the same."""


def orders_groups(version: str) -> bool:
    """Whether the OpenSSL of this libcurl has a costly default, and the ``?`` for groups that it may lack."""
    found = re.search(r"\bOpenSSL/(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (3, 5)


_ORDERS_GROUPS = orders_groups(pycurl.version)


class Expiries:
    """When the first certificate of each server's chain expires. Every chain is verified; reading it too costs a twentieth of a probe.

    ``url`` stands for the server. Used in the probe's thread only.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, float]] = {}
        """By URL: Unix time of the expiry, and the monotonic time until which it is taken to hold."""

    def of(self, url: str) -> float | None:
        """When it expires, as Unix time; None when the chain is to be read with this exchange."""
        expires_at, holds_until = self._known.get(url, (0.0, 0.0))
        is_fresh = self._clock.monotonic() < holds_until and expires_at - self._clock.now().timestamp() > SOON_S
        return expires_at if is_fresh else None

    def learn(self, url: str, handle: pycurl.Curl | None) -> float | None:
        """Read the chain that the exchange was shown, and remember it. Without one, as when the exchange failed, what was known is
        forgotten: what answers next may be another server."""
        expires_at = None if handle is None else _first_expiry(handle)
        if expires_at is None:
            self._known.pop(url, None)
            return None
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[url] = (expires_at, self._clock.monotonic() + READ_AGAIN_S)
        return expires_at


def verify_tls(handle: pycurl.Curl, ca_file: str | None, *, read_chain: bool) -> None:
    """Verify chain and name against that bundle, or the machine's. Raises ``ValueError`` when there is none.

    Only with ``read_chain`` can the chain be read afterwards.
    """
    trusted = ca_file or system_ca_file()
    if trusted is None:
        raise ValueError("no CA bundle is found on this machine: install ca-certificates or set ca_file")
    handle.setopt(pycurl.CAINFO, trusted)
    handle.setopt(_CA_CACHE_TIMEOUT, CA_READ_AGAIN_S)
    handle.setopt(pycurl.SSL_VERIFYPEER, 1)
    handle.setopt(pycurl.SSL_VERIFYHOST, 2)
    handle.setopt(pycurl.SSL_SESSIONID_CACHE, 0)
    handle.setopt(pycurl.OPT_CERTINFO, int(read_chain))
    if _ORDERS_GROUPS:
        handle.setopt(pycurl.SSL_EC_CURVES, _GROUPS)


def system_ca_file() -> str | None:
    """The machine's CA bundle, as OpenSSL names it (``SSL_CERT_FILE`` wins)."""
    return ssl.get_default_verify_paths().cafile


def _first_expiry(handle: pycurl.Curl) -> float | None:
    """When the first certificate of the shown chain expires, as Unix time; None when none was shown."""
    return min(
        (
            _unix_time(value)
            for certificate in handle.getinfo_raw(pycurl.INFO_CERTINFO)
            for name, value in certificate
            if name == b"Expire date"
        ),
        default=None,
    )


@lru_cache(maxsize=4096)
def _unix_time(written: bytes) -> float:
    """OpenSSL's way to write a date, read. The same few dates come with every probe, and reading one takes 10 µs."""
    return ssl.cert_time_to_seconds(written.decode("ascii", "replace"))
