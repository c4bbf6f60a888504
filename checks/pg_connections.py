"""How near is a PostgreSQL server to its last connection slot, and can an application still get in?

Counts come over the sentinel's held connection, the proof from a fresh canary login: each sees what the other cannot.
"""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from checks import pg_sight
from monitor.domain import Finding, FindingKind, Metric, Observed, Sample, Severity
from monitor.errors import CannotLook
from monitor.plugins import CheckContext, Duration, Kept, PluginConfig, check, one_line
from monitor.probes_contract import Login, LoginState, Postgres

CONNECTIONS = Metric("monitor_pg_connections", "Client connections of the whole server, by state.", ("state",))
BY_APPLICATION = Metric(
    "monitor_pg_connections_by_application", "Client connections by application_name: the twenty biggest and (other).", ("application",)
)
USABLE = Metric("monitor_pg_connections_usable", "Connection slots that applications can use: max_connections less the reserved ones.")
LIMIT_RATIO = Metric(
    "monitor_pg_connections_limit_used_ratio",
    "Connections as a share of the own limit of a role or database; the twenty nearest their limit.",
    ("scope", "name"),
)
USED_RATIO = Metric("monitor_pg_connections_used_ratio", "Client connections as a share of the usable slots.")
CANARY_UP = Metric("monitor_pg_canary_up", "1 when a fresh login succeeded, 0 when it did not.")
CANARY_DURATION = Metric("monitor_pg_canary_duration_seconds", "How long the latest fresh login took.")

EXHAUSTED = FindingKind("ConnectionsExhausted", Severity.P1, "INC-002", "No slot is left for applications, or hardly any.", fells=True)
HIGH = FindingKind("ConnectionsHigh", Severity.P2, "INC-002", "More connections than warn_percent of the usable slots.")
HANDSHAKES = FindingKind(
    "HandshakesStuck",
    Severity.P1,
    "INC-002",
    "Logins hang or are refused while few sessions exist: unfinished handshakes hold the slots.",
    fells=True,
)
DOWN = FindingKind("DatabaseDown", Severity.P1, "INC-002", "Nothing listens, or the server is starting or stopping.", fells=True)
ROLE_LIMIT = FindingKind("RoleLimitReached", Severity.P1, "INC-002", "The canary's role has used up its own connection limit.", fells=True)
DATABASE_LIMIT = FindingKind(
    "DatabaseLimitReached", Severity.P1, "INC-002", "The database has used up its own connection limit.", fells=True
)

LIMIT_HIGH = FindingKind(
    "ConnectionLimitHigh", Severity.P2, "INC-002", "A role or database has used up more than warn_percent of its own connection limit."
)

TOP_APPLICATIONS = 20
TOP_LIMITS = 20


