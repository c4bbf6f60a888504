"""A cluster of Alertmanagers, or another monitor, fed with our incidents: one alert per incident, posted to every peer.

An Alertmanager keeps alerts in memory, shares none of them with its peers, and forgets what is not sent again: what is open is
therefore sent to all of them again and again, and what has just ended too, so that a peer that was away learns of both.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from alerts.json_http import JsonClient
from alerts.message import TAKE, compose
from monitor.domain import Incident, IncidentState, Link, Notification, Receipt, Severity, Sighting, Standing, Transition, Upkeep, pairs
from monitor.errors import DeliveryError
from monitor.plugins import Duration, LocalPath, NotifyContext, PluginConfig, Secret, notifier

BATCH = 256
END_AGAIN = timedelta(minutes=15)
"""How long an end is sent again, as Prometheus does."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_LABEL = "label."
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

Alert = dict[str, Any]


def _peer(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("expected the address of an Alertmanager such as https://alertmanager.example.com:9093")
    return url.rstrip("/")


class AlertmanagerConfig(PluginConfig):
    """Every peer of a cluster. ``user`` with ``password``, or ``bearer``, go to all of them, and never in clear beyond this machine."""

    urls: tuple[Annotated[str, AfterValidator(_peer)], ...] = Field(min_length=1, max_length=16)
    user: str | None = Field(default=None, min_length=1, max_length=200)
    password: Secret | None = None
    bearer: Secret | None = None
    hold: Duration = Field(default=1800.0, ge=300, le=7 * 86400)
    """How long an Alertmanager keeps what is open when this monitor is silent."""
    refresh: Duration = Field(default=60.0, ge=10, le=3600)
    """How often what is open is sent again."""
    ca_file: LocalPath | None = None

    @model_validator(mode="after")
    def _credentials_are_whole_and_protected(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password are given together or not at all")
        if self.user and self.bearer:
            raise ValueError("give either user and password or bearer")
        clear = [url for url in self.urls if urlsplit(url).scheme == "http" and urlsplit(url).hostname not in LOOPBACK]
        if clear and (self.user or self.bearer):
            raise ValueError(f"credentials need https://, and {clear[0]} is not: they never travel in clear")
        if self.hold < 3 * self.refresh:
            raise ValueError("hold is at least three times refresh, or a round that fails ends what is open")
        return self


async def send_again(ctx: NotifyContext, cfg: AlertmanagerConfig, standings: tuple[Standing, ...]) -> tuple[Sighting, ...]:
    """Tell every peer what is open, and what ended lately. Raises ``DeliveryError`` when one of them could not be told."""
    now = ctx.clock.now()
    alerts: list[Alert] = []
    for number, standing in enumerate(standings):
        if number % 100 == 99:
            await asyncio.sleep(0)  # thousands are half a second's work: others have their turn
        ended = standing.incident.resolved_at
        if ended is None or now - ended <= END_AGAIN:
            alerts += alerts_of(standing.incident, standing.first_receipt, cfg, now)
    missed = await _post(ctx, cfg, alerts) if alerts else ()
    if missed:
        raise _joined(missed)
    return ()


@notifier(
    "alertmanager", config=AlertmanagerConfig, wants_labels=True, upkeep=Upkeep(every_s=lambda cfg: float(cfg.refresh), run=send_again)
)
async def alertmanager(ctx: NotifyContext, cfg: AlertmanagerConfig, notification: Notification) -> Receipt:
    """Posts one alert per incident to every peer of an Alertmanager cluster, keeps it there while it is open, and ends it."""
    receipt = notification.first_receipt or _first(notification)
    alerts = alerts_of(_as_told(notification), receipt, cfg, ctx.clock.now())
    if alerts:
        missed = await _post(ctx, cfg, alerts)
        if len(missed) == len(cfg.urls):
            raise _joined(missed)
    return receipt


def alerts_of(incident: Incident, first: Receipt, cfg: AlertmanagerConfig, now: datetime) -> list[Alert]:
    """The incident as Alertmanager's alert. Its labels are those of its first sending, or Alertmanager would take it for another.

    The label ``severity`` routes, so it follows the incident's: the alerts of the severities it had before are ended.
    """
    detail = dict(first.detail)
    labels = {name.removeprefix(_LABEL): text for name, text in detail.items() if name.startswith(_LABEL)}
    if not labels:
        return []  # it came from another monitor, which feeds its Alertmanagers itself
    over = incident.state is IncidentState.RESOLVED
    ends_at = (incident.resolved_at or now) if over else now + timedelta(seconds=cfg.hold)
    common = {"annotations": _annotations(incident, detail.get("url", ""), now), "startsAt": _instant(incident.opened_at)}
    common |= {"generatorURL": detail["url"]} if detail.get("url") else {}
    before = [severity for severity in Severity if incident.severity < severity <= Severity[labels["severity"]]]
    ended = [{**common, "labels": {**labels, "severity": one.name}, "endsAt": _instant(now)} for one in before]
    return [{**common, "labels": {**labels, "severity": incident.severity.name}, "endsAt": _instant(ends_at)}, *ended]


def _first(notification: Notification) -> Receipt:
    """What every later sending needs to name the same alert."""
    incident, own = notification.incident, dict(notification.labels)
    if "incident_id" in own:
        return Receipt(reference=notification.dedup_key)
    labels = {name: text for name, text in own.items() if text and _LABEL_NAME.fullmatch(name)}
    labels = {"alertname": incident.title, "service": incident.service, **labels}
    labels |= {"severity": incident.severity.name, "incident_id": incident.id}
    labels |= {"incident": incident.code} if incident.code else {}
    url = compose(notification, notification.created_at).links[:1]
    detail = {f"{_LABEL}{name}": text for name, text in labels.items()} | ({"url": url[0].url} if url else {})
    return Receipt(reference=notification.dedup_key, detail=pairs(detail))


def _as_told(notification: Notification) -> Incident:
    """What this notification tells: an end is an end."""
    over = notification.transition is Transition.RESOLVED
    return notification.incident if not over else notification.incident._replace(state=IncidentState.RESOLVED)


def _annotations(incident: Incident, url: str, now: datetime) -> dict[str, str]:
    over = incident.state is IncidentState.RESOLVED
    transition = Transition.RESOLVED if over else Transition.ACKED if incident.state is IncidentState.ACKED else Transition.TRIGGERED
    links = (Link("Incident", url),) if url else ()
    message = compose(Notification(0, incident, transition, "", incident.id, "", now, 1, links), now)
    state = f"acknowledged by {incident.acked_by}" if incident.state is IncidentState.ACKED else incident.state.value
    found = {
        "summary": message.what,
        "title": message.title,
        "since": message.began,
        "how_bad": message.how_bad,
        "state": state,
        "evidence": "\n".join(message.evidence),
        "first_step": message.first_step,
        "incident_url": url,
        "acknowledge_url": f"{url}{TAKE}" if url and incident.state is IncidentState.OPEN else "",
    }
    return {name: text for name, text in found.items() if text}


async def _post(ctx: NotifyContext, cfg: AlertmanagerConfig, alerts: list[Alert]) -> tuple[DeliveryError, ...]:
    """To every peer at once; returns why some were not told."""
    told = await asyncio.gather(*(_post_to(ctx, cfg, url, alerts) for url in cfg.urls), return_exceptions=True)
    for outcome in told:
        if isinstance(outcome, BaseException) and not isinstance(outcome, DeliveryError):
            raise outcome
    return tuple(outcome for outcome in told if isinstance(outcome, DeliveryError))


async def _post_to(ctx: NotifyContext, cfg: AlertmanagerConfig, url: str, alerts: list[Alert]) -> None:
    parts = urlsplit(url)
    headers: Mapping[str, str] = {"Authorization": f"Bearer {cfg.bearer.get_secret_value()}"} if cfg.bearer else {}
    auth = (cfg.user, cfg.password.get_secret_value()) if cfg.user and cfg.password else None
    secrets = tuple(secret.get_secret_value() for secret in (cfg.password, cfg.bearer) if secret is not None)
    name = f"Alertmanager {parts.netloc}"
    async with JsonClient(ctx, name, url, headers=headers, ca_file=cfg.ca_file, secrets=secrets, auth=auth) as client:
        for start in range(0, len(alerts), BATCH):
            await client.call("POST", "api/v2/alerts", alerts[start : start + BATCH])


def _joined(missed: Iterable[DeliveryError]) -> DeliveryError:
    missed = tuple(missed)
    waits = [error.retry_after_s for error in missed if error.retry_after_s is not None]
    reason = "; ".join(str(error) for error in missed)
    return DeliveryError(reason, retryable=any(error.retryable for error in missed), retry_after_s=min(waits, default=None))


def _instant(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
