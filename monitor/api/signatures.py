"""Who really sent a request: Slack's and PagerDuty's signatures over the raw body. No I/O."""

import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime

WINDOW_S = 300.0
EVENT_WINDOW_S = 6 * 3600.0
"""How old an event of PagerDuty may be: it tries to deliver one for about twenty minutes."""


class _At:
    """The SDK's clock, at a moment of ours."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now


def slack_signed(body: bytes, timestamp: str, signature: str, secrets: Iterable[str], now: float) -> bool:
    """Whether one of the signing secrets signed this body within five minutes of ``now`` (seconds since 1970)."""
    from slack_sdk.signature import SignatureVerifier  # noqa: PLC0415 - 1.6 MiB, and not needed before the first button

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


def pagerduty_stale(occurred_at: object, now: float) -> bool:
    """Whether an event happened too long ago to be a delivery of PagerDuty's; its signature has no time, but covers this one."""
    try:
        at = datetime.fromisoformat(occurred_at if isinstance(occurred_at, str) else "")
    except ValueError:
        return True
    return at.tzinfo is None or at.timestamp() < now - EVENT_WINDOW_S
