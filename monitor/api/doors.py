"""The doors through which people take incidents: Slack's buttons, PagerDuty's webhook, the form on the incident's page.

All of them end in one function and one timeline. A GET never changes anything: scanners of mail follow links.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from pydantic import SecretStr

from alerts.pagerduty_incidents import PagerDutyConfig, by_pagerduty, incident_of_key
from alerts.reconcile import stays_open
from alerts.slack import SlackConfig
from alerts.slack_card import ACKNOWLEDGE, SILENCE
from monitor.alerting import Alerting
from monitor.api.signatures import EVENT_WINDOW_S, WINDOW_S, pagerduty_signed, pagerduty_stale, slack_signed
from monitor.errors import StoreError, UsageError
from monitor.plugins import one_line

MAX_BODY_BYTES = 1024 * 1024
SILENCED_S = 3600.0


def door_routes(alerting: Alerting, refuse_token: Callable[[str], Response | None]) -> APIRouter:
    """``POST /slack/interactions``, ``/pagerduty/webhook`` and ``/incidents/ID/ack``; ``refuse_token`` judges the form's token."""
    doors, routes = _Doors(alerting, refuse_token), APIRouter()
    table: tuple[tuple[str, Callable[[Request], Awaitable[Response]]], ...] = (
        ("/slack/interactions", doors.slack),
        ("/pagerduty/webhook", doors.pagerduty),
        ("/incidents/{incident_id}/ack", doors.form),
    )
    for path, door in table:
        routes.add_api_route(path, door, methods=["POST"], response_class=Response)
    return routes


