"""Pages through PagerDuty's Events API v2: one alert per incident, keyed by the incident's id.

Owns the event's shape and the fence around the ``pagerduty`` client, which would otherwise sleep and retry by itself.
"""

import logging
from datetime import datetime
from typing import Any

import httpx2
import pagerduty as api

from alerts.message import Message, clean, compose
from alerts.pagerduty_incidents import COMPARING, PagerDutyConfig, keys_of
from alerts.transport import retry_after_s, run_blocking, tls_context
from monitor.domain import Notification, Receipt, Severity, Transition
from monitor.errors import DeliveryError
from monitor.plugins import NotifyContext, notifier

SUMMARY_CHARS = 1024
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


@notifier("pagerduty", config=PagerDutyConfig, per_minute=110, upkeep=COMPARING)  # about 120 calls a minute a key; a little below
async def pagerduty(ctx: NotifyContext, cfg: PagerDutyConfig, notification: Notification) -> Receipt:
    """Opens, acknowledges and resolves one PagerDuty alert per incident and asking (Events API v2)."""
    now = ctx.clock.now()
    event = build_event(notification, now)
    action, (*older, key) = ACTIONS[notification.transition], keys_of(notification.incident)

    def send() -> str:
        with _client(cfg, ctx.deadline_s) as client:
            answered: str = client.send_event(action, dedup_key=key, **event)
            for past in older if action != "acknowledge" else ():
                client.send_event("resolve", dedup_key=past)
            return answered

    try:
        reference = await run_blocking(send, name="PagerDuty", deadline_s=ctx.deadline_s)
    except api.Error as exc:
        raise _delivery_error(exc, cfg, now) from exc
    except httpx2.InvalidURL as exc:
        raise DeliveryError(f"PagerDuty: base_url is not a usable address: {exc}", retryable=False) from exc
    return Receipt(reference=reference)


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