class Config(PluginConfig):
    """Keys of a ``pg_connections`` check."""

    warn_percent: float = Field(
        80.0, gt=0, le=100, description="ConnectionsHigh from this share of the usable slots on; ConnectionLimitHigh, of a limit."
    )
    critical_percent: float = Field(95.0, gt=0, le=100, description="ConnectionsExhausted from this share of the usable slots on.")
    login_every: Duration = Field(
        0.0,
        ge=0,
        le=300,
        description="A fresh login at least so often; 0s: at every look. It is always made when the one before failed, when sessions could "
        "not be counted or are still logging in, and while more than half of warn_percent are in use.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warn_percent >= self.critical_percent:
            raise ValueError("warn_percent must be below critical_percent")
        return self


@dataclass(frozen=True, slots=True)
class Limit:
    """A role's or database's own connection limit."""

    scope: str
    """``role`` or ``database``."""
    name: str
    at_most: int
    sessions: int

    @property
    def share(self) -> float:
        return self.sessions / self.at_most

    def __str__(self) -> str:
        return f"{self.scope} {self.name} {self.sessions}/{self.at_most}"


@dataclass(frozen=True, slots=True)
class Counts:
    """Client sessions of the whole server in one snapshot."""

    max_connections: int
    reserved: int
    by_state: tuple[tuple[str, int], ...]
    by_application: tuple[tuple[str, int], ...]
    limits: tuple[Limit, ...] = ()
    """Of roles and databases, the nearest to its limit first."""

    @property
    def usable(self) -> int:
        return max(1, self.max_connections - self.reserved)

    @property
    def used(self) -> int:
        return sum(dict(self.by_state).values())

    @property
    def starting(self) -> int:
        """Those that have not finished their login."""
        return dict(self.by_state).get("starting", 0)

    @property
    def percent(self) -> float:
        return 100 * self.used / self.usable


@check(
    "pg_connections",
    config=Config,
    metrics=(CONNECTIONS, BY_APPLICATION, USABLE, USED_RATIO, LIMIT_RATIO, CANARY_UP, CANARY_DURATION),
    finds=(EXHAUSTED, HIGH, HANDSHAKES, DOWN, ROLE_LIMIT, DATABASE_LIMIT, LIMIT_HIGH),
    needs=("dsn",),
    blind="The role may not see other sessions, the canary's credentials are refused, or the sessions could not be counted.",
    why="When the last slot is taken, every service fails at once and nobody can log in to find out why (INC-002).",
    privileges="The predefined role `pg_monitor`: `GRANT pg_monitor TO` the role of the service's `dsn`. `canary_dsn` is a plain role "
    "with the limits of the applications.",
)
async def pg_connections(ctx: CheckContext, cfg: Config) -> Observed:
    """Counts a server's sessions against its usable slots and proves with a fresh login that an application still gets in."""
    assert ctx.pg is not None  # needs=("dsn",)
    counts, blind = None, None
    try:
        counts = await _count(ctx.pg)
    except CannotLook as exc:
        blind = exc
    known = still_known(counts, ctx.kept, cfg, now_s=ctx.clock.now().timestamp())
    login = known or await ctx.pg.login()
    findings = judge(counts, login, cfg, service=ctx.service.name)
    if not findings and blind is not None:
        raise blind
    if not findings and login.state is not LoginState.OK:
        raise CannotLook(f"the canary login of {ctx.service.name} is {_CANARY_BLIND.get(login.state, login.state.value)}: {login.detail}")
    if known:
        return Observed(_samples(counts, login), findings)
    good = login.state is LoginState.OK and not findings
    keep = {"at_s": ctx.clock.now().timestamp(), "duration_s": login.duration_s} if good else {}
    return Observed(_samples(counts, login), findings, keep)


def still_known(counts: Counts | None, kept: Kept | None, cfg: Config, *, now_s: float) -> Login | None:
    """The latest login, while it is young and good and nothing has happened since that could change the answer. Pure."""
    if counts is None or kept is None or not kept.value:
        return None
    if max([counts.percent, *[100 * limit.share for limit in counts.limits]]) > cfg.warn_percent / 2 or counts.starting:
        return None
    young = 0 <= now_s - kept.value["at_s"] < 0.9 * cfg.login_every  # a look may come a little early
    return Login(LoginState.OK, kept.value["duration_s"]) if young else None


_CANARY_BLIND = {
    LoginState.REJECTED: "rejected (look at canary_dsn, or at dsn where there is none)",
    LoginState.UNCLASSIFIED: "refused for a reason this monitor does not know",
}


def judge(counts: Counts | None, login: Login, cfg: Config, *, service: str) -> tuple[Finding, ...]:
    """What counts and canary mean together. Pure. Empty where they prove nothing bad, which is not yet proof of health."""
    percent = counts.percent if counts else None
    kind = _kind_by_login(counts, login, cfg)
    if kind is None and percent is not None and percent >= cfg.warn_percent:
        kind = EXHAUSTED if percent >= cfg.critical_percent else HIGH
    limits = counts.limits if counts else ()
    near = tuple([_limit_high(limit, service) for limit in limits if 100 * limit.share >= cfg.warn_percent]) if limits else ()
    if kind is None:
        return near
    if kind in {ROLE_LIMIT, DATABASE_LIMIT}:
        near = tuple(finding for finding in near if dict(finding.labels)["scope"] != _SCOPES[kind])
    used = f"{counts.used} of {counts.usable} usable connections are in use" if counts else "the sessions could not be counted"
    words = {
        EXHAUSTED: "the database has no connection left"
        if login.state is LoginState.EXHAUSTED
        else "the database is almost out of connections",
        HIGH: "the database's connections run high",
        HANDSHAKES: "logins to the database get stuck before they finish",
        DOWN: "the database is down",
        ROLE_LIMIT: "the role's connection limit is reached",
        DATABASE_LIMIT: "the database's connection limit is reached",
    }
    labels = {"limit": _SCOPES[kind]} if kind in _SCOPES else {}
    return (kind(f"{words[kind]}: {used} ({service})", labels=labels, facts=_facts(counts, login)), *near)


_SCOPES = {ROLE_LIMIT: "role", DATABASE_LIMIT: "database"}


def _limit_high(limit: Limit, service: str) -> Finding:
    facts = {
        "used": f"{limit.sessions} of {limit.at_most} connections",
        "first": "who holds them: SELECT usename, datname, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3, 4",
    }
    labels = {"scope": limit.scope, "name": limit.name}
    summary = f"the {limit.scope} {limit.name} has used up {100 * limit.share:.0f} % of its own connection limit ({service})"
    return LIMIT_HIGH(summary, labels=labels, facts=facts, value=100 * limit.share)


def _kind_by_login(counts: Counts | None, login: Login, cfg: Config) -> FindingKind | None:
    """What the canary alone proves. Refused although few have finished their login: handshakes hold the slots."""
    if login.state is LoginState.EXHAUSTED:
        few = counts is not None and 100 * (counts.used - counts.starting) / counts.usable < cfg.warn_percent
        return HANDSHAKES if few else EXHAUSTED
    return _BY_LOGIN.get(login.state)


_BY_LOGIN = {
    LoginState.HANDSHAKE_STUCK: HANDSHAKES,
    LoginState.DOWN: DOWN,
    LoginState.ROLE_LIMIT: ROLE_LIMIT,
    LoginState.DATABASE_LIMIT: DATABASE_LIMIT,
}


def _facts(counts: Counts | None, login: Login) -> dict[str, str]:
    facts: dict[str, str] = {}
    if counts:
        facts["used"] = (
            f"{counts.used} of {counts.usable} usable ({counts.percent:.0f} %; {counts.max_connections} less {counts.reserved} reserved)"
        )
        facts["by state"] = _listing(counts.by_state)
        facts["by application"] = _listing(counts.by_application[:8])
        if reached := [str(limit) for limit in counts.limits if limit.share >= 1]:
            facts["limits reached"] = ", ".join(reached[:10])
    facts["canary login"] = f"{login.state.value.replace('_', ' ')} after {login.duration_s * 1000:.0f} ms"
    if login.detail:
        facts["server said"] = one_line(login.detail, limit=200)
    return facts


def _listing(numbers: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers if number) or "none"


def _samples(counts: Counts | None, login: Login) -> tuple[Sample, ...]:
    canary = (CANARY_UP(login.state is LoginState.OK), CANARY_DURATION(login.duration_s))
    if counts is None:
        return canary
    limits = [LIMIT_RATIO(limit.share, scope=limit.scope, name=limit.name) for limit in counts.limits] if counts.limits else ()
    return (
        *canary,
        USABLE(counts.usable),
        USED_RATIO(counts.used / counts.usable),
        *limits,
        *CONNECTIONS.each(counts.by_state),
        *BY_APPLICATION.each(counts.by_application),
    )


# --- looking ---------------------------------------------------------------------------------------------------------

# Only client backends use slots. Until PostgreSQL 17 who has not finished the login shows by the lock of its first transaction only.
# Superusers are exempt from both limits; a limit of 0 lets nobody in, on purpose.
SESSIONS = """
WITH clients AS MATERIALIZED (
    SELECT datid, usesysid, state, coalesce(nullif(application_name, ''), '(unset)') AS application
    FROM pg_stat_activity WHERE backend_type = 'client backend'
), applications AS (
    SELECT application, count(*) AS sessions, row_number() OVER (ORDER BY count(*) DESC, application) AS rank FROM clients GROUP BY 1
), limits AS (
    SELECT 'database' AS scope, d.datname::text AS name, d.datconnlimit AS at_most, count(a.datid) AS sessions
    FROM pg_database d LEFT JOIN clients a ON a.datid = d.oid WHERE d.datconnlimit > 0 GROUP BY d.datname, d.datconnlimit
    UNION ALL
    SELECT 'role', r.rolname::text, r.rolconnlimit, count(a.usesysid)
    FROM pg_roles r LEFT JOIN clients a ON a.usesysid = r.oid WHERE r.rolconnlimit > 0 AND NOT r.rolsuper GROUP BY r.rolname, r.rolconnlimit
)
SELECT 'state' AS scope, CASE WHEN state LIKE 'idle in transaction%%' THEN 'idle_in_transaction'
                              WHEN state IN ('active', 'idle', 'starting') THEN state ELSE 'other' END AS name,
       count(*)::int AS sessions, NULL::int AS at_most FROM clients GROUP BY 2
UNION ALL
SELECT 'state', 'starting', count(*)::int, NULL FROM pg_locks l
WHERE current_setting('server_version_num')::int < 180000 AND l.locktype = 'virtualxid' AND l.pid IS NOT NULL
  AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid) HAVING count(*) > 0
UNION ALL
SELECT 'server', 'max_connections', current_setting('max_connections')::int, NULL
UNION ALL
SELECT 'server', 'reserved',
       current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0), NULL
UNION ALL
SELECT 'application', CASE WHEN rank <= %(top_applications)s THEN application ELSE '(other)' END, sum(sessions)::int, NULL
FROM applications GROUP BY 2
UNION ALL
(SELECT scope, name, sessions::int, at_most FROM limits ORDER BY sessions::float8 / at_most DESC, scope, name LIMIT %(top_limits)s)
ORDER BY scope, sessions DESC, name
"""

STATES = ("active", "idle", "idle_in_transaction", "starting", "other")


async def _count(pg: Postgres) -> Counts:
    (sessions,) = await pg_sight.look(pg, (SESSIONS, {"top_applications": TOP_APPLICATIONS, "top_limits": TOP_LIMITS}))
    ours = dict.fromkeys(STATES, 0)
    applications: dict[str, int] = {}
    limits: list[Limit] = []
    for row in sessions:
        name, number = row["name"], row["sessions"]
        if row["at_most"] is not None:
            limits.append(Limit(row["scope"], one_line(name, limit=63), row["at_most"], number))
        elif row["scope"] == "application":
            shown = one_line(name, limit=64)
            applications[shown] = applications.get(shown, 0) + number  # two may become equal when they are made printable
        else:
            ours[name] = number
    limits.sort(key=lambda limit: (-limit.share, limit.scope, limit.name))
    max_connections, reserved = ours.pop("max_connections"), ours.pop("reserved")
    return Counts(max_connections, reserved, tuple(ours.items()), tuple(applications.items()), tuple(limits))
