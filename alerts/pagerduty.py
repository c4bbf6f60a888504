"""Pages through PagerDuty's Events API v2: one alert per incident or digest, keyed by its id.

Owns the event's shape and the fence around the ``pagerduty`` client, which would otherwise sleep and retry by itself.
"""

import json
import logging
from datetime import datetime
from typing import Any

import httpx2
import pagerduty as api

from alerts.digest_message import DigestMessage, compose_digest
from alerts.message import Message, clean, compose
from alerts.pagerduty_incidents import COMPARING, PagerDutyConfig, askings, keys_of
from alerts.transport import retry_after_s, run_blocking, tls_context
from monitor.domain import Digest, Notification, Receipt, Severity, Transition
from monitor.errors import DeliveryError
from monitor.plugins import Digesting, NotifyContext, notifier

SUMMARY_CHARS = 1024
DETAILS_MOST = 500
"""Incidents of a digest that are listed in the alert's details."""
DETAILS_BYTES = 200_000
"""An event may have 512 KB."""
REQUEST_TIMEOUT_S = 5.0
"""Per connect and read; the whole exchange is under the context's deadline."""

ACTIONS = {
    Transition.TRIGGERED: "trigger",
    Transition.ESCALATED: "trigger",
    Transition.RAISED: "trigger",
    Transition.REMINDED: "trigger",
    Transition.ACKED: "acknowledge",
    Transition.RESOLVED: "resolve",
}
SEVERITIES = {Severity.P1: "critical", Severity.P2: "error", Severity.P3: "warning", Severity.P4: "info"}

_QUIET = logging.getLogger("monitor.pagerduty_client")
_QUIET.setLevel(logging.CRITICAL)  # a notifier logs nothing: its one result is the receipt or the error


async def pagerduty_digest(ctx: NotifyContext, cfg: PagerDutyConfig, digest: Digest) -> Receipt:
    """One alert for all of a digest: acknowledged when all of them are taken, resolved when the last of them is over."""
    now = ctx.clock.now()
    action = digest_action(digest)
    if action is None:
        return Receipt(reference=digest.home)  # some are over or taken, others not: PagerDuty has no word for that
    event = digest_event(digest, now) if action == "trigger" else {}
    return await _enqueue(ctx, cfg, action, askings(digest.home, digest.tally.asked), event)


# about 120 calls a minute a key; a little below
@notifier("pagerduty", config=PagerDutyConfig, per_minute=110, digest=Digesting(pagerduty_digest), upkeep=COMPARING)
async def pagerduty(ctx: NotifyContext, cfg: PagerDutyConfig, notification: Notification) -> Receipt:
    """Opens, acknowledges and resolves one PagerDuty alert per incident and asking (Events API v2)."""
    event = build_event(notification, ctx.clock.now())
    return await _enqueue(ctx, cfg, ACTIONS[notification.transition], keys_of(notification.incident), event)


async def _enqueue(ctx: NotifyContext, cfg: PagerDutyConfig, action: str, keys: tuple[str, ...], event: dict[str, Any]) -> Receipt:
    """One event under the last of the keys; the older ones are resolved, unless it only acknowledges."""
    *older, key = keys

    def send() -> str:
        with _client(cfg, ctx.deadline_s) as client:
            answered: str = client.send_event(action, dedup_key=key, **event)
            for past in older if action != "acknowledge" else ():
                client.send_event("resolve", dedup_key=past)
            return answered

    try:
        reference = await run_blocking(send, name="PagerDuty", deadline_s=ctx.deadline_s)
    except api.Error as exc:
        raise _delivery_error(exc, cfg, ctx.clock.now()) from exc
    except httpx2.InvalidURL as exc:
        raise DeliveryError(f"PagerDuty: base_url is not a usable address: {exc}", retryable=False) from exc
    return Receipt(reference=reference)


def digest_action(digest: Digest) -> str | None:
    """What PagerDuty is to be told, by how the incidents stand and not by what happened last; None when it has nothing to know."""
    tally = digest.tally
    if not digest.follows:
        return "trigger"
    if tally.unresolved == 0:
        return "resolve"
    if any(ACTIONS[item.transition] == "trigger" for item in digest.items):
        return "trigger"
    return "acknowledge" if tally.open == 0 else None


def build_event(notification: Notification, now: datetime) -> dict[str, Any]:
    """The event without routing key, action and dedup key, within the published limits. Empty for acknowledge and resolve."""
    if ACTIONS[notification.transition] != "trigger":
        return {}
    message = compose(notification, now)
    event: dict[str, Any] = {
        "payload": {
            "summary": clean(f"{message.title}: {message.what}", SUMMARY_CHARS),
            "source": message.where,
            "severity": SEVERITIES[message.severity],
            # Ours, always: the client's own timestamp property raises AttributeError in 7.2.
            "timestamp": notification.incident.opened_at.isoformat(),
            "component": message.where,
            "class": clean(notification.incident.code or notification.incident.title, 100),
            "group": clean(notification.incident.group, 255),
            "custom_details": _details(message),
        },
        "client": "monitor",
    }
    if message.links:
        event["links"] = [{"href": link.url, "text": link.title} for link in message.links]
        event["client_url"] = message.links[0].url
    return event


