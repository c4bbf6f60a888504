"""TLS of the HTTP probe: what is verified, which key exchanges are offered, and when the shown certificates expire."""

import re
import ssl
from functools import lru_cache

import pycurl

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


def verify_tls(handle: pycurl.Curl, ca_file: str | None) -> None:
    """Verify chain and name against that bundle, or the machine's. Raises ``ValueError`` when there is none."""
    trusted = ca_file or system_ca_file()
    if trusted is None:
        raise ValueError("no CA bundle is found on this machine: install ca-certificates or set ca_file")
    handle.setopt(pycurl.CAINFO, trusted)
    handle.setopt(_CA_CACHE_TIMEOUT, CA_READ_AGAIN_S)
    handle.setopt(pycurl.SSL_VERIFYPEER, 1)
    handle.setopt(pycurl.SSL_VERIFYHOST, 2)
    handle.setopt(pycurl.SSL_SESSIONID_CACHE, 0)
    handle.setopt(pycurl.OPT_CERTINFO, 1)
    if _ORDERS_GROUPS:
        handle.setopt(pycurl.SSL_EC_CURVES, _GROUPS)


def system_ca_file() -> str | None:
    """The machine's CA bundle, as OpenSSL names it (``SSL_CERT_FILE`` wins)."""
    return ssl.get_default_verify_paths().cafile


def first_expiry(handle: pycurl.Curl) -> float | None:
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
