"""The tables of ``config.toml`` as pydantic models: names, types, defaults and what each key means.

Only the edge: nothing behind :mod:`monitor.config` sees these. The documentation is generated from them.
"""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator

from monitor.config.values import Address, Days, Dsn, Interval, Listen, State, TimeOfDay, Timezone, Url
from monitor.plugins import Duration, LocalPath, Secret

Count = Annotated[StrictInt, Field(ge=1, le=1000)]
Text = Annotated[str, Field(min_length=1, max_length=500)]


class Table(BaseModel):
    """Base of every table: frozen, unknown keys refused, values never echoed in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True, validate_default=True)


class MonitorTable(Table):
    listen: Listen = Field(default=Address("127.0.0.1", 8010), description="Address of the status page, the metrics and the API.")
    external_url: Url | None = Field(
        default=None, description="How people reach the monitor, for the links in notifications. Without it, `http://` and `listen`."
    )
    state: State = Field(
        default="var/monitor.db",  # type: ignore[assignment]  # validated like a written value
        description="Where the monitor keeps its own state: the path of an SQLite file, or a PostgreSQL URL as "
        '`{env = "NAME"}` when several replicas share it.',
    )
    timezone: Timezone = Field(
        default="UTC",  # type: ignore[assignment]  # validated like a written value
        description="IANA name; the reports' times of day are in it.",
    )
    history: Days = Field(
        default="14d",  # type: ignore[assignment]  # validated like a written value
        description="How long results and closed incidents are kept, in whole days.",
    )
    token: Secret | None = Field(default=None, description="Bearer token for what changes something over HTTP.")
    network: str | None = Field(
        default=None,
        description="The service that stands for the monitor's own network, watched by a `witness` check: every service with an address "
        "beyond this machine depends on it.",
    )


class ServiceTable(Table):
    url: Url | None = Field(default=None, description="Base URL, http or https.")
    dsn: Dsn | None = Field(default=None, description="PostgreSQL, as the monitor's own role (`pg_monitor`).")
    canary_dsn: Dsn | None = Field(default=None, description="PostgreSQL, as a plain role, for the canary login.")
    fix_dsn: Dsn | None = Field(
        default=None, description="PostgreSQL, as the role that may apply runbook plans. Without it nothing can be applied."
    )
    log: LocalPath | None = Field(default=None, description="The service's log file.")
    error_log: LocalPath | None = Field(default=None, description="The service's error log file.")
    access_log: LocalPath | None = Field(default=None, description="The access log file of a web server.")
    instances: tuple[Url, ...] = Field(default=(), description="Base URLs of the single instances behind `url`.")
    depends_on: tuple[str, ...] = Field(
        default=(),
        description="Services without which this one cannot work: while one of them is down, findings here join its incident.",
    )


class BusinessHoursTable(Table):
    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Field(min_length=1)] = Field(
        default=["mon", "tue", "wed", "thu", "fri"], description="Days of the week."
    )
    start: TimeOfDay = Field(default="09:00", description="Begin of the business day.")  # type: ignore[assignment]  # as written
    end: TimeOfDay = Field(default="17:00", description="Its end, later than `start`.")  # type: ignore[assignment]  # as written
    timezone: Timezone | None = Field(default=None, description="IANA name; without it, the one of `[monitor]`.")


class SeverityTable(Table):
    severity: Literal["P1", "P2", "P3", "P4"] = Field(description="The severity that findings get which fit all of the following.")
    finding: Text | None = Field(default=None, description="Name of the finding, such as `ConnectionsHigh`; without it, any.")
    at_least: float | None = Field(default=None, description="The finding's number, in its threshold's unit, is this or more.")
    below: float | None = Field(default=None, description="The finding's number is less.")
    hours: Literal["business", "off"] | None = Field(default=None, description="Within, or outside of, `[business_hours]`.")


class CheckTable(Table):
    check: Text | None = Field(default=None, description="Name of the check, when the table has another name.")
    services: list[str] = Field(default=[], description="The services to look at; required.")
    every: Interval = Field(default="30s", description="How often to look.")  # type: ignore[assignment]  # as written
    timeout: Interval | None = Field(
        default=None,
        description='Deadline of one run, shorter than `every`. Without it, `"10s"` or 80 % of `every`, the smaller. '
        "A statement of a PostgreSQL check may take 3 s; with a timeout above 10 s, that less 6 s, over a connection of its own.",
    )
    recheck: Interval | None = Field(
        default=None,
        description="How soon to look again after a bad run, at most `every`; a run that could not look waits for the next. "
        'Without it, `"2s"` or `every`, the smaller.',
    )
    fail_after: Count = Field(default=2, description="Bad runs in a row before an alert fires.")
    recover_after: Count = Field(default=2, description="Good runs in a row before it resolves.")
    fail_for: Duration = Field(
        default=0.0,
        description="How long the bad runs must go on, too, before an alert fires; when that time is reached it is looked at again.",
    )
    recover_for: Duration = Field(default=0.0, description="How long the good runs in a row must go on, too, before it resolves.")
    blind_after: Count = Field(default=3, description="Runs in a row that could not look before that itself is an alert.")
    blind_severity: Literal["P1", "P2", "P3", "P4"] = Field(default="P2", description="Severity of that alert.")
    depends_on: list[str] = Field(
        default=[],
        description="Checks (`NAME`, on the same service if it is there) or instances (`NAME/SERVICE`) whose alerts explain what is found "
        "here: it then joins their incident and pages nobody. They are looked at out of turn before it is told. Services have their own "
        "`depends_on`.",
    )
    linger: Duration = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="So long after its cause is over, what is found here tells nobody: the time that the check looks back over.",
    )
    severity: tuple[SeverityTable, ...] = Field(
        default=(), description="Rules that change the severity of findings, the first that fits; see below."
    )


class ChannelTable(Table):
    notifier: Text = Field(description="Name of the notifier.")
    fallback: Text | None = Field(
        default=None, description="Another channel that is told when this one could not be, for `fallback_after` or for good."
    )
    fallback_after: Duration = Field(default=300.0, ge=10, description="How long this channel may try alone.")
    digest_from: StrictBool | Annotated[StrictInt, Field(ge=0, le=100_000)] = Field(
        default=20,
        description="How many incidents this channel tells one by one within a minute, counting those at least as bad; the others are told "
        "together, see delivery.md. `0` or `false`: never together, however many there are.",
    )

    @field_validator("digest_from")
    @classmethod
    def _is_a_number_or_never(cls, value: bool | int) -> int:
        if value is True:
            raise ValueError("expected a number of incidents, or false")
        return int(value)


class StepTable(Table):
    after: Duration = Field(description="How long nobody has acknowledged; later in each step than in the one before.")
    who: Text = Field(description="The role that is told, for people to read.")
    channels: list[str] = Field(default=[], description="The channels that reach them.")
    contacts: list[str] = Field(
        default=[],
        description="Contacts, and rotations, which are asked who is on call when the step fires. A step needs `channels` or `contacts`; "
        "one that reaches nobody is said, and the next step is taken at once.",
    )
    hours: Literal["any", "business"] = Field(
        default="any", description="`business`: a step that falls due outside of `[business_hours]` waits for the next business day."
    )


class ResponseTable(Table):
    within: Duration | None = Field(
        default=None, gt=0, description="The promised response time; an incident that nobody has taken by then is recorded as a breach."
    )
    ack_expires: Duration | None = Field(
        default=None, gt=0, description="How long an acknowledgement holds. After that the incident asks again, from the first step."
    )
    remind: Duration | None = Field(
        default=None, gt=0, description="How often everybody told hears again once the last step has fired and nobody has acknowledged."
    )


class ContactTable(Table):
    channels: Annotated[list[str], Field(min_length=1)] = Field(description="Every channel that reaches this person; all are used at once.")


class OverrideTable(Table):
    contact: Text | None = Field(default=None, description="Who takes over; without it, nobody is on call.")
    starts: datetime = Field(description="From then on; without an offset, in the rotation's time zone.")
    ends: datetime = Field(description="Until then.")


class RotationTable(Table):
    members: Annotated[list[str], Field(min_length=1)] = Field(description="Contacts, in the order of their turns.")
    starts: date = Field(description="The first day of the first member's first turn.")
    days: Annotated[StrictInt, Field(ge=1, le=366)] = Field(default=7, description="Length of a turn, in days.")
    handover: TimeOfDay = Field(default="09:00", description="Local time of day at which the duty changes.")  # type: ignore[assignment]  # as written
    timezone: Timezone | None = Field(default=None, description="IANA name; without it, the one of `[monitor]`.")
    overrides: tuple[OverrideTable, ...] = Field(default=(), description="Exceptions; the last one written wins.")


class MaintenanceTable(Table):
    matchers: Annotated[list[str], Field(min_length=1)] = Field(
        description="What it covers, as in amtool: `'service=\"postgres\"'`, with `=`, `!=`, `=~` or `!~`; all of them must hold."
    )
    starts: datetime | None = Field(default=None, description="Not before; without an offset, in its time zone.")
    ends: datetime | None = Field(default=None, description="Not from then on.")
    schedule: str | None = Field(default=None, max_length=200, description='When it opens again and again, as in a crontab: `"0 2 * * 0"`.')
    lasts: Duration | None = Field(default=None, gt=0, le=7 * 86400, description="How long each opening of the schedule lasts.")
    timezone: Timezone | None = Field(default=None, description="Of the schedule; without it, the one of `[monitor]`.")


class DeadmanTable(Table):
    url: Secret = Field(description="Where to POST a beat: a check of Healthchecks, or `/ping/KEY` of another monitor. It is a secret.")
    every: Annotated[Duration, Field(ge=1, le=3600)] = Field(default=60.0, description="How often.")


class AlertmanagerTable(Table):
    severities: dict[str, Literal["P1", "P2", "P3", "P4"]] = Field(
        default={"critical": "P1", "page": "P1", "error": "P2", "high": "P2", "warning": "P3", "info": "P4", "none": "P4"},
        description="What the label `severity` means; `P1` to `P4` always mean themselves.",
    )
    default: Literal["P1", "P2", "P3", "P4"] = Field(default="P3", description="The severity of an alert whose label says nothing known.")
    group_by: Annotated[list[str], Field(min_length=1)] = Field(
        default=["alertname", "service"], description="Alerts with the same values of these labels fold into one incident."
    )
    resolve_after: Duration = Field(
        default=300.0, ge=10, description="When an alert is over whose sender names no end, and sends it no more."
    )


class InhibitTable(Table):
    source: Annotated[list[str], Field(min_length=1)] = Field(description="Matchers of the alerts that inhibit, while they fire.")
    target: Annotated[list[str], Field(min_length=1)] = Field(description="Matchers of the alerts that tell nobody meanwhile.")
    equal: list[str] = Field(default=[], description="Labels that must have the same value on both.")


class DailyTable(Table):
    at: TimeOfDay = Field(description="Time of day in the configured timezone.")
    channel: Text = Field(description="The channel that the checklist is sent to.")
