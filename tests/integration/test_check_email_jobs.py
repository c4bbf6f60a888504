"""``email_jobs`` on the platform's tables, 15 and 18, as the monitor's role."""

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from checks.email_jobs import email_jobs
from monitor.domain import Observed
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Service
from tests.support.looking import look, looking_at
from tests.support.platform_tables import add_mail_job, add_tenants, platform_database, run_sql

REFUSED = "2 of 2 mails not sent; owner@shop.example: 554 5.7.1 this server takes no mail from you"


@pytest.fixture
async def ctx(database: str) -> AsyncIterator[CheckContext]:
    dsn = platform_database(database)
    add_tenants(database, "shop", "other")
    async with looking_at(Service("postgres", dsn=SecretStr(dsn))) as found:
        yield found


def add_mails(dsn: str, job: str, *, sent: int = 0, failed: int = 0, ago: str = "1 h", tenant: str = "shop") -> None:
    row = (
        "%(job)s, %(tenant)s, 'r' || n, 's', CASE WHEN n <= %(sent)s THEN 'sent' ELSE 'failed' END, now() - %(ago)s::interval, %(job)s || n"
    )
    run_sql(
        dsn,
        "INSERT INTO email_send_history (job_id, tenant_id, recipient, subject, status, sent_at, idempotency_key) "
        f"SELECT {row} FROM generate_series(1, %(sent)s + %(failed)s) n",
        job=job,
        tenant=tenant,
        sent=sent,
        failed=failed,
        ago=ago,
    )


def kinds(observed: Observed) -> list[str]:
    return [finding.kind.name for finding in observed.findings]


def measured(observed: Observed) -> dict[str, float]:
    return {sample.metric.name.removeprefix("monitor_email"): sample.value for sample in observed.samples}


async def test_nothing_to_do_and_all_sent_are_well(database: str, ctx: CheckContext) -> None:
    observed = await look(email_jobs, ctx)
    assert observed.findings == ()
    assert "_failure_ratio" not in measured(observed)
    add_mail_job(database, "m1", "shop", status="completed", created_ago="2 h", completed_ago="1 h", emails_sent=30, total_emails=30)
    add_mails(database, "m1", sent=30)
    observed = await look(email_jobs, ctx)
    assert observed.findings == ()
    assert measured(observed) == {"_jobs_failing": 0, "_jobs_failed": 0, "s_sent": 30, "s_failed": 0, "s_due": 0, "_failure_ratio": 0}


async def test_failing_jobs_are_found_until_a_good_one_follows(database: str, ctx: CheckContext) -> None:
    ended = {"created_ago": "3 h", "total_emails": 2}
    add_mail_job(database, "good", "shop", status="completed", completed_ago="150 min", emails_sent=2, **ended)
    add_mails(database, "good", sent=2, ago="150 min")
    for number in range(3):
        add_mail_job(database, f"bad{number}", "shop", status="failed", completed_ago=f"{number + 1} h", error_message=REFUSED, **ended)
    observed = await look(email_jobs, ctx)
    assert kinds(observed) == ["EmailJobsFailing"]
    (finding,) = observed.findings
    assert (finding.kind.incident, finding.kind.severity, finding.value) == ("INC-004", 3, 2)  # one failed before the good one
    assert "2 email jobs of 1 tenant failed, and none ended well since" in finding.summary
    assert "owner@shop.example" not in finding.summary
    assert dict(finding.facts)["tenants"] == "shop"
    assert measured(observed)["_jobs_failed"] == 3
    add_mail_job(database, "other's", "other", status="completed", completed_ago="1 min", emails_sent=1, created_ago="2 min")
    assert kinds(await look(email_jobs, ctx)) == ["EmailJobsFailing"]
    add_mail_job(database, "again", "shop", status="completed", completed_ago="1 min", emails_sent=2, **ended)
    assert kinds(await look(email_jobs, ctx)) == []


