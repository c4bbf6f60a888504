"""The auth service (8003): log-in and token check of a tenant's users, verified with the external identity provider."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.common import Running, Tenant, build_app, tenant_is_active
from services.errors import Unauthorized
from services.settings import settings_or_exit

router = APIRouter(tags=["auth"])


class LogIn(BaseModel):
    tenant_id: str = Field(min_length=1, max_length=100)
    username: str = Field(min_length=1, max_length=200)
    password: str = Field(min_length=1, max_length=1000, repr=False)


@router.post("/login")
async def log_in(service: Running, body: LogIn) -> dict[str, Any]:
    """A bearer token for one tenant. 401 without telling which of tenant, name and password is wrong; the log tells."""
    if not await tenant_is_active(service, body.tenant_id):
        service.log.warning("login refused: tenant unknown or not active", extra={"tenant_id": body.tenant_id})
        raise Unauthorized("wrong tenant, username or password")
    token = await service.idp.log_in(body.tenant_id, body.username, body.password)
    if token is None:
        service.log.warning("login refused by the identity provider", extra={"tenant_id": body.tenant_id})
        raise Unauthorized("wrong tenant, username or password")
    return token


@router.get("/verify")
async def verify(identity: Tenant) -> dict[str, Any]:
    """Whose token this is; 401 when it is not valid for the tenant in X-Tenant-Id."""
    return {"active": True, "subject": identity.subject, "tenant_id": identity.tenant_id}


app = build_app("auth-service", router, settings_or_exit())
