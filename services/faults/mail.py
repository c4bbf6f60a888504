"""INC-004: reports are due, and the mail server is gone or refuses them."""

from typing import TYPE_CHECKING

import httpx2

from services.faults.fault import Fault, FaultError, switch

if TYPE_CHECKING:
    from services.platform import Platform

RECIPIENTS = ("shop@shop.example", "owner@shop.example")


async def _order_report(platform: "Platform") -> None:
    order = {"recipients": list(RECIPIENTS), "subject": "Revenue of the last month", "report": "revenue"}
    try:
        headers = await platform.log_in()
        (await platform.http.post(f"{platform.urls['analytics']}/api/v1/email/send", json=order, headers=headers)).raise_for_status()
    except httpx2.HTTPError as exc:
        raise FaultError(f"the report cannot be ordered: {str(exc) or type(exc).__name__}") from exc


async def _stop_mail(platform: "Platform") -> None:
    await switch(platform, "mailbox", "down")
    await _order_report(platform)


async def _refuse_mail(platform: "Platform") -> None:
    await switch(platform, "mailbox", "refuse")
    await _order_report(platform)


async def _take_mail(platform: "Platform") -> None:
    """The server answers again, and a report goes out through it: the next look sees mails that arrive."""
    await switch(platform, "mailbox", "ok")
    await _order_report(platform)


FAULTS = (
    Fault("smtp-down", "INC-004", "analytics", "Nothing listens on the mail server's port while a report is due.", _stop_mail, _take_mail),
    Fault("smtp-refuses", "INC-004", "analytics", "The mail server refuses every recipient of a due report.", _refuse_mail, _take_mail),
)
