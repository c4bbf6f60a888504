"""Who really sent a request: Slack's and PagerDuty's signatures over the raw body, each accepted once. No I/O."""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable

from slack_sdk.signature import SignatureVerifier

WINDOW_S = 300.0
MOST_REMEMBERED = 10_000


class _At:
    """The SDK's clock, at a moment of ours."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now


class Once:
    """Remembers keys for a while: a request that was recorded and sent again is not obeyed twice."""

    def __init__(self, keep_s: float = 2 * WINDOW_S) -> None:
        self._keep_s = keep_s
        self._seen: OrderedDict[str, float] = OrderedDict()

    def first(self, key: str, now: float) -> bool:
        """Whether this key is new."""
        while self._seen and (len(self._seen) >= MOST_REMEMBERED or next(iter(self._seen.values())) < now - self._keep_s):
            self._seen.popitem(last=False)
        if key in self._seen:
            return False
        self._seen[key] = now
        return True

    def forget(self, key: str) -> None:
        """It could not be obeyed: let it come again."""
        self._seen.pop(key, None)


def slack_signed(body: bytes, timestamp: str, signature: str, secrets: Iterable[str], now: float) -> bool:
    """Whether one of the signing secrets signed this body within five minutes of ``now`` (seconds since 1970)."""
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12 or not signature.isascii():
        return False
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return False
    verifiers = [SignatureVerifier(secret, _At(now)) for secret in secrets]  # type: ignore[arg-type] # now() is all it calls
    return any(verifier.is_valid(text, timestamp, signature) for verifier in verifiers)


def pagerduty_signed(body: bytes, header: str, secrets: Iterable[str]) -> bool:
    """Whether one of the secrets made one of the header's ``v1=`` signatures; there are several while a secret is changed."""
    given = [part.strip().removeprefix("v1=").encode() for part in header.split(",") if part.strip().startswith("v1=")][:10]
    right = [hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().encode() for secret in secrets]
    return any(hmac.compare_digest(one, other) for one in given for other in right)
