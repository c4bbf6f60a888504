"""Would the mail servers of the tenants take a mail now: reachable, protected, with a login that works and a certificate that lasts?"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from psycopg.sql import SQL
from pydantic import Field, model_validator

from checks.job_tables import TABLE_NAME, Wanted, identifier, may_read, readable
from checks.smtp_session import LOOPBACK, Door, Login, Security, Step, Visit, trusting, visit
from checks.words import lasted, many
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, LocalPath, PluginConfig, Secret, check, one_line
from monitor.probes_contract import Postgres

UP = Metric("monitor_smtp_up", "1 when the mail server greeted and, where it should, protected the connection.", ("server",))
DURATION = Metric("monitor_smtp_duration_seconds", "How long the latest visit took, the slowest of a server's.", ("server",))
EXPIRY = Metric("monitor_smtp_tls_expiry_seconds", "Time until the mail server's certificate expires.", ("server",))
SERVERS = Metric("monitor_smtp_servers", "Mail servers that are in use.")
LOGINS = Metric("monitor_smtp_logins", "Logins at mail servers by what is known of them: good, refused, untried.", ("state",))

SERVER_DOWN = FindingKind("MailServerDown", Severity.P3, "INC-004", "A mail server cannot be reached, or does not greet as one.")
TLS_FAILED = FindingKind(
    "MailServerTlsFailed", Severity.P3, "INC-004", "A mail server does not offer STARTTLS, or its certificate is refused."
)
LOGIN_FAILED = FindingKind("MailLoginFailed", Severity.P3, "INC-004", "A mail server refuses the login of a tenant.")
EXPIRING = FindingKind(
    "MailCertificateExpiring",
    Severity.P3,
    "INC-004",
    "The certificate of a mail server expires within tls_warn_days; the number is in days.",
)
MISCONFIGURED = FindingKind(
    "MailServerMisconfigured", Severity.P3, "INC-004", "The email_config of an active tenant is incomplete or wrong."
)

VIEW = "public.mail_servers"
LOGIN_VIEW = "public.mail_logins"
OTHER = "(other)"
CONFIGURED = "(configured)"
"""Stands for a tenant where the login is one of the check's own configuration."""


