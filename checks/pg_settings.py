"""Which settings of the server will hurt one night? Advice, each with its reason and its cure."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from checks import pg_sight
from checks.words import many
from monitor.domain import Finding, FindingKind, Metric, Observed, Severity
from monitor.plugins import CheckContext, PluginConfig, check, one_line
from monitor.probes_contract import Row

ADVICES = Metric("monitor_pg_settings_advice", "Settings of the server that are advised against, those that are ignored not counted.")
PENDING = Metric("monitor_pg_settings_pending_restart", "Settings that were changed and wait for a restart.")

ADVICE = FindingKind(
    "SettingAdvised", Severity.P4, None, "A setting will hurt one day; P2 or P3 where data or the whole server is at stake."
)

NO_TIMEOUT = re.compile(r"0+\s*[a-z]*")
PENDING_RESTART = "pending_restart"
STATEMENT_TIMEOUT = "statement_timeout"
IDLE_TIMEOUT = "idle_in_transaction_session_timeout"


@dataclass(frozen=True, slots=True)
class Rule:
    """One setting, when it is advised against, and what to do."""

    setting: str
    is_bad: Callable[[str, Mapping[str, str]], bool]
    """Of its value and of all values, as pg_settings shows them."""
    why: str
    cure: str
    severity: Severity = Severity.P4


def _is(*values: str) -> Callable[[str, Mapping[str, str]], bool]:
    return lambda value, _: value in values


RULES = (
    Rule("fsync", _is("off"), "a crash of the machine destroys the database", "ALTER SYSTEM SET fsync = on, and reload", Severity.P2),
    Rule(
        "full_page_writes",
        _is("off"),
        "a crash can leave torn pages that nothing repairs",
        "ALTER SYSTEM SET full_page_writes = on",
        Severity.P2,
    ),
    Rule("zero_damaged_pages", _is("on"), "damaged pages are silently emptied", "ALTER SYSTEM RESET zero_damaged_pages", Severity.P2),
    Rule("autovacuum", _is("off"), "dead rows pile up, and transaction numbers run out", "ALTER SYSTEM SET autovacuum = on", Severity.P3),
    Rule(
        "track_counts", _is("off"), "autovacuum is blind, and so are half of the checks", "ALTER SYSTEM SET track_counts = on", Severity.P3
    ),
    Rule("track_activities", _is("off"), "nobody sees what the sessions do", "ALTER SYSTEM SET track_activities = on", Severity.P3),
    Rule("synchronous_commit", _is("off"), "a crash loses transactions that were confirmed", "ALTER SYSTEM SET synchronous_commit = on"),
    Rule(
        "superuser_reserved_connections",
        _is("0"),
        "when the last slot is taken, nobody can log in to free one",
        "ALTER SYSTEM SET superuser_reserved_connections = 3, and restart",
        Severity.P3,
    ),
    Rule(
        "reserved_connections",
        _is("0"),
        "when the last slot is taken, the monitor and its fixes cannot log in anew",
        "ALTER SYSTEM SET reserved_connections = 3, restart, and GRANT pg_use_reserved_connections to the monitor's roles",
    ),
    Rule(
        "max_slot_wal_keep_size",
        lambda value, all_: value == "-1" and all_.get("(slots)", "0") != "0",
        "a replication slot that nobody reads keeps WAL until the disk is full",
        "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (what the disk can spare)",
    ),
    Rule("log_lock_waits", _is("off"), "who waited for whom is in no log", "ALTER SYSTEM SET log_lock_waits = on"),
    Rule("log_checkpoints", _is("off"), "slow checkpoints are in no log", "ALTER SYSTEM SET log_checkpoints = on"),
    Rule(
        "log_autovacuum_min_duration",
        _is("-1"),
        "long runs of autovacuum are in no log",
        "ALTER SYSTEM SET log_autovacuum_min_duration = '10min'",
    ),
    Rule("log_temp_files", _is("-1"), "statements that spill to disk are in no log", "ALTER SYSTEM SET log_temp_files = '100MB'"),
    Rule(
        "password_encryption",
        _is("md5"),
        "passwords are stored by a broken hash",
        "ALTER SYSTEM SET password_encryption = 'scram-sha-256', then set them anew",
    ),
    Rule("data_checksums", _is("off"), "damage on the disk is not noticed", "pg_checksums --enable while the server is stopped"),
    Rule(
        "shared_buffers",
        lambda value, _: int(value) <= 16_384,
        "the cache is the default of 128 MB, whatever the machine has",
        "a quarter of the memory is a good begin",
    ),
)
"""For any server. Some settings do not exist on older ones: those are left out."""

NAMES = (*(rule.setting for rule in RULES), STATEMENT_TIMEOUT, IDLE_TIMEOUT, PENDING_RESTART)


class Config(PluginConfig):
    """Keys of a ``pg_settings`` check."""

    ignore: tuple[str, ...] = Field((), description="Settings whose advice is known and declined.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := [name for name in self.ignore if name not in NAMES]:
            raise ValueError(f"there is no advice for {unknown[0]!r} to ignore; there is for {', '.join(sorted(NAMES))}")
        return self


@check(
    "pg_settings",
    config=Config,
    metrics=(ADVICES, PENDING),
    finds=(ADVICE,),
    needs=("dsn",),
    blind="The role may not see the server's settings, or the database does not answer.",
    why="Most nights are lost to settings that were known to be wrong: no timeouts, no reserved connections, logs that say nothing.",
    privileges=pg_sight.PRIVILEGES,
)
async def pg_settings(ctx: CheckContext, cfg: Config) -> Observed:
    """Reads the server's settings and those of its roles in this database; gives advice: what is wrong, why, and what cures it."""
    assert ctx.pg is not None  # needs=("dsn",)
    rows, roles, (slots,) = await pg_sight.look(ctx.pg, (SETTINGS, {"names": list(NAMES)}), ROLES, SLOTS)
    return judge(rows, roles, cfg, slots=slots["number"], service=ctx.service.name)


