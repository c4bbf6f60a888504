"""From a document to settings: every table validated, every reference between tables resolved.

A broken part is noted and left out, and the rest is still looked at, so that one run shows all problems.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from psycopg.conninfo import conninfo_to_dict

from alerts.email import EmailConfig
from alerts.severity import BusinessHours
from monitor.config.document import Document, names_in, nearest, no_such
from monitor.config.instances import build_instances
from monitor.config.lines import KeyPath
from monitor.config.model import BusinessHoursTable, ChannelTable, DailyTable, DeadmanTable, MonitorTable, ServiceTable
from monitor.config.people import build_escalation, build_people, build_responses, check_channel
from monitor.config.planned import build_inhibitions, build_posted, build_windows
from monitor.config.settings import Channel, DailyReport, Settings
from monitor.config.validate import names_of, validate
from monitor.config.values import Address
from monitor.plugins import AnyCheck, AnyNotifier, Service

TABLES = (
    "monitor",
    "services",
    "business_hours",
    "checks",
    "channels",
    "contacts",
    "rotations",
    "escalation",
    "response",
    "maintenance",
    "inhibit",
    "alertmanager",
    "deadman",
    "reports",
)
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}  # noqa: S104 - compared with, not bound to


def build_settings(document: Document, checks: Mapping[str, AnyCheck], notifiers: Mapping[str, AnyNotifier]) -> Settings:
    """Make settings of the whole file. Raises ``ConfigError`` with all problems."""
    document.check_keys((), TABLES)
    monitor = validate(document, MonitorTable, document.table(("monitor",)), ("monitor",))
    services = _services(document)
    channels = _channels(document, notifiers)
    timezone = monitor.timezone if monitor else ZoneInfo("UTC")
    hours = _business_hours(document, timezone)
    if monitor and monitor.network is not None:
        services = _behind(document, monitor.network, services)
    instances = build_instances(document, services, checks, hours)
    escalation, responses = build_escalation(document), build_responses(document)
    people = build_people(document, timezone, hours)
    windows, inhibitions = build_windows(document, timezone), build_inhibitions(document)
    posted = build_posted(document)
    deadman = validate(document, DeadmanTable, document.table(("deadman",)), ("deadman",)) if "deadman" in document.data else None
    daily = _daily_report(document, channels)
    if monitor:
        _refuse_own_address(document, monitor.listen, services)
    document.raise_problems()
    assert monitor
    return Settings(
        source=document.sources.folder / document.path.name,
        listen_host=monitor.listen.host,
        listen_port=monitor.listen.port,
        external_url=monitor.external_url or f"http://{_reachable(monitor.listen)}",
        state_url=monitor.state.get_secret_value(),
        timezone=monitor.timezone,
        token=monitor.token,
        services=MappingProxyType(services),
        instances=instances,
        channels=MappingProxyType(channels),
        escalation=MappingProxyType(escalation),
        responses=MappingProxyType(responses),
        people=people,
        windows=windows,
        inhibitions=inhibitions,
        posted=posted,
        deadman_url=deadman.url if deadman else None,
        deadman_every_s=deadman.every if deadman else 60.0,
        daily_report=daily,
        history_days=monitor.history,
    )


def build_state_url(document: Document) -> str:
    """Only where the state lives, whatever else the file says. Raises ``ConfigError``."""
    raw = document.table(("monitor",))
    monitor = validate(document, MonitorTable, {"state": raw["state"]} if "state" in raw else {}, ("monitor",))
    document.raise_problems()
    assert monitor
    return monitor.state.get_secret_value()


def _services(document: Document) -> dict[str, Service]:
    services: dict[str, Service] = {}
    for name, at, raw in document.named_tables(("services",), required=True):
        table = validate(document, ServiceTable, raw, at)
        if table:
            services[name] = Service(name=name, **dict(table))
    return services


def _business_hours(document: Document, default: ZoneInfo) -> BusinessHours:
    """The table, or its defaults when it is missing or broken."""
    at: KeyPath = ("business_hours",)
    table = validate(document, BusinessHoursTable, document.table(at), at) or BusinessHoursTable()
    if table.start >= table.end:
        document.add((*at, "end"), "must be later than start", "a day ends before midnight")
    weekdays = frozenset(_WEEKDAYS.index(day) for day in table.days)
    return BusinessHours(table.timezone or default, weekdays, table.start, table.end)


def _behind(document: Document, network: str, services: dict[str, Service]) -> dict[str, Service]:
    """The services, those with an address beyond this machine depending on the monitor's own network."""
    written = names_in(document.data.get("services"))
    if network not in written:
        document.add(("monitor", "network"), no_such("service", network), nearest(network, written))
        return services
    own = {network, *(services[network].depends_on if network in services else ())}
    return {
        name: replace(service, depends_on=tuple(dict.fromkeys((*service.depends_on, network))))
        if name not in own and any(map(_is_remote, _hosts(service)))
        else service
        for name, service in services.items()
    }


