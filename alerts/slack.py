"""One Slack card per incident or digest, edited as it moves on, with its history in the card's thread.

Owns the exchange with Slack's Web API and which answers are worth another attempt; the card's looks are in ``slack_card.py``.
"""

import asyncio
import json
from typing import Any

import httpx2
from pydantic import SecretStr, field_validator

from alerts.digest_message import compose_digest
from alerts.message import clean, compose
from alerts.slack_card import build_card, thread_line
from alerts.slack_digest import build_digest_card, digest_thread_line
from alerts.transport import HttpsUrl, retry_after_s, tls_context
from monitor.domain import Digest, Notification, Receipt, Transition, pairs
from monitor.errors import DeliveryError
from monitor.plugins import Digesting, LocalPath, NotifyContext, PluginConfig, Secret, notifier

ANSWER_BYTES = 1_048_576
LOUD = frozenset({Transition.ESCALATED, Transition.RAISED, Transition.REMINDED})
"""Transitions whose thread line is shown in the channel too: an edited card notifies nobody."""

GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed", "thread_not_found"})
"""The card was deleted or may no longer be edited: post a new one."""

CURES = {
    "invalid_auth": "the token is not valid",
    "not_authed": "no token was sent",
    "account_inactive": "the token's app or user was removed",
    "token_revoked": "the token was revoked",
    "token_expired": "the token has expired",
    "missing_scope": "the app needs the scope chat:write",
    "no_permission": "the app needs the scope chat:write",
    "not_allowed_token_type": "use a bot token (xoxb-…)",
    "channel_not_found": "no such channel, or a private one: invite the app",
    "not_in_channel": "invite the app to the channel",
    "is_archived": "the channel is archived",
    "restricted_action": "a workspace setting forbids posting here",
    "ekm_access_denied": "an administrator suspended posting",
    "invalid_arguments": "",
    "invalid_blocks": "",
    "invalid_blocks_format": "",
    "invalid_attachments": "",
    "msg_blocks_too_long": "",
    "msg_too_long": "",
    "no_text": "",
    "too_many_attachments": "",
}
"""Answers that another attempt cannot change, with the cure. Any other ``ok: false`` is tried again: rather twice than never."""


class SlackConfig(PluginConfig):
    """A bot token with ``chat:write`` and a channel. ``ca_file`` replaces the system's authorities, for a proxy or a test."""

    token: Secret
    signing_secret: Secret | None = None
    """Of the app; with it, and ``/slack/interactions`` as the app's request URL, the cards have buttons to acknowledge and silence."""
    channel: str
    """``#name`` or a channel id."""
    base_url: HttpsUrl = "https://slack.com/api/"
    ca_file: LocalPath | None = None

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr) -> SecretStr:
        text = token.get_secret_value()
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("expected a Slack token such as xoxb-…, without spaces or special characters")
        return token

    @field_validator("channel")
    @classmethod
    def _names_a_channel(cls, channel: str) -> str:
        if not channel.strip("#") or clean(channel, 80) != channel or " " in channel:
            raise ValueError('expected a channel such as "#ops" or its id')
        return channel


async def slack_digest(ctx: NotifyContext, cfg: SlackConfig, digest: Digest) -> Receipt:
    """One card for all of a digest; later its counts are edited, and what happened is a line in its thread."""
    message = compose_digest(digest, ctx.clock.now())
    card = build_digest_card(message, digest, interactive=cfg.signing_secret is not None)
    loud = any(item.transition in LOUD for item in digest.items)
    return await _show(ctx, cfg, card, _card_of(digest.first_receipt), digest_thread_line(message, digest), loud=loud)


# one message a second a channel, by Slack; a little below, for the edits
@notifier("slack", config=SlackConfig, per_minute=50, digest=Digesting(slack_digest))
async def slack(ctx: NotifyContext, cfg: SlackConfig, notification: Notification) -> Receipt:
    """Posts one card per incident to a channel, edits it at every transition and keeps the history in its thread."""
    message = compose(notification, ctx.clock.now())
    card = build_card(message, interactive=cfg.signing_secret is not None)
    loud = notification.transition in LOUD
    return await _show(ctx, cfg, card, _card_of(notification.first_receipt), thread_line(message), loud=loud)


