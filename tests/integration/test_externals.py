"""The externals as one real process, spoken to by the clients that the platform uses."""

import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import asyncssh
import httpx2
import pytest
from google.api_core.exceptions import BadRequest, Forbidden
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from services.cluster import free_port
from services.externals.events import events_of, run_query

USER, PASSWORD = "ops@platform.test", "right-horse"


@dataclass(frozen=True)
class Externals:
    ports: dict[str, int]
    state_dir: Path

    def url(self, name: str) -> str:
        scheme = "https" if name in ("pagerduty", "slack") else "http"
        return f"{scheme}://127.0.0.1:{self.ports[name]}"

    def client(self, name: str) -> httpx2.AsyncClient:
        trust = ssl.create_default_context(cafile=str(self.state_dir / "ca.pem"))
        return httpx2.AsyncClient(base_url=self.url(name), verify=trust, timeout=5, trust_env=False)


def config_of(folder: Path, **changes: object) -> tuple[Path, dict[str, int]]:
    ports = {name: free_port() for name in ("idp", "bigquery", "smtp", "mailbox", "sftp", "pagerduty", "slack")}
    config = {
        "state_dir": str(folder / "state"),
        "ports": ports,
        "users": [{"username": USER, "password": PASSWORD, "tenants": ["acme"]}],
        "sftp": {"user": "partner", "password": "sesame"},
        "tenants": ["acme"],
        "token_ttl_s": 2,
        **changes,
    }
    path = folder / "externals.json"
    path.write_text(json.dumps(config))
    return path, ports


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "services.externals", "--config", str(config)], stderr=subprocess.PIPE, text=True)


def wait_ready(process: subprocess.Popen[str], ready: Path) -> None:
    deadline = time.monotonic() + 20
    while not ready.exists():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
        assert time.monotonic() < deadline


