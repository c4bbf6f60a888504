"""Any receiver of Alertmanager's webhooks: one POST for each transition, in its version 4 form."""

import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from alerts.fingerprint import fingerprint
from alerts.json_http import JsonClient
from alerts.message import Message, as_line, compose
from alerts.transport import HttpsUrl
from monitor.domain import Notification, Receipt, pairs
from monitor.plugins import LocalPath, NotifyContext, PluginConfig, Secret, notifier


class WebhookConfig(PluginConfig):
    """Where to POST. ``bearer`` is sent as a token; with ``secret``, ``X-Monitor-Signature`` is the body's HMAC-SHA256 in hex."""

    url: HttpsUrl
    bearer: Secret | None = None
    secret: Secret | None = None
    receiver: str = Field(default="monitor", min_length=1, max_length=100)
    ca_file: LocalPath | None = None


@notifier("webhook", config=WebhookConfig)
async def webhook(ctx: NotifyContext, cfg: WebhookConfig, notification: Notification) -> Receipt:
    """POSTs each transition of an incident in the form of Alertmanager's webhooks (version 4)."""
    message = compose(notification, ctx.clock.now())
    body = json.dumps(payload(notification, message, cfg.receiver), ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"{notification.dedup_key}-{notification.id}"}
    secrets = tuple(secret.get_secret_value() for secret in (cfg.bearer, cfg.secret) if secret is not None)
    if cfg.bearer is not None:
        headers["Authorization"] = f"Bearer {cfg.bearer.get_secret_value()}"
    if cfg.secret is not None:
        signature = hmac.new(cfg.secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()
        headers["X-Monitor-Signature"] = f"sha256={signature}"
    parts = urlsplit(cfg.url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    async with JsonClient(ctx, "the webhook", cfg.url, headers=headers, ca_file=cfg.ca_file, secrets=secrets) as client:
        await client.call("POST", f"{parts.scheme}://{parts.netloc}{path or '/'}", content=body)
    return Receipt(reference=notification.dedup_key)


def payload(notification: Notification, message: Message, receiver: str) -> dict[str, Any]:
    """The incident as one alert of a group of its own."""
    incident = notification.incident
    labels = {"alertname": incident.title, "service": incident.service, "severity": incident.severity.name}
    labels |= {"incident": incident.code} if incident.code else {}
    annotations = {
        "summary": message.what,
        "evidence": "\n".join(message.evidence),
        "first_step": message.first_step,
        "why_now": message.sentence,
        "transition": notification.transition.value,
    }
    annotations = {name: text for name, text in annotations.items() if text}
    group = {"incident_id": incident.id}
    status = "resolved" if message.over else "firing"
    alert = {
        "status": status,
        "labels": labels | group,
        "annotations": annotations,
        "startsAt": incident.opened_at.isoformat(),
        "endsAt": incident.resolved_at.isoformat() if message.over and incident.resolved_at else "0001-01-01T00:00:00Z",
        "generatorURL": message.links[0].url if message.links else "",
        "fingerprint": fingerprint(pairs(labels | group)),
    }
    return {
        "version": "4",
        "groupKey": f"{{}}:{{incident_id={json.dumps(incident.id)}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": receiver,
        "notification_reason": as_line(message),
        "groupLabels": group,
        "commonLabels": labels | group,
        "commonAnnotations": annotations,
        "externalURL": message.links[0].url.partition("/incidents/")[0] if message.links else "",
        "alerts": [alert],
    }
