"""Tickets: one GitHub issue or Jira issue per incident or digest, found again by its label, closed with a comment when it is over."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import Field, field_validator

from alerts.digest_message import compose_digest
from alerts.digest_text import by_service, digest_text
from alerts.json_http import JsonClient
from alerts.message import as_text, clean, compose
from alerts.transport import HttpsUrl
from monitor.domain import Digest, Link, Notification, Receipt, pairs
from monitor.errors import DeliveryError
from monitor.plugins import Digesting, LocalPath, NotifyContext, PluginConfig, Secret, notifier

GITHUB_TITLE_CHARS = 256
JIRA_SUMMARY_CHARS = 254
BODY_CHARS = 30_000
DIGEST_SHOWN = 60
"""Incidents of a digest named in its ticket: what is longer than the body would be cut in the middle."""


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


async def github_digest(ctx: NotifyContext, cfg: GitHubConfig, digest: Digest) -> Receipt:
    return await _in_github(ctx, cfg, _of_digest(digest, ctx.clock.now()))


@notifier("github", config=GitHubConfig, per_minute=60, digest=Digesting(github_digest, gather_s=60))
async def github(ctx: NotifyContext, cfg: GitHubConfig, notification: Notification) -> Receipt:
    """Opens one GitHub issue per incident, comments each further transition and closes it when the incident is over."""
    return await _in_github(ctx, cfg, _of_incident(notification, ctx.clock.now()))


async def jira_digest(ctx: NotifyContext, cfg: JiraConfig, digest: Digest) -> Receipt:
    return await _in_jira(ctx, cfg, _of_digest(digest, ctx.clock.now()))


@notifier("jira", config=JiraConfig, per_minute=60, digest=Digesting(jira_digest, gather_s=60))
async def jira(ctx: NotifyContext, cfg: JiraConfig, notification: Notification) -> Receipt:
    """Opens one Jira issue per incident, comments each further transition and moves it to done when the incident is over."""
    return await _in_jira(ctx, cfg, _of_incident(notification, ctx.clock.now()))


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What is written, of an incident or of a digest."""

    label: str
    """By which it is found again."""
    title: str
    text: str
    links: tuple[Link, ...]
    known: str | None
    """Its number, when it was opened before."""
    follows: bool
    over: bool


def _of_incident(notification: Notification, now: datetime) -> _Ticket:
    message = compose(notification, now)
    first = notification.first_receipt
    known = (first.reference or None) if first else None
    return _Ticket(_label(notification.dedup_key), message.title, as_text(message), message.links, known, first is not None, message.over)


def _of_digest(digest: Digest, now: datetime) -> _Ticket:
    """Over is what was told, and of which every incident is over."""
    message = compose_digest(digest, now, DIGEST_SHOWN)
    first = digest.first_receipt
    known = (first.reference or None) if first else None
    text = digest_text(message, by_service(message), digest.home)
    over = digest.follows and message.over
    return _Ticket(_label(digest.home), message.title, text, (message.status_page,), known, digest.follows, over)


async def _in_github(ctx: NotifyContext, cfg: GitHubConfig, ticket: _Ticket) -> Receipt:
    token = cfg.token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    issues = f"repos/{cfg.repository}/issues"
    async with JsonClient(ctx, "GitHub", cfg.base_url, headers=headers, ca_file=cfg.ca_file, secrets=(token,)) as client:
        number = ticket.known
        if number is None:  # or opened by an attempt whose answer was lost
            found = await client.call("GET", f"{issues}?state=all&labels={quote(ticket.label)}&per_page=1")
            number = str(found.body[0]["number"]) if isinstance(found.body, list) and found.body else None
        if number is None:
            if ticket.over:
                return Receipt(reference="")
            body = {"title": clean(ticket.title, GITHUB_TITLE_CHARS), "body": _fenced(ticket), "labels": [*cfg.labels, ticket.label]}
            return _opened(_field((await client.call("POST", issues, body)).body, "number", "GitHub"))
        if ticket.over:  # the comment first: should the closing fail, the retry says it twice rather than never
            await client.call("POST", f"{issues}/{number}/comments", {"body": _fenced(ticket)})
            await client.call("PATCH", f"{issues}/{number}", {"state": "closed", "state_reason": "completed"})
        elif ticket.follows:
            await client.call("POST", f"{issues}/{number}/comments", {"body": _fenced(ticket)})
    return _opened(number)


