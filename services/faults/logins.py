"""INC-006: users cannot log in, tokens are not accepted, or a tenant is switched off."""

from typing import TYPE_CHECKING

import psycopg

from services.faults.fault import Fault, switch

if TYPE_CHECKING:
    from services.platform import Platform

SET_ACTIVE = "UPDATE tenant_config SET is_active = %(active)s"


async def _fail_idp(platform: "Platform") -> None:
    await switch(platform, "idp", "error")


async def _forget_tokens(platform: "Platform") -> None:
    await switch(platform, "idp", "forget")


async def _mend_idp(platform: "Platform") -> None:
    await switch(platform, "idp", "ok")


async def _disable_tenants(platform: "Platform") -> None:
    await _set_active(platform, active=False)


async def _enable_tenants(platform: "Platform") -> None:
    await _set_active(platform, active=True)


async def _set_active(platform: "Platform", *, active: bool) -> None:
    async with await psycopg.AsyncConnection.connect(platform.services_dsn("fault")) as connection:
        await connection.execute(SET_ACTIVE, {"active": active})


FAULTS = (
    Fault("idp-down", "INC-006", "auth", "The identity provider answers every request with an error.", _fail_idp, _mend_idp),
    Fault("tokens-rejected", "INC-006", "auth", "The identity provider does not know the tokens it gives.", _forget_tokens, _mend_idp),
    Fault("tenant-disabled", "INC-006", "auth", "Every tenant is switched off: all requests get 401.", _disable_tenants, _enable_tenants),
)
