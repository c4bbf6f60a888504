"""PagerDuty's side of our incidents: which alert is whose, and how it stands there, read with the REST API v2.

Pages of at most 100, one request after the other, far below the 960 a minute that PagerDuty allows a key.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from pydantic import Field, SecretStr, field_validator

from alerts.json_http import JsonClient
from alerts.message import clean
from alerts.transport import HttpsUrl
from monitor.domain import Incident, IncidentState, Sighting, Standing, There, Upkeep
from monitor.errors import DeliveryError
from monitor.plugins import Duration, LocalPath, NotifyContext, PluginConfig, Secret

DEDUP_KEY_CHARS = 255
PAGE = 100
MOST_PAGES = 20
"""Open incidents beyond these pages are not seen at once; ours among them are looked up by their keys."""
MOST_LOOKUPS = 50
"""Of single incidents in one comparison, the worst first."""


class PagerDutyConfig(PluginConfig):
    """An Events API v2 integration. ``ca_file`` replaces the system's authorities, for a proxy or a test."""

    routing_key: Secret
    webhook_secret: Secret | None = None
    """Of a v3 webhook to ``/pagerduty/webhook``: who acknowledges there has it here."""
    base_url: HttpsUrl = "https://events.pagerduty.com"
    api_token: Secret | None = None
    """A REST API key that may read incidents; with it, open incidents are compared with PagerDuty's and what differs is repaired."""
    service_id: str | None = Field(default=None, pattern=r"^[A-Z0-9]{1,40}$")
    """Of the service behind the routing key, such as ``PIJ90N7``: only its incidents are compared."""
    api_url: HttpsUrl = "https://api.pagerduty.com"
    compare_every: Duration = Field(default=300.0, ge=30, le=86400)
    ca_file: LocalPath | None = None

    @field_validator("routing_key")
    @classmethod
    def _looks_like_a_key(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not re.fullmatch(r"[A-Za-z0-9]{32}", text):
            raise ValueError(f"expected an Events API v2 routing key of 32 letters and digits, got {len(text)} characters")
        return key


def keys_of(incident: Incident) -> tuple[str, ...]:
    """The deduplication keys of every asking, the present one last.

    PagerDuty stays quiet about an alert that is acknowledged. When our acknowledgement has ended, a new alert pages again and the
    older ones are resolved.
    """
    return askings(incident.id, incident.asked)


def askings(whole: str, asked: int) -> tuple[str, ...]:
    """The keys of so many askings: the key itself, then ``KEY.2``, ``KEY.3``."""
    return tuple((whole if number == 1 else f"{whole}.{number}")[:DEDUP_KEY_CHARS] for number in range(1, asked + 1))


def incident_of_key(key: str) -> str:
    """The incident, or the digest, that a deduplication key belongs to."""
    return key.partition(".")[0]


async def compare(ctx: NotifyContext, cfg: PagerDutyConfig, standings: tuple[Standing, ...]) -> tuple[Sighting, ...]:
    """How these incidents stand in PagerDuty, for as many as could be seen. Raises ``DeliveryError``."""
    assert cfg.api_token is not None
    token = cfg.api_token.get_secret_value()
    headers = {"Authorization": f"Token token={token}", "Accept": "application/vnd.pagerduty+json;version=2"}
    async with JsonClient(ctx, "PagerDuty's REST API", cfg.api_url, headers=headers, ca_file=cfg.ca_file, secrets=(token,)) as client:
        desk = _Desk(client, cfg)
        opened = {str(one.get("incident_key")): one for one in await desk.open()}
        found: list[Sighting] = []
        lookups = 0
        alone = [standing for standing in standings if standing.home is None]
        found += _taken_together([standing for standing in standings if standing.home is not None], opened)
        for standing in alone:
            *_, key = keys = keys_of(standing.incident)
            if standing.incident.state is IncidentState.RESOLVED:
                found += [_sighting(standing, opened[old]) for old in keys if old in opened][-1:]
            elif key in opened:
                found.append(_sighting(standing, opened[key]))
            elif standing.incident.state is IncidentState.OPEN and lookups < MOST_LOOKUPS:
                lookups += 1
                found.append(_sighting(standing, await desk.newest(key)))
    return tuple(found)


def _taken_together(standings: Iterable[Standing], opened: Mapping[str, dict[str, Any]]) -> Iterator[Sighting]:
    """Of a digest only that somebody took its alert: open there says nothing about any one of its incidents."""
    homes: dict[str, list[Standing]] = {}
    for standing in standings:
        homes.setdefault(standing.home or "", []).append(standing)
    for home, members in homes.items():
        *_, key = askings(home, max(standing.incident.asked for standing in members))
        for standing in members if key in opened else ():
            seen = _sighting(standing, opened[key])
            if seen.there is There.ACKED and standing.incident.state is IncidentState.OPEN:
                yield seen


COMPARING = Upkeep(every_s=lambda cfg: cfg.compare_every if cfg.api_token is not None else None, run=compare)


class _Desk:
    """What is asked of PagerDuty in one comparison."""

    def __init__(self, client: JsonClient, cfg: PagerDutyConfig) -> None:
        self._client = client
        self._common = [("date_range", "all"), ("limit", str(PAGE))] + ([("service_ids[]", cfg.service_id)] if cfg.service_id else [])

    async def open(self) -> list[dict[str, Any]]:
        """What is triggered or acknowledged now, of the configured service or of all that the key may see."""
        found: list[dict[str, Any]] = []
        for page in range(MOST_PAGES):
            asked = [("statuses[]", "triggered"), ("statuses[]", "acknowledged"), ("offset", str(page * PAGE))]
            listed, more = await self._list(asked)
            found += listed
            if not more:
                break
        return found

    async def newest(self, key: str) -> dict[str, Any] | None:
        """The youngest incident with this key, whatever its state; PagerDuty looks among the keys of its alerts too."""
        listed, _ = await self._list([("incident_key", key), ("sort_by", "created_at:desc")])
        still_open = [one for one in listed if one.get("status") != "resolved"]
        return next(iter(still_open or listed), None)

    async def _list(self, asked: Iterable[tuple[str, str]]) -> tuple[list[dict[str, Any]], bool]:
        body = (await self._client.call("GET", f"incidents?{urlencode([*asked, *self._common])}")).body
        listed = body.get("incidents") if isinstance(body, Mapping) else None
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise DeliveryError("PagerDuty's answer lists no incidents: something in between answered for it", retryable=True)
        return listed, body.get("more") is True


def _sighting(standing: Standing, seen: dict[str, Any] | None) -> Sighting:
    if seen is None:
        return Sighting(standing, There.MISSING)
    at = _moment(seen.get("last_status_change_at"))
    match seen.get("status"):
        case "acknowledged":
            taken = [_person(one.get("acknowledger")) for one in seen.get("acknowledgements") or [] if isinstance(one, dict)]
            return Sighting(standing, There.ACKED, next((who for who in reversed(taken) if who), None), at)
        case "resolved":
            return Sighting(standing, There.RESOLVED, _person(seen.get("last_status_change_by")), at)
        case _:
            return Sighting(standing, There.OPEN, _person(seen.get("last_status_change_by")), at)


def _person(reference: Any) -> str | None:
    """The name of a user; None for a service, an integration or nobody."""
    if not isinstance(reference, dict) or not str(reference.get("type", "")).startswith("user"):
        return None
    return by_pagerduty(reference)


def by_pagerduty(reference: Mapping[str, Any]) -> str:
    """How somebody who acted in PagerDuty is called here."""
    return f"{clean(str(reference.get('summary') or ''), 80) or 'somebody'} (PagerDuty)"


def _moment(text: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        return None
    return at if at.tzinfo else None