async def test_the_share_of_failed_mails_is_found(database: str, ctx: CheckContext) -> None:
    add_mail_job(database, "m1", "shop", status="completed", created_ago="2 h", completed_ago="1 h")
    add_mail_job(database, "m2", "other", status="completed", created_ago="2 h", completed_ago="1 h")
    add_mails(database, "m1", sent=10, failed=6)
    assert kinds(await look(email_jobs, ctx)) == []  # too few to say
    assert kinds(await look(email_jobs, ctx, min_mails=16)) == ["EmailFailureRatio"]
    add_mails(database, "m2", sent=14, tenant="other")
    (finding,) = (await look(email_jobs, ctx)).findings
    assert finding.summary == "20% of 30 mails failed in the last 24.0 h (postgres)"
    assert finding.value == pytest.approx(0.2)
    assert dict(finding.facts) == {"sent": "24", "failed": "6", "tenant shop": "6 of 16 failed"}
    assert (await look(email_jobs, ctx, max_failure_ratio=0.2)).findings == ()
    assert measured(await look(email_jobs, ctx, window="30m"))["s_sent"] == 0


async def test_not_one_mail_sent_although_some_are_due(database: str, ctx: CheckContext) -> None:
    add_mail_job(database, "new", "shop", created_ago="5 min", total_emails=9)
    assert kinds(await look(email_jobs, ctx)) == []  # it has its time
    add_mail_job(database, "waits", "shop", created_ago="40 min", total_emails=3)
    observed = await look(email_jobs, ctx)
    assert kinds(observed) == ["NoEmailSent"]
    (finding,) = observed.findings
    assert finding.summary == "not one mail went out in the last 24.0 h, and 3 are due (postgres)"
    assert (finding.kind.incident, finding.value) == ("INC-004", 3)
    facts = dict(finding.facts)
    assert facts["due"] == "3 mails of 1 job, the oldest ordered 40 min ago"
    assert facts["tried"] == "none: is the service that sends them running?"
    add_mail_job(
        database, "failed", "shop", status="failed", created_ago="50 min", completed_ago="49 min", total_emails=2, error_message=REFUSED
    )
    add_mails(database, "failed", failed=2)
    observed = await look(email_jobs, ctx)
    assert kinds(observed) == ["NoEmailSent", "EmailJobsFailing"]
    assert dict(observed.findings[0].facts)["tried"] == "2 mails, all in vain"
    assert dict(observed.findings[0].facts)["jobs"] == "2 queued, 0 in processing, 1 failed"
    add_mails(database, "waits", sent=1)
    assert kinds(await look(email_jobs, ctx)) == ["EmailJobsFailing"]


async def test_hostile_messages_stay_on_one_line(database: str, ctx: CheckContext) -> None:
    add_tenants(database, "\x1b[2J\n")
    message = "\x1b[31m550\r\nBcc: x " + "y" * 3000
    add_mail_job(database, "j\n", "\x1b[2J\n", status="failed", created_ago="1 h", completed_ago="30 min", error_message=message)
    observed = await look(email_jobs, ctx)
    assert len(observed.findings) == 2
    texts = [text for finding in observed.findings for pair in finding.facts for text in pair]
    assert all(text.isprintable() and len(text) < 500 for text in (*texts, *(finding.summary for finding in observed.findings)))


async def test_missing_rights_are_named_and_recipients_stay_unseen(database: str, ctx: CheckContext) -> None:
    assert ctx.pg is not None
    with pytest.raises(CannotLook, match="permission denied"):
        await ctx.pg.fetch("SELECT recipients FROM public.email_sending_jobs")
    with pytest.raises(CannotLook, match="permission denied"):
        await ctx.pg.fetch("SELECT recipient FROM public.email_send_history")
    run_sql(database, "REVOKE SELECT ON email_send_history FROM monitor_ro")
    with pytest.raises(CannotLook, match=r"GRANT SELECT \(tenant_id, status, sent_at\) ON public\.email_send_history TO monitor_ro"):
        await look(email_jobs, ctx)
