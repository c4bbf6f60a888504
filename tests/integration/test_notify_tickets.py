"""GitHub, Jira and webhooks against trackers that enforce the published rules: one ticket per incident, closed with a comment."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from alerts import BUILTINS, AnyNotifier
from monitor.domain import Receipt, Transition
from monitor.errors import DeliveryError
from monitor.plugins import PluginConfig
from services.externals import tickets
from tests.notify_parts import OPENED, Authority, Fake, context, notification, serve, unused_port

TOKEN, USER, SECRET = "ghp_0123456789abcdef", "monitor@example.com", "hook-secret"
NOTIFIERS = {plugin.name: plugin for plugin in BUILTINS}


@dataclass
class Tracker:
    fake: Fake
    plugin: AnyNotifier
    cfg: PluginConfig

    async def send(self, transition: Transition = Transition.TRIGGERED, first: Receipt | None = None, **incident: Any) -> Receipt:
        sent = notification(transition, first=first, **incident)
        return await self.plugin.send(context(), self.cfg, sent)

    async def issues(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.fake.received())["issues"]
        return found


def configure(name: str, url: str, ca_file: str | None, **changes: Any) -> PluginConfig:
    values: dict[str, dict[str, Any]] = {
        "github": {"token": TOKEN, "repository": "acme/ops", "base_url": url},
        "jira": {"token": TOKEN, "user": USER, "project": "OPS", "base_url": url},
        "webhook": {"url": f"{url}/hook", "bearer": TOKEN, "secret": SECRET},
    }
    given = {**values[name], "ca_file": ca_file, **changes}
    secret = {key: SecretStr(value) for key, value in given.items() if key in {"token", "bearer", "secret"}}
    return NOTIFIERS[name].config(**given | secret)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[Fake, Authority]]:
    authority = Authority.create(tmp_path)
    async with serve(tickets.create_app(token=TOKEN, user=USER, secret=SECRET), authority) as running:
        yield running, authority


@pytest.fixture
async def on_premises(tmp_path: Path) -> AsyncIterator[Tracker]:
    """Jira Server, with a personal access token."""
    authority = Authority.create(tmp_path)
    async with serve(tickets.create_app(token=TOKEN, secret=SECRET, jira_is_cloud=False), authority) as running:
        yield Tracker(running, NOTIFIERS["jira"], configure("jira", running.url, authority.ca_file, user=None))


@pytest.fixture(params=["github", "jira"])
def tracker(request: pytest.FixtureRequest, fake: tuple[Fake, Authority]) -> Tracker:
    running, authority = fake
    return Tracker(running, NOTIFIERS[request.param], configure(request.param, running.url, authority.ca_file))


@pytest.fixture
def hook(fake: tuple[Fake, Authority]) -> Tracker:
    running, authority = fake
    return Tracker(running, NOTIFIERS["webhook"], configure("webhook", running.url, authority.ca_file))


async def test_one_ticket_from_open_to_closed(tracker: Tracker) -> None:
    first = await tracker.send()
    await tracker.send(Transition.ESCALATED, first)
    await tracker.send(Transition.ACKED, first)
    assert [issue["state"] for issue in await tracker.issues()] == ["open"]
    await tracker.send(Transition.RESOLVED, first)
    (issue,) = await tracker.issues()
    assert issue["state"] == "closed"
    assert issue["title"] == "[P1] auth: Service not responding (INC-001)"
    assert "connection refused" in issue["body"]
    assert "tail -100" in issue["body"]
    assert "monitor-a1b2c3d4e5f6" in issue["labels"]
    assert len(issue["comments"]) == 3
    assert "Resolved" in issue["comments"][-1]


async def test_jira_server_is_searched_in_its_own_way(on_premises: Tracker) -> None:
    first = await on_premises.send()
    assert await on_premises.send() == first  # found again by its label
    await on_premises.send(Transition.RESOLVED, first)
    assert [issue["state"] for issue in await on_premises.issues()] == ["closed"]


async def test_a_ticket_is_found_again_by_its_label(tracker: Tracker) -> None:
    first = await tracker.send()
    assert await tracker.send() == first
    assert len(await tracker.issues()) == 1


async def test_a_ticket_that_somebody_closed_already_is_well(tracker: Tracker) -> None:
    first = await tracker.send()
    for _ in range(2):
        await tracker.send(Transition.RESOLVED, first)
    (issue,) = await tracker.issues()
    assert (issue["state"], len(issue["comments"])) == ("closed", 2)


async def test_a_ticket_that_the_workflow_does_not_let_close_is_no_success(fake: tuple[Fake, Authority]) -> None:
    running, authority = fake
    tracker = Tracker(running, NOTIFIERS["jira"], configure("jira", running.url, authority.ca_file, done="Resolve Issue"))
    first = await tracker.send()
    with pytest.raises(DeliveryError) as caught:
        await tracker.send(Transition.RESOLVED, first)
    assert not caught.value.retryable
    assert str(caught.value) == (
        "OPS-1 stays open: Jira offers no transition 'Resolve Issue' from its status 'To Do' "
        "(set done to the one that closes it; offered: 'In Progress', 'Done')"
    )


async def test_a_lost_answer_opens_no_second_ticket(tracker: Tracker) -> None:
    await tracker.fake.script({"status": 200, "body": "[]"}, {"reset": True, "accept": True})
    with pytest.raises(DeliveryError) as caught:
        await tracker.send()
    assert caught.value.retryable
    again = await tracker.send()
    (issue,) = await tracker.issues()
    assert again.reference.endswith(str(issue["number"]))


async def test_the_end_of_what_was_never_ticketed_opens_none(tracker: Tracker) -> None:
    await tracker.send(Transition.RESOLVED)
    assert await tracker.issues() == []


@pytest.mark.parametrize(
    ("step", "retryable", "wait_s"),
    [
        ({"status": 429, "retry_after": 30}, True, 30.0),
        ({"status": 403, "retry_after": 60}, True, 60.0),
        ({"status": 503}, True, None),
        ({"hang": True}, True, None),
        ({"reset": True}, True, None),
        ({"status": 403, "error": "Resource not accessible"}, False, None),
        ({"status": 404}, False, None),
        ({"status": 302, "location": "https://elsewhere.example"}, False, None),
    ],
)
async def test_what_can_be_tried_again_and_what_cannot(
    tracker: Tracker, hook: Tracker, step: dict[str, Any], retryable: bool, wait_s: float
) -> None:
    for subject in (tracker, hook):
        await subject.fake.script(step)
        with pytest.raises(DeliveryError) as caught:
            await subject.plugin.send(context(1.0), subject.cfg, notification())
        assert (caught.value.retryable, caught.value.retry_after_s) == (retryable, wait_s)


async def test_wrong_credentials_are_final_and_never_shown(fake: tuple[Fake, Authority]) -> None:
    running, authority = fake
    for name, key in (("github", "token"), ("jira", "token"), ("webhook", "bearer")):
        cfg = configure(name, running.url, authority.ca_file, **{key: "not-the-one"})
        with pytest.raises(DeliveryError) as caught:
            await NOTIFIERS[name].send(context(), cfg, notification())
        assert not caught.value.retryable
        assert "not-the-one" not in str(caught.value)


@pytest.mark.parametrize("name", ["github", "jira", "webhook"])
async def test_nobody_there_and_a_certificate_nobody_vouches_for(name: str, fake: tuple[Fake, Authority]) -> None:
    running, _ = fake
    for url in (f"https://127.0.0.1:{unused_port()}", running.url):
        with pytest.raises(DeliveryError, match="not reachable") as caught:
            await NOTIFIERS[name].send(context(), configure(name, url, None), notification())
        assert caught.value.retryable


async def test_the_webhook_is_alertmanagers_version_4_and_signed(hook: Tracker) -> None:
    await hook.send()
    await hook.send(Transition.RESOLVED)
    opened, over = (await hook.fake.received())["hooks"]
    assert (opened["version"], opened["status"], over["status"]) == ("4", "firing", "resolved")
    assert opened["groupLabels"] == {"incident_id": "a1b2c3d4e5f6"}
    (alert,) = opened["alerts"]
    assert alert["labels"]["severity"] == "P1"
    assert "connection refused" in alert["annotations"]["summary"]
    assert alert["endsAt"] == "0001-01-01T00:00:00Z"
    assert over["alerts"][0]["endsAt"] == (OPENED + timedelta(minutes=12)).isoformat()
    assert over["alerts"][0]["fingerprint"] == alert["fingerprint"]


@given(text=st.text(max_size=2000), service=st.text(min_size=1, max_size=200))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_hostile_texts_are_accepted_and_stay_text(tracker: Tracker, text: str, service: str) -> None:
    hostile = text + "```@everyone ![x](https://evil.example/x.png){noformat}"
    before = len(await tracker.issues())
    await tracker.send(summary=hostile, title=hostile, service=service, evidence=(hostile,), id=f"{before:012x}")
    body = (await tracker.issues())[-1]["body"]
    assert len(await tracker.issues()) == before + 1
    assert body.count("```" if tracker.plugin.name == "github" else "{noformat}") == 2
