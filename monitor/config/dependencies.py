"""What depends on what: services on services, check instances on check instances. References are resolved, cycles refused."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from monitor.config.document import Document, names_in, nearest, no_such
from monitor.config.settings import CheckInstance
from monitor.plugins import Service


def upstream_of(document: Document, services: Mapping[str, Service]) -> dict[str, frozenset[str]]:
    """Each service with all it depends on, near and far, itself included. Notes unknown names and cycles."""
    written = names_in(document.data.get("services"))
    for name, service in services.items():
        for index, other in enumerate(service.depends_on):
            at = ("services", name, "depends_on", index)
            if other == name:
                document.add(at, "a service cannot depend on itself")
            elif other not in written:
                document.add(at, no_such("service", other), nearest(other, written))
    direct = {name: service.depends_on for name, service in services.items()}
    found = {name: frozenset(_reach(name, direct)) for name in services}
    for name, service in services.items():
        for index, other in enumerate(service.depends_on):
            if other != name and name in found.get(other, ()):
                document.add(("services", name, "depends_on", index), f'"{other}" depends on "{name}" in turn: remove one of the two')
    return found


def resolve_checks(document: Document, instances: tuple[CheckInstance, ...]) -> tuple[CheckInstance, ...]:
    """The instances with the ``depends_on`` of their tables. Notes unknown names and cycles."""
    keys = {instance.key: instance for instance in instances}
    names = {instance.name for instance in instances} | set(names_in(document.data.get("checks")))
    direct: dict[str, tuple[str, ...]] = {}
    for instance in instances:
        wanted = document.data["checks"][instance.name].get("depends_on", [])
        for index, other in enumerate(wanted if isinstance(wanted, list) else ()):
            at = ("checks", instance.name, "depends_on", index)
            if other in {instance.name, instance.key}:
                document.add(at, "a check cannot depend on itself")
            elif other in names or other in keys:
                direct[instance.key] = direct.get(instance.key, ()) + tuple(_meant(other, instance, keys))
            else:
                document.add(at, no_such("check", str(other)), nearest(str(other), names | keys.keys()))
    for key, others in direct.items():
        if any(key in _reach(other, direct) for other in others):
            document.add(("checks", keys[key].name, "depends_on"), "these checks depend on each other in a circle")
    return tuple(
        replace(instance, depends_on=frozenset(direct[instance.key])) if instance.key in direct else instance for instance in instances
    )


def _meant(name: str, instance: CheckInstance, keys: Mapping[str, CheckInstance]) -> Iterator[str]:
    """One instance by its key; by a check's name the one on the same service, or else all of them."""
    here = f"{name}/{instance.service.name}"
    if name in keys:
        yield name
    elif here in keys:
        yield here
    else:
        yield from (key for key, other in keys.items() if other.name == name)


def _reach(start: str, direct: Mapping[str, tuple[str, ...]]) -> set[str]:
    reached, waiting = {start}, [start]
    while waiting:
        for other in direct.get(waiting.pop(), ()):
            if other not in reached:
                reached.add(other)
                waiting.append(other)
    return reached
