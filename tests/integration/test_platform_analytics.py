"""The analytics service: its reports, and e-mail jobs over real SMTP that fail, partly fail and are retried."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from psycopg.types.json import Jsonb

from services.cluster import Cluster, free_port
from services.database import seed
from tests.conftest import fresh_database
from tests.platform_parts import OTHER, TENANT, Platform, Running, platform, until

ANN, BOB, EVE = "ann@shop.example", "bob@shop.example", "eve@shop.example"


@pytest.fixture
def shop(pg18: Cluster, tmp_path: Path) -> Iterator[Platform]:
    databases = fresh_database(pg18)
    with platform(next(databases), tmp_path) as made:
        seed(made.dsn, tenant_id=TENANT, email_config={"server": "127.0.0.1", "port": made.externals.smtp_port, "from": "r@shop.example"})
        yield made
    next(databases, None)


@pytest.fixture
def analytics(shop: Platform) -> Running:
    return shop.start("analytics")


class Choosy:
    """A mail server that refuses one recipient, or hangs up in the middle of the second mail."""

    def __init__(self, *, refused: str = "", hangs_up_on: str = "") -> None:
        self.refused, self.hangs_up_on = refused, hangs_up_on
        self.accepted: list[tuple[str, str]] = []

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if address == self.refused:
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        recipient = envelope.rcpt_tos[0]
        if recipient == self.hangs_up_on:
            assert server.transport is not None
            server.transport.close()
        else:
            assert isinstance(envelope.content, bytes)
            self.accepted.append((recipient, envelope.content.decode()))
        return "250 OK"


@contextmanager
def mail_server(handler: Choosy) -> Iterator[int]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listen = loop.create_server(lambda: SMTP(handler, loop=loop, auth_exclude_mechanism=["LOGIN", "PLAIN"]), "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(listen, loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def use(shop: Platform, **config: Any) -> None:
    shop.query("UPDATE tenant_config SET email_config = %(config)s WHERE id = %(id)s", config=Jsonb(config), id=TENANT)


def send(shop: Platform, analytics: Running, *recipients: str, **changes: Any) -> str:
    body = {"recipients": recipients, "subject": "Weekly revenue", "report": "revenue", **changes}
    answer = analytics.post("/api/v1/email/send", json=body, headers=shop.headers())
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def ended(shop: Platform, job_id: str) -> tuple[str, int, int, int]:
    """status, total, sent, failed."""

    def row() -> dict[str, Any]:
        return shop.query(
            "SELECT status, total_emails, emails_sent, emails_failed FROM email_sending_jobs WHERE job_id = %(id)s", id=job_id
        )[0]

    until(lambda: row()["status"] in {"completed", "failed"}, "the job ended")
    status, total, sent, failed = row().values()
    return status, total, sent, failed


def error_of(shop: Platform, job_id: str) -> str:
    return str(shop.one("SELECT error_message FROM email_sending_jobs WHERE job_id = %(id)s", id=job_id))


def history(shop: Platform) -> dict[str, str]:
    return {row["recipient"]: row["status"] for row in shop.query("SELECT recipient, status FROM email_send_history")}


def test_reports_are_right(shop: Platform, analytics: Running) -> None:
    revenue = analytics.get("/api/v1/reports/revenue", headers=shop.headers()).json()
    assert len(revenue["rows"]) == 7
    total = shop.one("SELECT sum(value)::float8 FROM purchase")
    assert sum(float(row["revenue"]) for row in revenue["rows"]) == total
    pages = analytics.get("/api/v1/reports/top-pages?limit=3", headers=shop.headers()).json()["rows"]
    assert [row["views"] for row in pages] == [84, 84, 84]
    day = revenue["rows"][2]["event_date"]
    one_day = analytics.get(f"/api/v1/reports/revenue?start_date={day}&end_date={day}", headers=shop.headers()).json()
    assert one_day["rows"] == revenue["rows"][2:3]
    assert analytics.get("/api/v1/reports/revenue", headers=shop.headers(OTHER)).json()["rows"] == []
    for query in (
        "start_date=2026-02-01&end_date=2026-01-01",
        "start_date=2020-01-01&end_date=2026-01-01",
        "start_date=9999-12-30",
        "end_date=0001-01-02",
    ):
        assert analytics.get(f"/api/v1/reports/revenue?{query}", headers=shop.headers()).status_code == 422


def test_a_report_reaches_every_recipient_once(shop: Platform, analytics: Running) -> None:
    job_id = send(shop, analytics, ANN, BOB, ANN, report="top-pages", subject="Räport")
    assert ended(shop, job_id) == ("completed", 2, 2, 0)
    mails = shop.externals.mailbox.newest()
    assert sorted(mail.recipients for mail in mails) == [(ANN,), (BOB,)]
    assert {mail.subject for mail in mails} == {"Räport"}
    assert {str(mail.message["From"]) for mail in mails} == {"r@shop.example"}
    assert "/product/1 " in mails[0].part("plain")
    assert history(shop) == {ANN: "sent", BOB: "sent"}
    shown = analytics.get(f"/api/v1/email/jobs/{job_id}", headers=shop.headers()).json()
    assert (shown["status"], shown["emails_sent"]) == ("completed", 2)


def test_a_mail_server_that_is_down_fails_the_job_and_the_runbooks_retry_sends_it(shop: Platform, analytics: Running) -> None:
    port = free_port()
    use(shop, server="127.0.0.1", port=port, **{"from": "r@shop.example"})
    job_id = send(shop, analytics, ANN, BOB)
    assert ended(shop, job_id) == ("failed", 2, 0, 2)
    assert error_of(shop, job_id).startswith(f"2 of 2 mails not sent; {ANN}: 127.0.0.1:{port}: ")
    assert history(shop) == {ANN: "failed", BOB: "failed"}
    assert job_id in (shop.logs / "analytics-service-error.log").read_text()
    use(shop, server="127.0.0.1", port=shop.externals.smtp_port, **{"from": "r@shop.example"})
    shop.query("UPDATE email_sending_jobs SET status = 'queued', error_message = NULL WHERE job_id = %(id)s", id=job_id)
    assert ended(shop, job_id) == ("completed", 2, 2, 0)
    assert history(shop) == {ANN: "sent", BOB: "sent"}


def test_a_refused_recipient_costs_the_others_nothing_and_a_retry_sends_nothing_twice(shop: Platform, analytics: Running) -> None:
    choosy = Choosy(refused=BOB)
    with mail_server(choosy) as port:
        use(shop, server="127.0.0.1", port=port, **{"from": "r@shop.example"})
        job_id = send(shop, analytics, ANN, BOB, EVE)
        assert ended(shop, job_id) == ("failed", 3, 2, 1)
        assert error_of(shop, job_id) == f"1 of 3 mails not sent; {BOB}: 550 5.1.1 no such mailbox"
        assert history(shop) == {ANN: "sent", BOB: "failed", EVE: "sent"}
        choosy.refused = ""
        shop.query("UPDATE email_sending_jobs SET status = 'queued' WHERE job_id = %(id)s", id=job_id)
        assert ended(shop, job_id) == ("completed", 3, 3, 0)
    assert [recipient for recipient, _ in choosy.accepted] == [ANN, EVE, BOB]


def test_a_server_that_hangs_up_costs_one_mail(shop: Platform, analytics: Running) -> None:
    choosy = Choosy(hangs_up_on=ANN)
    with mail_server(choosy) as port:
        use(shop, server="127.0.0.1", port=port, **{"from": "r@shop.example"})
        assert ended(shop, send(shop, analytics, ANN, BOB)) == ("failed", 2, 1, 1)
    assert [recipient for recipient, _ in choosy.accepted] == [BOB]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "tenant_config.email_config has no server, port, from"),
        ({"server": "127.0.0.1", "port": "smtp", "from": "r@shop.example"}, "port is not a number"),
        ({"server": "no such host", "port": 25, "from": "r@shop.example"}, "no such host:25"),
    ],
)
def test_a_bad_mail_configuration_is_told(shop: Platform, analytics: Running, config: dict[str, Any], reason: str) -> None:
    use(shop, **config)
    job_id = send(shop, analytics, ANN)
    assert ended(shop, job_id)[0] == "failed"
    assert reason in error_of(shop, job_id)


def test_starttls_and_a_login_that_the_server_does_not_offer_fail_and_hide_the_password(shop: Platform, analytics: Running) -> None:
    server = {"server": "127.0.0.1", "port": shop.externals.smtp_port, "from": "r@shop.example"}
    for extra in ({"starttls": True}, {"username": "u", "password": "mail-secret"}):
        use(shop, **server, **extra)
        job_id = send(shop, analytics, ANN)
        assert ended(shop, job_id) == ("failed", 1, 0, 1)
        assert "mail-secret" not in error_of(shop, job_id)
    assert "mail-secret" not in "".join(path.read_text() for path in shop.logs.glob("*.log"))
    assert shop.externals.mailbox.newest() == []


def test_a_bad_request_for_mail_is_refused(shop: Platform, analytics: Running) -> None:
    wrongs: tuple[dict[str, Any], ...] = (
        {"recipients": []},
        {"recipients": ["nobody"]},
        {"recipients": ["a@b.c\r\nBcc: x@y.z"]},
        {"recipients": ["a@b.c,d@e.f"]},
        {"subject": "a\nBcc: x@y.z"},
        {"subject": ""},
        {"report": "passwords"},
        {"start_date": "2026-02-01", "end_date": "2026-01-01"},
    )
    good = {"recipients": [ANN], "subject": "s", "report": "revenue"}
    for wrong in wrongs:
        assert analytics.post("/api/v1/email/send", json=good | wrong, headers=shop.headers()).status_code == 422, wrong
    assert shop.one("SELECT count(*) FROM email_sending_jobs") == 0