class Server(PluginConfig):
    """A mail server that is watched whether a tenant uses it or not."""

    host: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._:-]+$", description="Name or address.")
    port: int = Field(587, ge=1, le=65535, description="Port.")
    security: Security = Field("starttls", description="How the connection is protected.")
    username: str | None = Field(None, description="Who logs in; without it no login is tried.")
    password: Secret | None = Field(None, description="The password of the login.")

    @model_validator(mode="after")
    def _login_is_whole_and_protected(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password are given together or not at all")
        if self.password and self.security == "none" and self.host not in LOOPBACK:
            raise ValueError('a password needs security = "starttls" or "tls": it never travels in clear')
        return self


class Config(PluginConfig):
    """Keys of an ``smtp_server`` check."""

    tenants: bool = Field(True, description="Look at the mail servers of the active tenants, as the view tells them.")
    view: str = Field(VIEW, pattern=TABLE_NAME, description="View with tenant_id, is_active, server, port, starttls and has_login.")
    login_view: str = Field(
        LOGIN_VIEW, pattern=TABLE_NAME, description="View with tenant_id, username and password; logins are tried where it may be read."
    )
    servers: tuple[Server, ...] = Field((), max_length=50, description="Mail servers that are looked at besides.")
    login_every: Duration = Field(
        3600.0,
        ge=60,
        description="How often one login is tried: what is known of it counts meanwhile, lest a wrong password lock the account.",
    )
    tls_warn_days: float = Field(14.0, ge=0, description="Find a certificate that expires sooner.")
    ca_file: LocalPath | None = Field(None, description="CA bundle that is trusted besides the machine's.")
    max_servers: int = Field(200, ge=1, le=500, description="Mail servers that are visited at one run, at the same time.")
    top: int = Field(20, ge=1, le=100, description="Servers that are told apart in metrics, and findings of one kind; the rest is (other).")
    deadline: Duration = Field(6.0, gt=0, le=60, description="For all visits together, which run at the same time.")


@dataclass(slots=True)
class Use:
    """Who uses one mail server."""

    door: Door
    tenants: list[str] = field(default_factory=list)
    logins: dict[str, Login] = field(default_factory=dict)
    """By tenant; ``(configured)`` for one of the check itself."""
    unproven: int = 0
    """Logins that cannot be tried: not ours to read, or the connection is not protected."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A tenant whose mail cannot be sent, whatever the servers do."""

    tenant: str
    why: str


@dataclass(slots=True)
class Seen:
    """What is known of one server after this run."""

    use: Use
    visit: Visit | None = None
    """The first visit; None when there was none."""
    logins: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By tenant: when the login was tried, and why it failed ("" when it did not)."""


@check(
    "smtp_server",
    config=Config,
    metrics=(UP, DURATION, EXPIRY, SERVERS, LOGINS),
    finds=(SERVER_DOWN, TLS_FAILED, LOGIN_FAILED, EXPIRING, MISCONFIGURED),
    blind="The view of mail servers is missing, not readable or locked, there are more servers than max_servers, or this machine has no "
    "socket left.",
    why="Each tenant sends over a mail server of its own choice, and finds out that it is gone, or its password changed, when the monthly "
    "report does not arrive (INC-004).",
    privileges="`GRANT SELECT ON mail_servers TO` the role of the service's `dsn`: a view of where mail goes, without user names and "
    "passwords, while `tenant_config.email_config` itself stays closed. With that alone servers, STARTTLS and certificates are proven, "
    "and logins are counted as untried. Proving a login takes the password, and who holds it can send mail in the tenant's name, so "
    "that is a decision of its own: `GRANT SELECT ON mail_logins TO` the role, or a `username` and a `password` in `servers`. "
    "Passwords are never shown, logged or stored, and travel over TLS only (on this machine also without).",
)
async def smtp_server(ctx: CheckContext, cfg: Config) -> Observed:
    """Visits the mail server of every active tenant and those of the configuration: greeting, STARTTLS, login, certificate.

    No mail is sent. Servers are visited at the same time, and each login is tried once every login_every.
    """
    uses, wrong = await _uses(ctx, cfg)
    trust = trusting(cfg.ca_file)
    now = ctx.clock.now()
    before = ctx.kept.value if ctx.kept else {}
    until = asyncio.get_running_loop().time() + cfg.deadline
    seen = await asyncio.gather(
        *(_look(use, before, cfg, now=now.timestamp(), until=until, trust=trust) for use in uses[: cfg.max_servers])
    )
    observed = judge(seen, wrong, cfg, now=now, service=ctx.service.name)
    if len(uses) > cfg.max_servers and not observed.findings:
        raise CannotLook(f"{ctx.service.name}: only {cfg.max_servers} of {len(uses)} mail servers were visited: raise max_servers")
    return observed


# --- what it means ---------------------------------------------------------------------------------------------------


def judge(seen: Sequence[Seen], wrong: Sequence[Wrong], cfg: Config, *, now: datetime, service: str) -> Observed:
    """What the visits mean. Pure."""
    findings: list[Finding] = []
    findings += _capped([_misconfigured(one, service) for one in wrong], cfg, service)
    for kind, step in ((SERVER_DOWN, Step.CONNECT), (TLS_FAILED, Step.TLS)):
        failed = [one for one in seen if one.visit is not None and one.visit.failed_at is step]
        failed.sort(key=lambda one: (-len(one.use.tenants), one.use.door.name))
        findings += _capped([_server_failed(kind, one, service) for one in failed], cfg, service)
    findings += _capped(
        [_login_failed(one, tenant, service) for one in seen for tenant, (_, why) in one.logins.items() if why], cfg, service
    )
    findings += _capped([found for one in seen if (found := _expiring(one, cfg, now, service))], cfg, service)
    keep = {_key(one.use.door, tenant): [at, why] for one in seen for tenant, (at, why) in one.logins.items()}
    return Observed(tuple(_samples(seen, cfg, now)), tuple(findings), keep={"logins": keep})


def _key(door: Door, tenant: str) -> str:
    return f"{door.name} {tenant[:100]}"


def _capped(found: list[Finding], cfg: Config, service: str) -> list[Finding]:
    """At most ``top`` of one kind, then one for the rest."""
    rest = found[cfg.top :]
    if not rest:
        return found
    labels = {name: OTHER for name, _ in rest[0].labels}
    facts = {f"{number}": finding.summary for number, finding in enumerate(rest[:5], 1)}
    return [*found[: cfg.top], rest[0].kind(f"{many(len(rest), 'more finding')} of this kind ({service})", labels=labels, facts=facts)]


def _who(use: Use) -> dict[str, str]:
    names = ", ".join(one_line(tenant, limit=40) for tenant in use.tenants[:8])
    more = f" and {len(use.tenants) - 8} more" if len(use.tenants) > 8 else ""
    return {"used by": f"{many(len(use.tenants), 'tenant')}: {names}{more}" if use.tenants else "the check's configuration"}


def _misconfigured(one: Wrong, service: str) -> Finding:
    tenant = one_line(one.tenant, limit=64)
    return MISCONFIGURED(f"tenant {tenant} cannot send mail: {one.why} ({service})", labels={"tenant": tenant}, facts={"tenant": tenant})


def _server_failed(kind: FindingKind, one: Seen, service: str) -> Finding:
    assert one.visit is not None
    name, what = one.use.door.name, "cannot be used" if kind is SERVER_DOWN else "cannot be used safely"
    facts = {"why": one.visit.why, **_who(one.use), "security": one.use.door.security, "took": f"{one.visit.took_s:.2f} s"}
    return kind(f"the mail server {name} {what}: {one.visit.why} ({service})", labels={"server": name}, facts=facts)


def _login_failed(one: Seen, tenant: str, service: str) -> Finding:
    name, shown = one.use.door.name, one_line(tenant, limit=64)
    why = one.logins[tenant][1]
    summary = f"the mail server {name} refuses the login of {shown}: {why} ({service})"
    facts = {
        "why": why,
        "look at": "username and password in " + ("the check's servers" if tenant == CONFIGURED else "tenant_config.email_config"),
    }
    return LOGIN_FAILED(summary, labels={"server": name, "tenant": shown}, facts=facts)


def _expiring(one: Seen, cfg: Config, now: datetime, service: str) -> Finding | None:
    if one.visit is None or one.visit.expires_at is None:
        return None
    left_s = one.visit.expires_at - now.timestamp()
    if left_s >= cfg.tls_warn_days * 86_400:
        return None
    name, left = one.use.door.name, lasted(max(0.0, left_s))
    facts = {"expires in": left, **_who(one.use)}
    return EXPIRING(
        f"the certificate of the mail server {name} expires in {left} ({service})",
        labels={"server": name},
        facts=facts,
        value=left_s / 86_400,
    )


def _samples(seen: Sequence[Seen], cfg: Config, now: datetime) -> list[Sample]:
    visited = [(one, one.visit) for one in seen if one.visit is not None]
    visited.sort(key=lambda found: (found[1].failed_at not in (Step.CONNECT, Step.TLS), -len(found[0].use.tenants), found[0].use.door.name))
    up: dict[str, float] = {}
    took: dict[str, float] = {}
    expiry: dict[str, float] = {}
    for number, (one, found) in enumerate(visited):
        name = one.use.door.name if number < cfg.top else OTHER
        up[name] = min(up.get(name, 1.0), found.failed_at not in (Step.CONNECT, Step.TLS))
        took[name] = max(took.get(name, 0.0), found.took_s)
        if found.expires_at is not None:
            expiry[name] = min(expiry.get(name, float("inf")), found.expires_at - now.timestamp())
    states = [bool(why) for one in seen for _, why in one.logins.values()]
    wanted = sum(len(one.use.logins) + one.use.unproven for one in seen)
    return [
        SERVERS(len(seen)),
        *(UP(value, server=name) for name, value in up.items()),
        *(DURATION(value, server=name) for name, value in took.items()),
        *(EXPIRY(value, server=name) for name, value in expiry.items()),
        LOGINS(states.count(False), state="good"),
        LOGINS(states.count(True), state="refused"),
        LOGINS(wanted - len(states), state="untried"),
    ]


# --- looking ---------------------------------------------------------------------------------------------------------


async def _look(use: Use, before: Mapping[str, Any], cfg: Config, *, now: float, until: float, trust: Any) -> Seen:
    """Visit one server: once, and once for each login whose turn it is, one after the other."""
    seen = Seen(use)
    known: Mapping[str, Any] = before.get("logins", {})
    turns: list[tuple[str, Login | None]] = []
    for tenant, own in use.logins.items():
        match known.get(_key(use.door, tenant)):
            case [float() | int() as at, str(why)] if 0 <= now - at < cfg.login_every:
                seen.logins[tenant] = (at, why)
            case _:
                turns.append((tenant, own))
    for tenant, login in turns or [("", None)]:
        made = await visit(use.door, login, until=until, trust=trust)
        if seen.visit is not None and (made.ran_out or made.failed_at in (Step.CONNECT, Step.TLS)):
            break  # the first visit tells of the server; this login, which had less time, comes first at another run
        seen.visit = seen.visit or made
        if login is not None and made.failed_at in (Step.LOGIN, Step.DONE):
            # What is not the server's last word on a login is asked again at the next run.
            seen.logins[tenant] = (now if made.failed_at is Step.DONE or made.final else 0.0, made.why)
        if made.failed_at in (Step.CONNECT, Step.TLS):
            break
    return seen


SERVERS_IN_USE = SQL(
    "SELECT tenant_id::text AS tenant_id, server, port, starttls, has_login FROM {view} WHERE is_active ORDER BY tenant_id"
)
PASSWORDS = SQL("SELECT tenant_id::text AS tenant_id, username, password FROM {view}")


async def _uses(ctx: CheckContext, cfg: Config) -> tuple[list[Use], list[Wrong]]:
    """Every server with who uses it, most used first, and the tenants whose configuration names none."""
    uses: dict[Door, Use] = {}
    wrong: list[Wrong] = []
    for server in cfg.servers:
        use = uses.setdefault(door := Door(server.host, server.port, server.security), Use(door))
        if server.username is not None and server.password is not None:
            use.logins[CONFIGURED] = Login(server.username, server.password.get_secret_value())
    if cfg.tenants:
        if ctx.pg is None:
            raise CannotLook(
                f"the service {ctx.service.name} has no dsn to read the tenants' mail servers with: set it, or tenants = false"
            )
        await _add_tenants(ctx.pg, cfg, uses, wrong)
    return sorted(uses.values(), key=lambda use: (not use.logins, -len(use.tenants), use.door.name)), wrong


def _why_no_door(server: str | None, port: str) -> str | None:
    """What of a tenant's own words cannot be the address of a mail server; None when nothing is wrong."""
    if not server:
        return "email_config names no server"
    if not server.isprintable() or " " in server:
        return "the server of email_config is no host name"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        return "the port of email_config is no port"
    return None


async def _add_tenants(pg: Postgres, cfg: Config, uses: dict[Door, Use], wrong: list[Wrong]) -> None:
    await readable(pg, {cfg.view: Wanted(("tenant_id", "is_active", "server", "port", "starttls", "has_login"))})
    rows = await pg.fetch(SERVERS_IN_USE.format(view=identifier(cfg.view)))
    logins = await _logins(pg, cfg)
    for row in rows:
        if row["server"] is None and row["port"] is None:
            continue  # this tenant sends no mail
        port = str(row["port"] or "")
        if why := _why_no_door(row["server"], port):
            wrong.append(Wrong(row["tenant_id"], why))
            continue
        # The analytics service knows STARTTLS or nothing; the monitor knocks as it does.
        door = Door(row["server"], int(port), "starttls" if row["starttls"] else "none")
        use = uses.setdefault(door, Use(door))
        use.tenants.append(row["tenant_id"])
        login = logins.get(row["tenant_id"])
        if login is not None and door.takes_passwords():
            use.logins[row["tenant_id"]] = login
        elif row["has_login"]:
            use.unproven += 1


async def _logins(pg: Postgres, cfg: Config) -> dict[str, Login]:
    """The logins that may be tried, by tenant; none when they are not ours to read."""
    if not await may_read(pg, cfg.login_view):
        return {}
    rows = await pg.fetch(PASSWORDS.format(view=identifier(cfg.login_view)))
    return {row["tenant_id"]: Login(row["username"], row["password"] or "") for row in rows if row["username"]}