async def _show(ctx: NotifyContext, cfg: SlackConfig, card: dict[str, Any], first: dict[str, str], line: str, *, loud: bool) -> Receipt:
    """Post a card, or edit the first one and say in its thread what happened."""
    try:
        async with asyncio.timeout(ctx.deadline_s), _client(cfg, ctx.deadline_s) as client:
            talk = _Talk(ctx, client)
            # The edit first: should the line fail, the retry repeats the edit, which changes nothing, and then the line.
            if first and await talk.update({"channel": first["channel"], "ts": first["ts"], **card}):
                said = {"channel": first["channel"], "thread_ts": first["ts"], "text": line, "reply_broadcast": loud}
                answer = await talk.call("chat.postMessage", {**said, **_PLAIN})
                return Receipt(reference=str(answer["ts"]), detail=pairs(first))
            answer = await talk.call("chat.postMessage", {"channel": cfg.channel, **card, **_PLAIN})
    except TimeoutError as exc:
        raise DeliveryError(f"Slack did not answer within {ctx.deadline_s:g} s", retryable=True) from exc
    return Receipt(reference=str(answer["ts"]), detail=pairs({"channel": answer["channel"], "ts": answer["ts"]}))


def _card_of(first: Receipt | None) -> dict[str, str]:
    """``channel`` and ``ts`` of the first card, or nothing when none was posted."""
    detail = dict(first.detail) if first else {}
    return detail if detail.keys() >= {"channel", "ts"} else {}


_PLAIN = {"unfurl_links": False, "unfurl_media": False, "link_names": False}
"""Slack must not fetch the links it is shown, nor make mentions out of words."""


class _Talk:
    """Calls of one notification to Slack's Web API."""

    def __init__(self, ctx: NotifyContext, client: httpx2.AsyncClient) -> None:
        self._ctx = ctx
        self._client = client

    async def update(self, body: dict[str, Any]) -> bool:
        """Edit a card; False when it is gone."""
        answer = await self._exchange("chat.update", body)
        if answer.get("error") in GONE:
            return False
        self._judge(answer)
        return True

    async def call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._exchange(method, body)
        self._judge(answer)
        if "ts" not in answer or "channel" not in answer:
            raise DeliveryError("Slack's answer names no message: something in between answered for it", retryable=True)
        return answer

    async def _exchange(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._client.stream("POST", method, json=body) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes(65_536):
                    content += chunk
                    if len(content) > ANSWER_BYTES:
                        raise DeliveryError("Slack's answer is larger than 1 MiB: something in between answered for it", retryable=True)
        except httpx2.TimeoutException as exc:
            raise DeliveryError(f"Slack did not answer in time ({type(exc).__name__})", retryable=True) from exc
        except (httpx2.TransportError, httpx2.DecodingError) as exc:
            cause = clean(str(exc), 200)
            raise DeliveryError(f"Slack is not reachable: {type(exc).__name__}{f': {cause}' if cause else ''}", retryable=True) from exc
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as exc:
            raise DeliveryError(f"Slack: base_url is not a usable address: {clean(str(exc), 200)}", retryable=False) from exc
        return self._read(response, bytes(content))

    def _read(self, response: httpx2.Response, content: bytes) -> dict[str, Any]:
        status = response.status_code
        if status == 429:
            wait_s = retry_after_s(response.headers.get("Retry-After"), self._ctx.clock.now())
            raise DeliveryError("Slack answered 429: too many messages for this channel", retryable=True, retry_after_s=wait_s)
        if status != 200:
            hint = ": redirects are not followed, check base_url" if 300 <= status < 400 else ""
            raise DeliveryError(f"Slack answered {status}{hint}", retryable=status >= 500)
        try:
            answer = json.loads(content)
        except ValueError as exc:
            raise DeliveryError("Slack's answer is not JSON: something in between answered for it", retryable=True) from exc
        if not isinstance(answer, dict):
            raise DeliveryError("Slack's answer is not a JSON object: something in between answered for it", retryable=True)
        return answer

    @staticmethod
    def _judge(answer: dict[str, Any]) -> None:
        """Raise unless ``ok``."""
        if answer.get("ok") is True:
            return
        code = clean(str(answer.get("error", "no reason given")), 60)
        cure = CURES.get(code)
        raise DeliveryError(f"Slack refused: {code}{f' ({cure})' if cure else ''}", retryable=cure is None)


def _client(cfg: SlackConfig, deadline_s: float) -> httpx2.AsyncClient:
    """Redirects are not followed: they would carry the token elsewhere."""
    return httpx2.AsyncClient(
        base_url=cfg.base_url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {cfg.token.get_secret_value()}"},
        verify=tls_context(cfg.ca_file),
        timeout=min(5.0, deadline_s),
        follow_redirects=False,
    )
