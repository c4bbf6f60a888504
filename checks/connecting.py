"""Why a connection could not be made, told apart by one word each and in words for a person."""

import errno
import re
import socket
import ssl

from monitor.errors import CannotLook

OUR_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}

# OpenSSL's X509_V_ERR_* of openssl/x509_vfy.h
_CERTIFICATE = {
    9: ("tls_expired", "its certificate is not yet valid"),
    10: ("tls_expired", "its certificate is expired"),
    18: ("tls_self_signed", "its certificate is signed by itself"),
    19: ("tls_untrusted", "its certificate comes from an authority that is not trusted"),
    20: ("tls_untrusted", "its certificate comes from an authority that is not trusted"),
    21: ("tls_untrusted", "its certificate comes without its chain"),
    62: ("tls_wrong_host", "its certificate is for another host"),
    64: ("tls_wrong_host", "its certificate is for another address"),
}

_KINDS: tuple[tuple[type[Exception], str, str], ...] = (
    (ssl.SSLError, "tls", "the TLS handshake failed"),
    (TimeoutError, "timeout", "nothing within {deadline}"),
    (socket.gaierror, "dns", "its name cannot be resolved"),
    (ConnectionRefusedError, "refused", "connection refused"),
    (ConnectionError, "reset", "it closed the connection"),
)


def reason_of(exc: Exception, *, deadline_s: float) -> tuple[str, str]:
    """One word, and words. Raises ``CannotLook`` when it is the monitor's own machine that lacks something."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _CERTIFICATE.get(exc.verify_code, ("tls_untrusted", f"its certificate is refused: {exc.verify_message}"))
    if isinstance(exc, OSError) and exc.errno in OUR_ERRNOS:
        raise CannotLook(f"the monitor's machine has no socket left: {exc.strerror}") from exc
    if isinstance(exc, ssl.SSLError) and re.search("UNSUPPORTED_PROTOCOL|ALERT_PROTOCOL_VERSION", exc.reason or ""):
        return "tls_protocol", "it speaks no TLS version of today"
    for kind, reason, words in _KINDS:
        if isinstance(exc, kind):
            return reason, words.format(deadline=f"{deadline_s:g} s")
    return "unreachable", "it cannot be reached"