def judge(rows: Sequence[Row], roles: Sequence[Row], cfg: Config, *, slots: int, service: str) -> Observed:
    """What the settings mean, the worst first. Pure. ``roles`` are those that log in without being superusers, with their own timeouts."""
    values = {row["name"]: row["setting"] for row in rows} | {"(slots)": str(slots)}
    pending = sorted(row["name"] for row in rows if row["pending"])
    findings = [
        _advise(rule.setting, values[rule.setting], rule.why, rule.cure, service, rule.severity)
        for rule in RULES
        if rule.setting in values and rule.is_bad(values[rule.setting], values)
    ]
    findings += _timeouts(values, roles, service)
    if pending:
        shown = ", ".join(pending[:10])
        findings.append(
            _advise(
                PENDING_RESTART,
                shown,
                "changed settings wait for a restart: the next crash changes the server",
                "restart at a quiet time",
                service,
            )
        )
    findings = sorted(
        (finding for finding in findings if dict(finding.labels)["setting"] not in cfg.ignore), key=lambda found: found.severity or 9
    )
    return Observed((ADVICES(len(findings)), PENDING(len(pending))), tuple(findings))


def _timeouts(values: Mapping[str, str], roles: Sequence[Row], service: str) -> list[Finding]:
    """Roles whose statements, or whose forgotten transactions, may run for ever."""
    whys = {
        STATEMENT_TIMEOUT: "one statement can run, and hold its locks, for ever",
        IDLE_TIMEOUT: "a forgotten transaction holds its locks, and keeps VACUUM from cleaning, for ever",
    }
    findings = []
    for setting, why in whys.items():
        effective = {one_line(row["name"], limit=63): (row["own"] or {}).get(setting, values.get(setting, "0")) for row in roles}
        without = [name for name, value in effective.items() if NO_TIMEOUT.fullmatch(value)]
        if without:
            cure = f"ALTER ROLE {without[0]} SET {setting} = '60s'"
            told = f"{why}: {many(len(without), 'role')} may: {', '.join(without[:8])}"
            findings.append(_advise(setting, effective[without[0]], told, cure, service))
    return findings


def _advise(setting: str, value: str, why: str, cure: str, service: str, severity: Severity = Severity.P4) -> Finding:
    facts = {
        "now": f"{setting} = {one_line(value, limit=200)}" if setting != PENDING_RESTART else one_line(value, limit=200),
        "why": why,
        "cure": cure,
    }
    return ADVICE(
        f"{setting} of {service}: {why}", labels={"setting": setting}, facts=facts, severity=None if severity is Severity.P4 else severity
    )


# What a new session of the server gets, whatever the monitor set for its own.
SETTINGS = """
SELECT name, coalesce(reset_val, setting) AS setting, pending_restart AS pending FROM pg_settings
WHERE name = ANY(%(names)s) OR pending_restart ORDER BY name
"""

# What a role gets in this database: its own settings here, its own anywhere, the database's, those of all roles, in this order.
ROLES = """
SELECT r.rolname::text AS name, (
    SELECT json_object_agg(first.name, first.value) FROM (
        SELECT DISTINCT ON (1) split_part(o, '=', 1) AS name, substr(o, strpos(o, '=') + 1) AS value
        FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) o
        WHERE s.setrole IN (0, r.oid) AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
        ORDER BY 1, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC
    ) first) AS own
FROM pg_roles r
WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolreplication AND r.rolname <> current_user ORDER BY r.rolname LIMIT 200
"""

SLOTS = "SELECT count(*) AS number FROM pg_replication_slots"