def start_somewhere(folder: Path) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Started, and ready; on other ports when another program took one between its choice and its use."""
    for _ in range(5):
        config, ports = config_of(folder)
        process = start(config)
        ready = folder / "state" / "ready.json"
        while process.poll() is None and not ready.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        if process.returncode is None:
            return process, ports
        _, errors = process.communicate()
        assert any(str(port) in errors for port in ports.values()), errors
    raise AssertionError(f"a port was taken five times: {errors}")


@pytest.fixture(scope="module")
def externals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Externals]:
    folder = tmp_path_factory.mktemp("externals")
    process, ports = start_somewhere(folder)
    try:
        yield Externals(ports, folder / "state")
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert errors == ""


# --- identity provider -----------------------------------------------------------------------------------------------


async def log_in(client: httpx2.AsyncClient, **changes: str) -> httpx2.Response:
    form = {"grant_type": "password", "username": USER, "password": PASSWORD, "tenant_id": "acme", **changes}
    return await client.post("/oauth/token", data=form)


async def test_a_login_gives_a_token_that_introspection_knows_until_it_expires(externals: Externals) -> None:
    async with externals.client("idp") as client:
        answer = await log_in(client)
        assert answer.status_code == 200
        token = answer.json()["access_token"]
        known = (await client.post("/oauth/introspect", data={"token": token})).json()
        assert known["active"] is True
        assert (known["sub"], known["tenant_id"]) == (USER, "acme")
        assert known["exp"] - known["iat"] == 2

        deadline = time.monotonic() + 10
        while (await client.post("/oauth/introspect", data={"token": token})).json() != {"active": False}:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"password": "wrong"}, 401),
        ({"username": "nobody"}, 401),
        ({"username": "nobody", "password": ""}, 401),
        ({"tenant_id": "globex"}, 401),
        ({"tenant_id": ""}, 401),
        ({"grant_type": "client_credentials"}, 400),
    ],
)
async def test_refuses_wrong_logins(externals: Externals, changes: dict[str, str], status: int) -> None:
    async with externals.client("idp") as client:
        answer = await log_in(client, **changes)
        assert answer.status_code == status
        assert "error" in answer.json()


async def test_the_provider_tells_its_health_and_survives_junk(externals: Externals) -> None:
    async with externals.client("idp") as client:
        assert (await client.get("/health")).json()["status"] == "healthy"
        assert (await client.post("/oauth/token", content=b"\xff\x00{}")).status_code == 400
        assert (await client.post("/oauth/introspect", data={"token": "unknown"})).json() == {"active": False}


# --- BigQuery --------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(externals: Externals) -> Iterator[bigquery.Client]:
    made = bigquery.Client(project="shop", credentials=AnonymousCredentials(), client_options={"api_endpoint": externals.url("bigquery")})
    yield made
    made.close()


def parameters(day: date, names: list[str]) -> bigquery.QueryJobConfig:
    return bigquery.QueryJobConfig(
        query_parameters=[
            bigquery.ScalarQueryParameter("tenant_id", "STRING", "acme"),
            bigquery.ScalarQueryParameter("day", "DATE", day),
            bigquery.ArrayQueryParameter("names", "STRING", names),
        ]
    )


EVENTS = """SELECT event_name, event_timestamp, user_id, session_id, page, value, currency
            FROM `shop.analytics.events`
            WHERE tenant_id = @tenant_id AND event_date = @day AND event_name IN UNNEST(@names) ORDER BY event_timestamp"""


@pytest.mark.parametrize("api_method", ["INSERT", "QUERY"])
def test_the_real_client_reads_typed_events(client: bigquery.Client, api_method: str) -> None:
    day = date(2024, 3, 1)
    config = parameters(day, ["purchase", "page_view"])
    rows = list(client.query(EVENTS, job_config=config, api_method=api_method).result(timeout=10))
    expected = sorted(
        (event for event in events_of("acme", day) if event.event_name in ("purchase", "page_view")),
        key=lambda event: event.event_timestamp,
    )
    assert [row["session_id"] for row in rows] == [event.session_id for event in expected]
    assert [row["event_timestamp"] for row in rows] == [datetime.fromisoformat(event.event_timestamp) for event in expected]
    bought = [row for row in rows if row["event_name"] == "purchase"]
    assert bought
    assert all(isinstance(row["value"], float) and row["currency"] == "EUR" for row in bought)
    assert all(row["value"] is None for row in rows if row["event_name"] == "page_view")
    assert rows[0]["event_timestamp"].tzinfo is not None


def test_the_real_client_runs_select_1_and_aggregates(client: bigquery.Client) -> None:
    assert [tuple(row) for row in client.query("SELECT 1").result(timeout=10)] == [(1,)]
    assert [tuple(row) for row in client.query_and_wait("SELECT 1 AS one")] == [(1,)]
    sql = """SELECT COUNT(*) AS events, MAX(event_timestamp) AS newest, DATE(MIN(event_timestamp)) AS first
             FROM `shop.analytics.events` WHERE tenant_id = @tenant_id AND event_date = @day"""
    [row] = client.query(sql, job_config=parameters(date(2024, 3, 1), [])).result(timeout=10)
    assert row["events"] == len(list(events_of("acme", date(2024, 3, 1))))
    assert isinstance(row["newest"], datetime)
    assert row["first"] == date(2024, 3, 1)


def test_long_results_come_in_pages(client: bigquery.Client) -> None:
    config = parameters(date(2024, 3, 1), ["page_view"])
    result = client.query(EVENTS, job_config=config).result(page_size=7, timeout=10)
    pages = [len(list(page)) for page in result.pages]
    assert len(pages) > 2
    assert set(pages[:-1]) == {7}
    assert sum(pages) == result.total_rows


@pytest.mark.parametrize(
    "sql", ["SELEC 1", "SELECT nothing FROM `a.b.events`", "DROP TABLE events", "SELECT @missing", "", "ATTACH 'x' AS y"]
)
def test_refuses_what_it_cannot_run(client: bigquery.Client, sql: str) -> None:
    with pytest.raises(BadRequest):
        client.query(sql).result(timeout=10)


def test_hangs_and_refuses_on_command_and_releases_who_waits(externals: Externals, client: bigquery.Client) -> None:
    def switch(mode: str) -> None:
        assert httpx2.post(externals.url("bigquery") + "/_control", json={"mode": mode}, trust_env=False).json() == {"mode": mode}

    with ThreadPoolExecutor(1) as pool:
        switch("hang")
        try:
            waiting = pool.submit(lambda: list(client.query("SELECT 1", retry=None, job_retry=None).result(timeout=30, retry=None)))
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(externals.url("bigquery") + "/bigquery/v2/projects/shop/queries", json={}, timeout=0.3, trust_env=False)
            assert not waiting.done()
        finally:
            switch("ok")
        assert [tuple(row) for row in waiting.result(10)] == [(1,)]
    switch("error")
    try:
        with pytest.raises(Forbidden):
            client.query("SELECT 1", retry=None).result(timeout=5)
    finally:
        switch("ok")
    assert httpx2.post(externals.url("bigquery") + "/_control", json={"mode": "dance"}, trust_env=False).status_code == 400


def test_events_are_the_same_every_time_and_differ_between_tenants() -> None:
    day = date(2024, 3, 1)
    assert list(events_of("acme", day)) == list(events_of("acme", day))
    assert list(events_of("acme", day)) != list(events_of("globex", day))
    assert {event.event_name for event in events_of("acme", day)} == {"purchase", "add_to_cart", "page_view"}


def test_a_range_of_days_has_an_upper_end_today() -> None:
    query = "SELECT COUNT(DISTINCT event_date) AS days FROM x.y.events WHERE event_date BETWEEN @start AND @end"
    found = run_query(query, {"start": "2026-03-01", "end": "2026-03-31"}, today=date(2026, 3, 10))
    assert found.rows == ((10,),)


# --- mail ------------------------------------------------------------------------------------------------------------


def mail(subject: str, to: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "monitor@platform.test", to, subject
    message.set_content("plain words: grüezi")
    message.add_alternative("<p>rich <b>words</b></p><script>alert(1)</script>", subtype="html")
    return message


async def test_a_mail_arrives_and_is_shown_safely(externals: Externals) -> None:
    to = "oncall-1@platform.test"
    await aiosmtplib.send(mail("<b>down</b>", to), hostname="127.0.0.1", port=externals.ports["smtp"], timeout=5)
    async with externals.client("mailbox") as client:
        [brief] = (await client.get("/api/mails", params={"to": to})).json()
        assert brief["subject"] == "<b>down</b>"
        assert brief["to"] == [to]
        whole = (await client.get(f"/api/mails/{brief['id']}")).json()
        assert whole["text"].strip() == "plain words: grüezi"
        assert "<script>" in whole["html"]

        inbox = (await client.get("/")).text
        assert "&lt;b&gt;down&lt;/b&gt;" in inbox
        page = await client.get(f"/mails/{brief['id']}")
        assert "<iframe sandbox src=" in page.text
        assert "<script>" not in page.text
        html = await client.get(f"/mails/{brief['id']}/html")
        assert html.headers["content-security-policy"].startswith("sandbox;")
        assert "Subject: <b>down</b>" in (await client.get(f"/mails/{brief['id']}/raw")).text
        assert (await client.get("/api/mails", params={"after": brief["id"], "to": to})).json() == []
        assert (await client.get("/api/mails/999999")).status_code == 404
        assert (await client.get("/api/mails", params={"after": "x"})).status_code == 400


async def test_a_mail_that_is_no_mail_is_shown_all_the_same(externals: Externals) -> None:
    junk = b"Subject: =?utf-99?q?=FF?=\r\nContent-Type: text/plain; charset=martian\r\n\r\n\xff\xfe\r\n"
    to = "junk@platform.test"
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=externals.ports["smtp"], timeout=5) as smtp:
        await smtp.sendmail("a@platform.test", [to], junk)
    async with externals.client("mailbox") as client:
        [brief] = (await client.get("/api/mails", params={"to": to})).json()
        for page in ("/", f"/mails/{brief['id']}", f"/mails/{brief['id']}/raw", f"/api/mails/{brief['id']}"):
            assert (await client.get(page)).status_code == 200


# --- SFTP ------------------------------------------------------------------------------------------------------------


async def test_a_partner_lists_and_reads_deliveries_over_a_verified_connection(externals: Externals) -> None:
    known_hosts = str(externals.state_dir / "known_hosts")
    options = {"port": externals.ports["sftp"], "username": "partner", "known_hosts": known_hosts, "config": None, "client_keys": None}
    async with (
        asyncssh.connect("127.0.0.1", password="sesame", **options) as connection,
        connection.start_sftp_client() as sftp,
    ):
        names = [name for name in await sftp.listdir("/exports/acme") if name not in (".", "..")]
        assert f"users_{datetime.now(UTC):%Y%m%d}.csv" in names  # noqa: TID251 - the server's own clock
        async with sftp.open(f"/exports/acme/{names[0]}") as delivery:
            assert "," in await delivery.read()
        assert "etc" not in await sftp.listdir("/../..")
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect("127.0.0.1", password="wrong", **options)


# --- the process -----------------------------------------------------------------------------------------------------


async def test_pagerduty_and_slack_are_served_with_the_authority_that_is_told(externals: Externals) -> None:
    for name in ("pagerduty", "slack"):
        async with externals.client(name) as client:
            assert (await client.get("/")).status_code < 500
        with pytest.raises(httpx2.ConnectError):
            async with httpx2.AsyncClient(trust_env=False) as stranger:
                await stranger.get(externals.url(name))


def run_to_end(config: Path) -> str:
    process = start(config)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Traceback" not in errors
    return errors


def test_bad_configurations_and_taken_ports_are_one_clear_line(externals: Externals, tmp_path: Path) -> None:
    bad, _ = config_of(tmp_path, users=[{"username": "x", "password": 7}], colour="red")
    errors = run_to_end(bad)
    assert "users.0.password" in errors
    assert "colour" in errors
    for name in ("idp", "smtp", "sftp"):
        folder = tmp_path / name
        folder.mkdir()
        config, ports = config_of(folder)
        config.write_text(config.read_text().replace(f'"{name}": {ports[name]}', f'"{name}": {externals.ports[name]}'))
        assert str(externals.ports[name]) in run_to_end(config)
    assert "No such file" in run_to_end(tmp_path / "missing.json")


def test_starts_fast_and_stops_while_a_request_hangs(tmp_path: Path) -> None:
    config, ports = config_of(tmp_path)
    began = time.monotonic()
    process = start(config)
    wait_ready(process, tmp_path / "state" / "ready.json")
    took_s = time.monotonic() - began
    assert took_s < 10  # about 1 s on an idle machine

    async def hang() -> None:
        url = f"http://127.0.0.1:{ports['bigquery']}"
        async with httpx2.AsyncClient(trust_env=False) as http:
            await http.post(url + "/_control", json={"mode": "hang"})
            waiting = asyncio.create_task(http.post(url + "/bigquery/v2/projects/x/queries", json={}, timeout=20))
            await asyncio.sleep(0)
            await http.get(url + "/health")
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx2.HTTPError):
                (await waiting).raise_for_status()

    asyncio.run(hang())
    process.communicate(timeout=8)
    assert process.returncode == 0
