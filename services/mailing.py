"""The analytics service's work: sends the reports of ``email_sending_jobs``, one mail per recipient, over the tenant's mail server.

At least once per recipient: each has a row with an idempotency key, is skipped once it is ``sent``, and keeps its Message-ID.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any

import aiosmtplib

from services.common import Connection, Service
from services.jobs import Job, JobFailed, JobQueue, work_forever
from services.reports import Period, render

TABLE = "email_sending_jobs"
SMTP_TIMEOUT_S = 10.0

log = logging.getLogger("services.mailing")

EMAIL_CONFIG = "SELECT email_config FROM tenant_config WHERE id = %(tenant_id)s"

# No row comes back for a mail that has been sent.
BEGIN = """
INSERT INTO email_send_history AS h (job_id, tenant_id, recipient, subject, status, idempotency_key)
VALUES (%(job_id)s, %(tenant_id)s, %(recipient)s, %(subject)s, 'sending', %(key)s)
ON CONFLICT (idempotency_key) DO UPDATE SET status = 'sending', error_message = NULL, sent_at = now() WHERE h.status <> 'sent'
RETURNING id
"""

END = "UPDATE email_send_history SET status = %(status)s, error_message = %(error)s, sent_at = now() WHERE idempotency_key = %(key)s"

COUNTS = """
SELECT count(*) FILTER (WHERE status = 'sent') AS emails_sent, count(*) FILTER (WHERE status = 'failed') AS emails_failed
FROM email_send_history WHERE job_id = %(job_id)s
"""


@dataclass(frozen=True, slots=True)
class MailServer:
    """``tenant_config.email_config``, read."""

    server: str
    port: int
    sender: str
    username: str | None
    password: str | None = field(repr=False)
    starttls: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MailServer":
        """Raises ``JobFailed`` naming what is missing or wrong."""
        missing = [name for name in ("server", "port", "from") if not config.get(name)]
        if missing:
            raise JobFailed(f"tenant_config.email_config has no {', '.join(missing)}")
        try:
            port = int(config["port"])
        except (TypeError, ValueError) as exc:
            raise JobFailed("tenant_config.email_config: port is not a number") from exc
        return cls(
            server=str(config["server"]),
            port=port,
            sender=str(config["from"]),
            username=config.get("username"),
            password=config.get("password"),
            starttls=bool(config.get("starttls", False)),
        )


async def work(service: Service) -> None:
    """Work off ``email_sending_jobs`` until cancelled."""

    async def run(queue: JobQueue, job: Job) -> None:
        await send_report(service, queue, job)

    await work_forever(JobQueue(service, TABLE, log), run)


async def send_report(service: Service, queue: JobQueue, job: Job) -> None:
    """Send the job's report to every recipient that has not got it yet.

    Raises ``JobFailed`` when any recipient was left without (the job may be queued again), ``JobLost`` or ``DatabaseUnavailable``.
    """
    text = await render(service, job.row["report"], job.tenant_id, Period(job.row["start_date"], job.row["end_date"]))
    async with service.database() as connection:
        row = await (await connection.execute(EMAIL_CONFIG, {"tenant_id": job.tenant_id})).fetchone()
    server = MailServer.from_config(row["email_config"] if row else {})
    post = _Post(server)
    failures: dict[str, str] = {}
    try:
        for recipient in job.row["recipients"]:
            error = await _send_one(service, queue, job, post, recipient, text)
            if error:
                failures[recipient] = error
    finally:
        post.close()
    if failures:
        first = next(iter(failures.items()))
        raise JobFailed(f"{len(failures)} of {job.row['total_emails']} mails not sent; {first[0]}: {first[1]}")


async def _send_one(service: Service, queue: JobQueue, job: Job, post: "_Post", recipient: str, text: str) -> str | None:
    """What went wrong, or None when the recipient has the mail."""
    key = f"{job.id}:{recipient}"
    values = {"job_id": job.id, "tenant_id": job.tenant_id, "recipient": recipient, "subject": job.row["subject"], "key": key}
    async with service.database() as connection:
        # The fence comes first: a mail cannot be called back.
        await queue.advance(connection, job)
        begun = await (await connection.execute(BEGIN, values)).fetchone()
    if begun is None:
        return None
    error = await post.send(_message(job, post.server.sender, recipient, text))
    async with service.database() as connection:
        # Written down even when the job was lost meanwhile: the mail is out.
        await connection.execute(END, {"status": "failed" if error else "sent", "error": error, "key": key})
    async with service.database() as connection:
        await queue.advance(connection, job, **await _counts(connection, job))
    return error


async def _counts(connection: Connection, job: Job) -> dict[str, int]:
    row = await (await connection.execute(COUNTS, {"job_id": job.id})).fetchone()
    assert row is not None
    return {name: int(count) for name, count in row.items()}


def _message(job: Job, sender: str, recipient: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = job.row["subject"]
    message["Date"] = formatdate(usegmt=True)
    # The same in every attempt, so that a mail sent twice is recognised as one.
    message["Message-ID"] = f"<{job.id}.{job.row['recipients'].index(recipient)}@{sender.rpartition('@')[2] or 'localhost'}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    return message


class _Post:
    """One connection to a mail server for a job's mails; a server that cannot be reached is tried once, not once per mail."""

    def __init__(self, server: MailServer) -> None:
        self.server = server
        self._client: aiosmtplib.SMTP | None = None
        self._unreachable: str | None = None

    async def send(self, message: EmailMessage) -> str | None:
        """What went wrong, or None when the server took the mail."""
        if self._unreachable:
            return self._unreachable
        try:
            client = await self._connected()
        except (aiosmtplib.SMTPException, OSError, ValueError) as exc:
            self._unreachable = f"{self.server.server}:{self.server.port}: {_reason(exc)}"
            return self._unreachable
        try:
            # To one recipient: if it is refused this raises, so the returned refusals are always empty.
            await client.send_message(message)
        except (aiosmtplib.SMTPException, OSError, ValueError) as exc:
            return _reason(exc)
        return None

    async def _connected(self) -> aiosmtplib.SMTP:
        if self._client is None or not self._client.is_connected:
            server = self.server
            self._client = aiosmtplib.SMTP(hostname=server.server, port=server.port, timeout=SMTP_TIMEOUT_S, start_tls=server.starttls)
            await self._client.connect(username=server.username, password=server.password)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _reason(exc: Exception) -> str:
    if isinstance(exc, aiosmtplib.SMTPRecipientsRefused):
        return "; ".join(f"{refused.code} {refused.message}" for refused in exc.recipients)
    return str(exc) or type(exc).__name__
