"""Where the platform listens, always on 127.0.0.1. The defaults are the runbook's, where it names one."""

import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """One TCP port per listener. PostgreSQL's 5432 and nginx's 80 are often taken or privileged, so the demo moves them."""

    auth: int = 8003
    data: int = 8002
    analytics: int = 8001
    nginx: int = 8080
    postgres: int = 15432
    idp: int = 8201
    bigquery: int = 8202
    mailbox: int = 8203
    pagerduty: int = 8204
    slack: int = 8205
    smtp: int = 1025
    sftp: int = 2022

    @classmethod
    def free(cls) -> "Ports":
        """Ports that nobody uses now, for tests that run side by side."""
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in fields(cls)]
            for listener in sockets:
                listener.bind((HOST, 0))
            return cls(*(listener.getsockname()[1] for listener in sockets))

    def by_name(self) -> dict[str, int]:
        return asdict(self)

    def taken(self) -> list[tuple[str, int]]:
        """The listeners whose port somebody else uses now."""
        return [(name, port) for name, port in self.by_name().items() if not _is_free(port)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
