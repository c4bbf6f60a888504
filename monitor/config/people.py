"""Who is told, and when: contacts, rotations, the chains of escalation and what is promised for each severity."""

from collections.abc import Collection, Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

from alerts.oncall import Override, People, Rotation
from alerts.severity import BusinessHours
from monitor.config.document import Document, names_in, nearest, no_such
from monitor.config.lines import KeyPath
from monitor.config.model import ContactTable, ResponseTable, RotationTable, StepTable
from monitor.config.validate import validate
from monitor.domain import EscalationStep, ResponsePolicy, Severity, bounded

_STEP_HINT = '{name} = [{{after = "0s", who = "on-call", channels = ["NAME"]}}]'


def build_people(document: Document, timezone: ZoneInfo, hours: BusinessHours) -> People:
    """Contacts and rotations, every name in them resolved."""
    contacts: dict[str, tuple[str, ...]] = {}
    for name, at, raw in document.named_tables(("contacts",)):
        contact = validate(document, ContactTable, raw, at)
        if contact:
            for position, channel in enumerate(contact.channels):
                check_channel(document, (*at, "channels", position), channel)
            contacts[name] = tuple(dict.fromkeys(contact.channels))
    known = names_in(document.data.get("contacts"))
    rotations = {}
    for name, at, raw in document.named_tables(("rotations",)):
        if name in known:
            document.add(at, "a contact has the same name", "a step must be able to tell them apart")
        table = validate(document, RotationTable, raw, at)
        if table:
            rotations[name] = _rotation(document, at, table, table.timezone or timezone, known)
    return People(contacts, rotations, hours)


def build_escalation(document: Document) -> dict[Severity, tuple[EscalationStep, ...]]:
    """A chain for every severity."""
    at: KeyPath = ("escalation",)
    raw = document.table(at, required=True)
    document.check_keys(at, Severity.__members__)
    chains: dict[Severity, tuple[EscalationStep, ...]] = {}
    for severity in Severity if isinstance(document.data.get("escalation"), dict) else ():
        place = (*at, severity.name)
        hint = _STEP_HINT.format(name=severity.name)
        match raw.get(severity.name):
            case None:
                document.add(place, "is required and missing: every severity must reach somebody", hint)
            case []:
                document.add(place, "must have at least one step: every severity must reach somebody", hint)
            case list() as steps:
                chains[severity] = tuple(_steps(document, place, steps))
            case _:
                document.add(place, "must be a list of steps", hint)
    return chains


def build_responses(document: Document) -> dict[Severity, ResponsePolicy]:
    """What is promised; a severity without a table promises nothing."""
    at: KeyPath = ("response",)
    raw = document.table(at)
    document.check_keys(at, Severity.__members__)
    found = {}
    for severity in Severity:
        if severity.name in raw:
            table = validate(document, ResponseTable, document.table((*at, severity.name)), (*at, severity.name))
            if table:
                found[severity] = ResponsePolicy(table.within, table.ack_expires, table.remind)
    return found


def check_channel(document: Document, at: KeyPath, name: str) -> None:
    """Note a channel that does not exist."""
    known = names_in(document.data.get("channels"))
    if name not in known:
        document.add(at, no_such("channel", name), nearest(name, known))


def local_moment(moment: datetime, timezone: ZoneInfo) -> datetime:
    """A moment as written: without an offset it is local time. One at the end of the calendar is the last that can be kept."""
    return bounded(moment if moment.tzinfo else moment.replace(tzinfo=timezone))


def _rotation(document: Document, at: KeyPath, table: RotationTable, timezone: ZoneInfo, contacts: Collection[str]) -> Rotation:
    for position, member in enumerate(table.members):
        _check_contact(document, (*at, "members", position), member, contacts)
    overrides = []
    for position, written in enumerate(table.overrides):
        place = (*at, "overrides", position)
        if written.contact is not None:
            _check_contact(document, (*place, "contact"), written.contact, contacts)
        override = Override(written.contact, local_moment(written.starts, timezone), local_moment(written.ends, timezone))
        if override.starts_at >= override.ends_at:
            document.add((*place, "ends"), "must be later than starts", "")
        overrides.append(override)
    return Rotation(tuple(table.members), table.starts, timezone, table.handover, table.days, tuple(overrides))


def _steps(document: Document, at: KeyPath, steps: list[object]) -> Iterator[EscalationStep]:
    before_s = -1.0
    people = (*names_in(document.data.get("contacts")), *names_in(document.data.get("rotations")))
    for index, raw in enumerate(steps):
        place = (*at, index)
        if not isinstance(raw, dict):
            document.add(place, "must be a step", '{after = "0s", who = "on-call", channels = ["NAME"]}')
            continue
        step = validate(document, StepTable, raw, place)
        if not step:
            continue
        for position, channel in enumerate(step.channels):
            check_channel(document, (*place, "channels", position), channel)
        for position, contact in enumerate(step.contacts):
            _check_contact(document, (*place, "contacts", position), contact, people)
        if not step.channels and not step.contacts:
            document.add((*place, "channels"), "must not be empty: the step reaches nobody", "name channels, or contacts")
        if step.after <= before_s:
            document.add((*place, "after"), "must be later than the step before", "write the steps in ascending order")
        before_s = max(before_s, step.after)
        channels, contacts = tuple(dict.fromkeys(step.channels)), tuple(dict.fromkeys(step.contacts))
        yield EscalationStep(step.after, step.who, channels, contacts, business_hours=step.hours == "business")


def _check_contact(document: Document, at: KeyPath, name: str, known: Collection[str]) -> None:
    if name not in known:
        document.add(at, no_such("contact", name), nearest(name, known))
