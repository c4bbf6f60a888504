"""Tickets: one GitHub issue or Jira issue per incident, found again by its label, closed with a comment when it is over."""

import re
from typing import Any
from urllib.parse import quote

from pydantic import Field, field_validator

from alerts.json_http import JsonClient
from alerts.message import Message, as_text, clean, compose
from alerts.transport import HttpsUrl
from monitor.domain import Notification, Receipt, pairs
from monitor.errors import DeliveryError
from monitor.plugins import LocalPath, NotifyContext, PluginConfig, Secret, notifier

GITHUB_TITLE_CHARS = 256
JIRA_SUMMARY_CHARS = 254
BODY_CHARS = 30_000


class GitHubConfig(PluginConfig):
    """A repository, and a token that may write its issues. ``labels`` are put on every issue beside the incident's own."""

    token: Secret
    repository: str
    labels: tuple[str, ...] = Field(default=("monitor",), max_length=20)
    base_url: HttpsUrl = "https://api.github.com"
    ca_file: LocalPath | None = None

    @field_validator("repository")
    @classmethod
    def _is_whole(cls, repository: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", repository):
            raise ValueError("expected owner/name")
        return repository


class JiraConfig(PluginConfig):
    """A project. With ``user``, ``token`` is that account's API token; without, a personal access token. ``done`` names the transition."""

    base_url: HttpsUrl
    user: str | None = None
    token: Secret
    project: str = Field(pattern=r"^[A-Z][A-Z0-9_]{1,49}$")
    issue_type: str = Field(default="Bug", min_length=1, max_length=60)
    done: str = Field(default="Done", min_length=1, max_length=60)
    ca_file: LocalPath | None = None


@notifier("github", config=GitHubConfig, per_minute=60)
async def github(ctx: NotifyContext, cfg: GitHubConfig, notification: Notification) -> Receipt:
    """Opens one GitHub issue per incident, comments each further transition and closes it when the incident is over."""
    message = compose(notification, ctx.clock.now())
    token = cfg.token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    issues = f"repos/{cfg.repository}/issues"
    async with JsonClient(ctx, "GitHub", cfg.base_url, headers=headers, ca_file=cfg.ca_file, secrets=(token,)) as client:
        number = _reference(notification)
        if number is None:  # or opened by an attempt whose answer was lost
            found = await client.call("GET", f"{issues}?state=all&labels={quote(_label(notification))}&per_page=1")
            number = str(found.body[0]["number"]) if isinstance(found.body, list) and found.body else None
        if number is None:
            if message.over:
                return Receipt(reference="")
            body = {
                "title": clean(message.title, GITHUB_TITLE_CHARS),
                "body": _fenced(message),
                "labels": [*cfg.labels, _label(notification)],
            }
            return _opened(_field((await client.call("POST", issues, body)).body, "number", "GitHub"))
        if message.over:  # the comment first: should the closing fail, the retry says it twice rather than never
            await client.call("POST", f"{issues}/{number}/comments", {"body": _fenced(message)})
            await client.call("PATCH", f"{issues}/{number}", {"state": "closed", "state_reason": "completed"})
        elif notification.first_receipt is not None:
            await client.call("POST", f"{issues}/{number}/comments", {"body": _fenced(message)})
    return _opened(number)


@notifier("jira", config=JiraConfig, per_minute=60)
async def jira(ctx: NotifyContext, cfg: JiraConfig, notification: Notification) -> Receipt:
    """Opens one Jira issue per incident, comments each further transition and moves it to done when the incident is over."""
    message = compose(notification, ctx.clock.now())
    token = cfg.token.get_secret_value()
    headers = {} if cfg.user else {"Authorization": f"Bearer {token}"}
    auth = (cfg.user, token) if cfg.user else None
    async with JsonClient(ctx, "Jira", cfg.base_url, headers=headers, ca_file=cfg.ca_file, secrets=(token,), auth=auth) as client:
        key = _reference(notification)
        if key is None:
            jql = f'project = "{cfg.project}" AND labels = "{_label(notification)}"'
            found = await client.call("POST", "rest/api/2/search", {"jql": jql, "maxResults": 1, "fields": ["key"]})
            listed = found.body.get("issues") if isinstance(found.body, dict) else None
            key = str(listed[0]["key"]) if listed else None
        if key is None:
            if message.over:
                return Receipt(reference="")
            fields = {
                "project": {"key": cfg.project},
                "issuetype": {"name": cfg.issue_type},
                "summary": clean(message.title, JIRA_SUMMARY_CHARS),
                "description": _noformat(message),
                "labels": ["monitor", _label(notification)],
            }
            return _opened(_field((await client.call("POST", "rest/api/2/issue", {"fields": fields})).body, "key", "Jira"))
        if message.over or notification.first_receipt is not None:
            await client.call("POST", f"rest/api/2/issue/{quote(key)}/comment", {"body": _noformat(message)})
        if message.over:
            await _finish(client, cfg, key)
    return _opened(key)


async def _finish(client: JsonClient, cfg: JiraConfig, key: str) -> None:
    """Take the transition by its name; an issue that somebody closed already offers none, and that is well."""
    path = f"rest/api/2/issue/{quote(key)}/transitions"
    listed = (await client.call("GET", path)).body
    offered = listed.get("transitions", []) if isinstance(listed, dict) else []
    chosen = next((one["id"] for one in offered if str(one.get("name", "")).lower() == cfg.done.lower()), None)
    if chosen is not None:
        await client.call("POST", path, {"transition": {"id": chosen}})


def _label(notification: Notification) -> str:
    return f"monitor-{notification.dedup_key}"


def _reference(notification: Notification) -> str | None:
    return (notification.first_receipt.reference or None) if notification.first_receipt else None


def _opened(reference: str) -> Receipt:
    return Receipt(reference=reference, detail=pairs({"ticket": reference}))


def _field(body: Any, name: str, who: str) -> str:
    if not isinstance(body, dict) or not body.get(name):
        raise DeliveryError(f"{who}'s answer names no issue: something in between answered for it", retryable=True)
    return str(body[name])


def _fenced(message: Message) -> str:
    """Nothing of it is read as Markdown: no mention, no image, no link but the plain ones below."""
    text = as_text(message)[:BODY_CHARS].replace("```", "ʼʼʼ")
    links = "\n".join(f"<{link.url}>" for link in message.links)
    return f"```text\n{text}```\n{links}\n"


def _noformat(message: Message) -> str:
    """The same for Jira's markup."""
    text = as_text(message)[:BODY_CHARS].replace("{noformat", "(noformat")
    links = "\n".join(link.url for link in message.links)
    return f"{{noformat}}\n{text}{{noformat}}\n{links}\n"