def digest_event(digest: Digest, now: datetime) -> dict[str, Any]:
    """The event of a digest, within the published limits: as many incidents as fit are in its details."""
    message = compose_digest(digest, now, DETAILS_MOST)
    services = digest.tally.services
    source = clean(services[0][0], 255) or "unknown service"
    payload = {
        "summary": clean(f"{message.title}: {message.severities}; {message.services}", SUMMARY_CHARS),
        "source": source if len(services) == 1 else "several services",
        "severity": SEVERITIES[message.severity],
        "timestamp": min(item.opened_at for item in digest.items).isoformat(),
        "class": "digest",
        "group": digest.home,
        "custom_details": _digest_details(message),
    }
    link = {"href": message.status_page.url, "text": message.status_page.title}
    return {"payload": payload, "client": "monitor", "client_url": message.status_page.url, "links": [link]}


def _digest_details(message: DigestMessage) -> dict[str, Any]:
    listed, room = [], DETAILS_BYTES
    for line in message.lines:
        text = f"{line.severity.name} {line.service}: {line.title}: {line.what} ({line.state}) {line.url}"
        room -= len(json.dumps(text)) + 2  # as the client writes it, beyond ASCII in escapes
        if room < 0:
            break
        listed.append(text)
    more = message.more + len(message.lines) - len(listed)
    details: dict[str, Any] = {
        "what is new": message.news,
        "how bad": message.severities,
        "where": message.services,
        "how they stand": message.standing,
        "incidents": listed,
    }
    if more:
        details["and more"] = f"{more} more on {message.status_page.url}"
    return details


def _details(message: Message) -> dict[str, Any]:
    details: dict[str, Any] = {
        "what": message.what,
        "where": message.where,
        "since": message.since,
        "how bad": message.how_bad,
        "why now": message.sentence,
        "incident": message.incident_id,
    }
    if message.evidence:
        details["evidence"] = list(message.evidence)
    if message.first_step:
        details["first step"] = message.first_step
    return details


def _client(cfg: PagerDutyConfig, deadline_s: float) -> api.EventsApiV2Client:
    """The fenced client: one request, no retry, no sleep, a short timeout."""
    client = api.EventsApiV2Client(cfg.routing_key.get_secret_value(), base_url=cfg.base_url.rstrip("/"), verify=tls_context(cfg.ca_file))
    client.log = _QUIET
    client.timeout = min(REQUEST_TIMEOUT_S, deadline_s)  # type: ignore[assignment]
    client.max_network_attempts = 0
    # A status listed here is returned at once when the attempts are used up, and -1 attempts are used up before the first; without
    # the entry, a 429 is retried for ever.
    client.max_http_attempts = -1
    client.retry = dict.fromkeys((429, 500, 502, 503, 504), 1)
    return client


def _delivery_error(error: api.Error, cfg: PagerDutyConfig, now: datetime) -> DeliveryError:
    """Sort by status. The client's own text is never passed on: it holds the end of the routing key."""
    response: httpx2.Response | None = error.response
    if response is None:
        cause = clean(str(error.__cause__) if error.__cause__ else "", 200)
        kind = type(error.__cause__).__name__ if error.__cause__ else "no answer"
        return DeliveryError(f"PagerDuty is not reachable: {kind}{f': {cause}' if cause else ''}", retryable=True)
    status = response.status_code
    if status == 429:
        wait_s = retry_after_s(response.headers.get("Retry-After"), now)
        return DeliveryError("PagerDuty answered 429: too many events for this routing key", retryable=True, retry_after_s=wait_s)
    said = clean(_said(response).replace(cfg.routing_key.get_secret_value(), "***"), 200)
    reason = f"PagerDuty answered {status}{f': {said}' if said else ''}"
    if 300 <= status < 400:
        return DeliveryError(f"{reason}: redirects are not followed, check base_url", retryable=False)
    # A 2xx that is not PagerDuty's answer comes from something in between: try again, the key folds duplicates.
    return DeliveryError(reason, retryable=status >= 500 or status < 300)


def _said(response: httpx2.Response) -> str:
    """The provider's own reasons, from its JSON error."""
    try:
        body = response.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    errors = body.get("errors")
    return "; ".join(map(str, errors)) if isinstance(errors, list) and errors else str(body.get("message", ""))