def _hosts(service: Service) -> Iterator[str]:
    """Every host that a service's addresses name; "" is this machine."""
    for url in (service.url, *service.instances):
        yield urlsplit(url or "").hostname or ""
    for dsn in (service.dsn, service.canary_dsn):
        yield from str(conninfo_to_dict(dsn.get_secret_value()).get("host") or "").split(",") if dsn else ()


def _is_remote(host: str) -> bool:
    """A path is a socket on this machine."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host not in {"", "localhost"} and not host.startswith("/")


def _channels(document: Document, notifiers: Mapping[str, AnyNotifier]) -> dict[str, Channel]:
    channels: dict[str, Channel] = {}
    for name, at, raw in document.named_tables(("channels",), required=True):
        common = names_of(ChannelTable)
        table = validate(document, ChannelTable, {key: raw[key] for key in common if key in raw}, at)
        if not table:
            continue
        notifier = notifiers.get(table.notifier)
        if not notifier:
            document.add((*at, "notifier"), no_such("notifier", table.notifier), nearest(table.notifier, notifiers))
            continue
        if notifier.digest is None and "digest_from" in raw and table.digest_from:
            document.add((*at, "digest_from"), f"the notifier {notifier.name} tells every incident alone", "leave it out")
        own = {key: value for key, value in raw.items() if key not in common}
        config = validate(document, notifier.config, own, at, also=common)
        if config:
            channels[name] = Channel(name, notifier, config, table.fallback, table.fallback_after, table.digest_from or None)
        if table.fallback is not None:
            check_channel(document, (*at, "fallback"), table.fallback)
    _refuse_circles(document, channels)
    return channels


def _refuse_circles(document: Document, channels: Mapping[str, Channel]) -> None:
    """Channels that stand in for each other would hand a notification round and round."""
    for name in channels:
        seen, following = {name}, channels[name].fallback
        while following is not None and following in channels and following not in seen:
            seen.add(following)
            following = channels[following].fallback
        if following == name:
            document.add(("channels", name, "fallback"), "leads back to this channel: nobody would be left to tell", "name another one")


def _daily_report(document: Document, channels: Mapping[str, Channel]) -> DailyReport | None:
    document.check_keys(("reports",), ("daily",))
    if "daily" not in document.table(("reports",)):
        return None
    at: KeyPath = ("reports", "daily")
    raw = document.table(at)
    table = validate(document, DailyTable, raw, at) if isinstance(document.table(("reports",))["daily"], dict) else None
    place = (*at, "channel")
    if not table:
        if isinstance(raw.get("channel"), str):  # said at the same time as what else is wrong with the table
            check_channel(document, place, raw["channel"])
        return None
    check_channel(document, place, table.channel)
    channel = channels.get(table.channel)
    if channel and not isinstance(channel.config, EmailConfig):
        mails = (name for name, known in channels.items() if isinstance(known.config, EmailConfig))
        document.add(place, f'the channel "{channel.name}" cannot carry a report: only e-mail can', f"e-mail channels: {', '.join(mails)}")
    return DailyReport(at=table.at, channel=table.channel)


def _refuse_own_address(document: Document, listen: Address, services: Mapping[str, Service]) -> None:
    """A service at the monitor's own address is a port written twice: one of the two could not start."""
    for name, service in services.items():
        parts = urlsplit(service.url or "")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        here = parts.hostname == listen.host or {parts.hostname, listen.host} <= _LOCAL
        if parts.hostname and port == listen.port and here:
            document.add(("services", name, "url"), f"this is the monitor's own address, {listen}", "change it, or monitor.listen")


def _reachable(listen: Address) -> Address:
    return Address("localhost", listen.port) if listen.host in {"0.0.0.0", "::"} else listen  # noqa: S104 - compared with
