"""Check instances: every ``[checks.NAME]`` times every service it names, with what each needs and how often it looks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from alerts.severity import BusinessHours, SeverityRule
from monitor.config.dependencies import resolve_checks, upstream_of
from monitor.config.document import Document, names_in, nearest, no_such
from monitor.config.lines import KeyPath
from monitor.config.model import CheckTable
from monitor.config.settings import CheckInstance
from monitor.config.validate import names_of, validate
from monitor.domain import AlertPolicy, Severity
from monitor.plugins import AnyCheck, PluginConfig, Service

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_RECHECK_S = 2.0


def build_instances(
    document: Document, services: Mapping[str, Service], checks: Mapping[str, AnyCheck], hours: BusinessHours
) -> tuple[CheckInstance, ...]:
    """All instances of the file in its order; what is wrong is noted in ``document``."""
    instances: list[CheckInstance] = []
    upstream = upstream_of(document, services)
    for name, at, raw in document.named_tables(("checks",), required=True):
        common = names_of(CheckTable)
        table = validate(document, CheckTable, {key: raw[key] for key in common if key in raw}, at)
        check = _find_check(document, at, name, raw, checks)
        own = {key: value for key, value in raw.items() if key not in common}
        config = validate(document, check.config, own, at, also=common) if check else None
        if table:
            _check_times(document, at, table)
        if table and check:
            watched = [services[name] for name in _watched(document, at, table, check) if name in services]
            rules = tuple(_severity_rules(document, at, table, check, hours))
            if config:
                made = (_instance(name, check, config, table, service) for service in watched)
                instances += [replace(one, severities=rules, upstream=upstream[one.service.name]) for one in made]
    return resolve_checks(document, tuple(instances))


def _severity_rules(document: Document, at: KeyPath, table: CheckTable, check: AnyCheck, hours: BusinessHours) -> Iterator[SeverityRule]:
    kinds = {kind.name for kind in check.finds}
    for index, rule in enumerate(table.severity):
        if rule.finding is not None and rule.finding not in kinds:
            hint = nearest(rule.finding, kinds, noun=f"{check.name} finds")
            document.add((*at, "severity", index, "finding"), no_such("finding", rule.finding), hint)
        yield SeverityRule(
            severity=Severity[rule.severity],
            finding=rule.finding,
            at_least=rule.at_least,
            below=rule.below,
            hours=hours if rule.hours else None,
            outside=rule.hours == "off",
        )


def _find_check(document: Document, at: KeyPath, name: str, raw: Mapping[str, Any], checks: Mapping[str, AnyCheck]) -> AnyCheck | None:
    wanted = raw.get("check", name)
    if not isinstance(wanted, str):
        return None
    check = checks.get(wanted)
    if not check:
        hint = nearest(wanted, checks)
        if "check" in raw:
            document.add((*at, "check"), no_such("check", wanted), hint)
        else:
            document.add(at, no_such("check", wanted), f'{hint}; or say which one it is: check = "NAME"')
    return check


def _watched(document: Document, at: KeyPath, table: CheckTable, check: AnyCheck) -> Iterator[str]:
    """The services that the check can look at."""
    written = names_in(document.data.get("services"))
    if not table.services:
        document.add((*at, "services"), "a check needs at least one service", nearest("", written, noun="known services"))
    seen: set[str] = set()
    for index, name in enumerate(table.services):
        place = (*at, "services", index)
        if name not in written:
            document.add(place, no_such("service", name), nearest(name, written))
        elif name in seen:
            document.add(place, f'the service "{name}" is named twice')
        elif lacking := _lacking(check, document.data["services"][name]):
            lacks = " and ".join(lacking)
            document.add(place, f'the service "{name}" has no {lacks}, which {check.name} needs', f"add {lacks} to [services.{name}]")
        else:
            yield name
        seen.add(name)


def _lacking(check: AnyCheck, service: object) -> list[str]:
    """What the check needs and the service does not say; of a broken service nothing is known."""
    return [field for field in check.needs if field not in service] if isinstance(service, dict) else []


def _check_times(document: Document, at: KeyPath, table: CheckTable) -> None:
    if table.timeout is not None and table.timeout >= table.every:
        document.add((*at, "timeout"), f"must be shorter than every, which is {table.every:g}s", "a run must end before the next begins")
    if table.recheck is not None and table.recheck > table.every:
        document.add((*at, "recheck"), f"must not be longer than every, which is {table.every:g}s")


def _instance(name: str, check: AnyCheck, config: PluginConfig, table: CheckTable, service: Service) -> CheckInstance:
    return CheckInstance(
        key=f"{name}/{service.name}",
        name=name,
        check=check,
        service=service,
        config=config,
        every_s=table.every,
        timeout_s=min(DEFAULT_TIMEOUT_S, 0.8 * table.every) if table.timeout is None else table.timeout,
        recheck_s=min(DEFAULT_RECHECK_S, table.every) if table.recheck is None else table.recheck,
        policy=AlertPolicy(
            fail_after=table.fail_after,
            recover_after=table.recover_after,
            fail_for_s=table.fail_for,
            recover_for_s=table.recover_for,
            blind_after=table.blind_after,
            blind_severity=Severity[table.blind_severity],
        ),
        linger_s=table.linger,
    )