async def _in_jira(ctx: NotifyContext, cfg: JiraConfig, ticket: _Ticket) -> Receipt:
    token = cfg.token.get_secret_value()
    headers = {} if cfg.user else {"Authorization": f"Bearer {token}"}
    auth = (cfg.user, token) if cfg.user else None
    async with JsonClient(ctx, "Jira", cfg.base_url, headers=headers, ca_file=cfg.ca_file, secrets=(token,), auth=auth) as client:
        key = ticket.known
        if key is None:
            key = await _search(client, f'project = "{cfg.project}" AND labels = "{ticket.label}"')
        if key is None:
            if ticket.over:
                return Receipt(reference="")
            fields = {
                "project": {"key": cfg.project},
                "issuetype": {"name": cfg.issue_type},
                "summary": clean(ticket.title, JIRA_SUMMARY_CHARS),
                "description": _noformat(ticket),
                "labels": ["monitor", ticket.label],
            }
            return _opened(_field((await client.call("POST", "rest/api/2/issue", {"fields": fields})).body, "key", "Jira"))
        if ticket.over or ticket.follows:
            await client.call("POST", f"rest/api/2/issue/{quote(key)}/comment", {"body": _noformat(ticket)})
        if ticket.over:
            await _finish(client, cfg, key)
    return _opened(key)


async def _search(client: JsonClient, jql: str) -> str | None:
    """The first issue's key. Cloud's search is of API 3, and the one of API 2 is gone there; Server and Data Center know only that one."""
    asked = {"jql": jql, "maxResults": 1, "fields": ["key"]}
    found = await client.call("POST", "rest/api/3/search/jql", asked, allow=(404,))
    if found.status == 404:
        found = await client.call("POST", "rest/api/2/search", asked)
    listed = found.body.get("issues") if isinstance(found.body, dict) else None
    return str(listed[0]["key"]) if listed else None


async def _finish(client: JsonClient, cfg: JiraConfig, key: str) -> None:
    """Take the transition by its name. Raises ``DeliveryError`` when the workflow offers none of that name, unless it is done already."""
    issue = f"rest/api/2/issue/{quote(key)}"
    listed = (await client.call("GET", f"{issue}/transitions")).body
    offered = {str(one["name"]): one["id"] for one in listed.get("transitions", [])} if isinstance(listed, dict) else {}
    chosen = next((number for name, number in offered.items() if name.lower() == cfg.done.lower()), None)
    if chosen is not None:
        await client.call("POST", f"{issue}/transitions", {"transition": {"id": chosen}})
        return
    status = _status((await client.call("GET", f"{issue}?fields=status")).body)
    if status.get("statusCategory", {}).get("key") != "done":
        names = clean(", ".join(repr(name) for name in offered) or "none", 200)
        raise DeliveryError(
            f"{key} stays open: Jira offers no transition {cfg.done!r} from its status {clean(str(status.get('name')), 60)!r} "
            f"(set done to the one that closes it; offered: {names})",
            retryable=False,
        )


def _status(body: Any) -> dict[str, Any]:
    fields = body.get("fields") if isinstance(body, dict) else None
    status = fields.get("status") if isinstance(fields, dict) else None
    if not isinstance(status, dict):
        raise DeliveryError("Jira's answer names no status: something in between answered for it", retryable=True)
    return status


def _label(key: str) -> str:
    return f"monitor-{key}"


def _opened(reference: str) -> Receipt:
    return Receipt(reference=reference, detail=pairs({"ticket": reference}))


def _field(body: Any, name: str, who: str) -> str:
    if not isinstance(body, dict) or not body.get(name):
        raise DeliveryError(f"{who}'s answer names no issue: something in between answered for it", retryable=True)
    return str(body[name])


def _fenced(ticket: _Ticket) -> str:
    """Nothing of it is read as Markdown: no mention, no image, no link but the plain ones below."""
    text = ticket.text[:BODY_CHARS].replace("```", "ʼʼʼ")
    links = "\n".join(f"<{link.url}>" for link in ticket.links)
    return f"```text\n{text}```\n{links}\n"


def _noformat(ticket: _Ticket) -> str:
    """The same for Jira's markup."""
    text = ticket.text[:BODY_CHARS].replace("{noformat", "(noformat")
    links = "\n".join(link.url for link in ticket.links)
    return f"{{noformat}}\n{text}{{noformat}}\n{links}\n"