class _Doors:
    def __init__(self, alerting: Alerting, refuse_token: Callable[[str], Response | None]) -> None:
        self._alerting = alerting
        self._refuse_token = refuse_token

    async def slack(self, request: Request) -> Response:
        body, now = await _body(request), self._alerting.now().timestamp()
        secrets = self._secrets(SlackConfig, "signing_secret")
        signature = request.headers.get("X-Slack-Signature", "")
        if body is None or not slack_signed(body, request.headers.get("X-Slack-Request-Timestamp", ""), signature, secrets, now):
            return _unsigned()
        try:
            payload = json.loads(parse_qs(body.decode())["payload"][0])
            user = payload["user"]
            who = f"{user.get('name') or user.get('username') or user['id']} (Slack)"
            actions = [(str(action["action_id"]), str(action.get("value", ""))) for action in payload["actions"]]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            return PlainTextResponse("not an interaction with a button of ours\n", 400)
        return await self._once(f"slack {signature}", 2 * WINDOW_S, lambda: self._act_all(actions, who))

    async def _act_all(self, actions: list[tuple[str, str]], who: str) -> Response | None:
        for action, incident_id in actions:
            answer = await self._act(action, incident_id, who)
            if answer is not None:
                return answer
        return None

    async def _act(self, action: str, incident_id: str, who: str) -> Response | None:
        if action == ACKNOWLEDGE:
            return await _try(self._alerting.acknowledge(incident_id, who))
        if action == SILENCE:
            return await _try(self._alerting.silence_incident(incident_id, who, SILENCED_S))
        return None  # a button that only opens a link

    async def pagerduty(self, request: Request) -> Response:
        body, now = await _body(request), self._alerting.now().timestamp()
        secrets = self._secrets(PagerDutyConfig, "webhook_secret")
        if body is None or not pagerduty_signed(body, request.headers.get("X-PagerDuty-Signature", ""), secrets):
            return _unsigned()
        try:
            event = json.loads(body)["event"]
            event_id, kind, data = str(event["id"]), str(event["event_type"]), event["data"]
            incident_id = incident_of_key(str(data.get("incident_key") or ""))
            agent = event.get("agent") or {}
            who, person = by_pagerduty(agent), str(agent.get("type", "")).startswith("user")
        except (KeyError, TypeError, AttributeError, ValueError):
            return PlainTextResponse("not an event of PagerDuty's v3 webhooks\n", 400)
        if kind in {"incident.acknowledged", "incident.resolved"} and not person:
            return PlainTextResponse("")  # our own acknowledgement or resolve, echoed
        if pagerduty_stale(event.get("occurred_at"), now):
            return _unsigned()
        answer = await self._once(f"pagerduty {event_id}", 2 * EVENT_WINDOW_S, lambda: self._follow(kind, incident_id, who, data))
        return answer if answer.status_code >= 500 else PlainTextResponse("")  # what concerns an incident of others is taken too

    async def _once(self, key: str, keep_s: float, obey: Callable[[], Awaitable[Response | None]]) -> Response:
        """Obey a signed request unless it was before; what could not be done now may come again.

        It is remembered when it is done: a crash in between repeats it rather than loses it.
        """
        try:
            if await self._alerting.obeyed(key):
                return PlainTextResponse("")
            answer = await obey()
            if answer is None or answer.status_code < 500:
                await self._alerting.remember(key, keep_s)
        except StoreError as exc:
            return PlainTextResponse(f"the state cannot be used now: {exc}\n", 503)
        return answer or PlainTextResponse("")

    async def _follow(self, kind: str, incident_id: str, who: str, data: Any) -> Response | None:
        """Acknowledged or resolved there is taken here: only the check itself sees health again. A reassignment is noted."""
        match kind:
            case "incident.acknowledged":
                return await _try(self._alerting.acknowledge(incident_id, who))
            case "incident.resolved":
                return await _try(self._alerting.acknowledge(incident_id, who, note=stays_open(who)))
            case "incident.reassigned" | "incident.delegated" | "incident.escalated":
                policy, *people = [_named(one) for one in (data.get("escalation_policy"), *(data.get("assignees") or ()))]
                names = one_line(", ".join(filter(None, people)), limit=150) or "nobody"
                by = f" by the policy {one_line(policy, limit=80)}" if kind == "incident.delegated" and policy else ""
                return await _try(self._alerting.note(incident_id, f"in PagerDuty now assigned to {names}{by}", who))
            case "incident.unacknowledged":
                return await _try(self._alerting.note(incident_id, "the acknowledgement in PagerDuty ended: PagerDuty asks again", who))
            case "incident.reopened":
                return await _try(self._alerting.note(incident_id, f"{who} reopened it there", who))
            case _:
                return None

    async def form(self, request: Request) -> Response:
        body = await _body(request)
        fields = parse_qs((body or b"").decode(errors="replace"))
        refusal = self._refuse_token(f"Bearer {fields.get('token', [''])[0]}")
        if refusal is not None:
            return refusal
        who = one_line(fields.get("who", [""])[0], limit=80)
        if not who:
            return PlainTextResponse("who takes it? the name is missing\n", 400)
        incident_id = str(request.path_params["incident_id"])
        answer = await _try(self._alerting.acknowledge(incident_id, who))
        return answer or RedirectResponse(f"/incidents/{incident_id}", 303)

    def _secrets(self, kind: type[Any], name: str) -> list[str]:
        """The secrets of every configured channel of this kind; without one, nothing is signed rightly."""
        channels = self._alerting.settings.channels.values()
        found = {getattr(channel.config, name) for channel in channels if isinstance(channel.config, kind)}
        return sorted(secret.get_secret_value() for secret in found if isinstance(secret, SecretStr))


def _named(reference: Any) -> str:
    return str(reference.get("summary") or "") if isinstance(reference, dict) else ""


async def _try(change: Awaitable[object]) -> Response | None:
    """None when it was done."""
    try:
        await change
    except UsageError as exc:
        return PlainTextResponse(f"{exc}\n", 404)
    except StoreError as exc:
        return PlainTextResponse(f"the state cannot be used now: {exc}\n", 503)
    return None


def _unsigned() -> Response:
    return PlainTextResponse("refused: the signature is missing, wrong or too old\n", 401)


async def _body(request: Request) -> bytes | None:
    """The raw body, or None when it is larger than any of these doors needs."""
    taken = bytearray()
    async for chunk in request.stream():
        taken += chunk
        if len(taken) > MAX_BODY_BYTES:
            return None
    return bytes(taken)
