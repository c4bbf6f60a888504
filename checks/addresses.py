"""Addresses in the configuration of checks: ``host:port``, ``[::1]:port``, or the service's own url."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from monitor.errors import CannotLook
from monitor.plugins import Service

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Endpoint:
    """Raises ``ValueError`` saying what is expected."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.netloc != text or parts.username is not None or not text.isprintable() or " " in text:
        raise ValueError('expected host:port, such as "db.example.com:5432" or "[::1]:22"')
    return Endpoint(host, port)


def _checked(text: str) -> str:
    parse_address(text)
    return text


Address = Annotated[str, AfterValidator(_checked)]
"""``host:port``."""


def endpoint_of(address: str | None, service: Service) -> Endpoint:
    """The configured address, else that of the service's url. Raises ``CannotLook`` when there is neither."""
    if address is not None:
        return parse_address(address)
    url = urlsplit(service.url or "")
    port = url.port or DEFAULT_PORTS.get(url.scheme)
    if not url.hostname or port is None:
        raise CannotLook(f"nothing says where {service.name} is: set address in the check, or the service's url")
    return Endpoint(url.hostname, port)
