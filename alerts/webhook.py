"""Any receiver of Alertmanager's webhooks: one POST for each transition, or for many at once, in its version 4 form."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
from pydantic import Field

from alerts.digest_message import count, news_of
from alerts.json_http import JsonClient
from alerts.message import TAKE, Message, as_line, compose, evidence_of, first_step_of, sentence_of, what_of
from alerts.transport import HttpsUrl
from monitor.domain import Digest, DigestItem, Incident, IncidentState, Notification, Receipt, Transition
from monitor.plugins import Digesting, LocalPath, NotifyContext, PluginConfig, Secret, notifier

BODY_BYTES = 900_000
"""nginx, as it comes, refuses bodies over a MiB."""


class WebhookConfig(PluginConfig):
    """Where to POST. ``bearer`` is sent as a token; with ``secret``, ``X-Monitor-Signature`` is the body's HMAC-SHA256 in hex."""

    url: HttpsUrl
    bearer: Secret | None = None
    secret: Secret | None = None
    receiver: str = Field(default="monitor", min_length=1, max_length=100)
    ca_file: LocalPath | None = None


async def webhook_digest(ctx: NotifyContext, cfg: WebhookConfig, digest: Digest) -> Receipt:
    """Many alerts in one body; in several when one would be too large for what usually stands before a receiver."""
    for part, body in digest_bodies(digest, cfg.receiver):
        await _post(ctx, cfg, body, f"{digest.key}-{part}")
    return Receipt(reference=digest.key)


@notifier("webhook", config=WebhookConfig, digest=Digesting(webhook_digest, gather_s=0.2, most=1000))
async def webhook(ctx: NotifyContext, cfg: WebhookConfig, notification: Notification) -> Receipt:
    """POSTs each transition of an incident in the form of Alertmanager's webhooks (version 4), many of them in one body."""
    message = compose(notification, ctx.clock.now())
    body = msgspec.json.encode(payload(notification, message, cfg.receiver))
    await _post(ctx, cfg, body, f"{notification.dedup_key}-{notification.id}")
    return Receipt(reference=notification.dedup_key)


def payload(notification: Notification, message: Message, receiver: str) -> dict[str, Any]:
    """The incident as one alert of a group of its own."""
    incident = notification.incident
    url = message.links[0].url if message.links else ""
    alert = _alert(incident, notification.transition, notification.reason, url)
    group = {"incident_id": incident.id}
    whole = _group(group, receiver, as_line(message), firing=not message.over, url=url.partition("/incidents/")[0])
    return {**whole, "commonLabels": alert["labels"], "commonAnnotations": alert["annotations"], "alerts": [alert]}


def digest_bodies(digest: Digest, receiver: str) -> Iterator[tuple[str, bytes]]:
    """All alerts of a digest, in as few bodies as their size allows, each with what tells it from the others.

    The group is the conversation: its key stays the same. It is resolved when every incident in it is over, whatever a body lists.
    """
    firing = not digest.follows or digest.tally.unresolved > 0
    reason = f"{count(len(digest.items))}: {news_of(digest.items)}"
    whole = _group({"digest": digest.home}, receiver, reason, firing=firing, url=digest.url)
    part = _Part()
    for item in digest.items:
        alert = _alert(item, item.transition, item.reason, digest.link(item.id))
        text = msgspec.json.encode(alert)
        if part.texts and part.size + len(text) > BODY_BYTES:
            yield part.name, part.body(whole)
            part = _Part()
        part.add(item.row, alert, text)
    name, body = part.name, part.body(whole)
    del part  # it is not kept while the body is on its way
    yield name, body


class _Part:
    """The alerts of one body, written, and what they have in common."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.size = 0
        self._first_row = 0
        self._common: dict[str, dict[str, str]] = {}

    @property
    def name(self) -> str:
        return f"{self._first_row}-{len(self.texts)}"

    def add(self, row: int, alert: dict[str, Any], written: bytes) -> None:
        if not self.texts:
            self._first_row = row
            self._common = {"commonLabels": alert["labels"], "commonAnnotations": alert["annotations"]}
        for name, mine in (("commonLabels", alert["labels"]), ("commonAnnotations", alert["annotations"])):
            common = self._common[name]
            if not common.items() <= mine.items():
                self._common[name] = {label: text for label, text in common.items() if mine.get(label) == text}
        self.texts.append(written)
        self.size += len(written) + 1

    def body(self, whole: dict[str, Any]) -> bytes:
        head = msgspec.json.encode({**whole, **self._common})
        return head[:-1] + b',"alerts":[' + b",".join(self.texts) + b"]}"


def _group(labels: dict[str, str], receiver: str, reason: str, *, firing: bool, url: str) -> dict[str, Any]:
    return {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f"{name}={json.dumps(text)}" for name, text in labels.items()) + "}",
        "truncatedAlerts": 0,
        "status": "firing" if firing else "resolved",
        "receiver": receiver,
        "notification_reason": reason,
        "groupLabels": labels,
        "externalURL": url,
    }


def _alert(incident: Incident | DigestItem, transition: Transition, reason: str, url: str) -> dict[str, Any]:
    """The same whether it is told alone or with others, so that a receiver knows it again.

    The fingerprint is the incident's id: Alertmanager's, made of all labels, would be another one once the severity has risen, and the
    end would not find what it ends.
    """
    over = transition is Transition.RESOLVED
    labels = {"alertname": incident.title, "service": incident.service, "severity": incident.severity.name}
    if incident.code:
        labels["incident"] = incident.code
    labels["incident_id"] = incident.id
    annotations = {
        "summary": what_of(incident),
        "evidence": "\n".join(evidence_of(incident)),
        "first_step": first_step_of(incident.first_step),
        "why_now": sentence_of(reason, transition),
        "transition": transition.value,
        "acknowledge_url": f"{url}{TAKE}" if url and incident.state is IncidentState.OPEN else "",
    }
    return {
        "status": "resolved" if over else "firing",
        "labels": labels,
        "annotations": {name: text for name, text in annotations.items() if text},
        "startsAt": incident.opened_at.isoformat(),
        "endsAt": incident.resolved_at.isoformat() if over and incident.resolved_at else "0001-01-01T00:00:00Z",
        "generatorURL": url,
        "fingerprint": incident.id.zfill(16),
    }


async def _post(ctx: NotifyContext, cfg: WebhookConfig, body: bytes, idempotency_key: str) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
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
