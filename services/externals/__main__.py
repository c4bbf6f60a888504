"""``python -m services.externals --config FILE``: every external in one process, until SIGTERM or SIGINT.

Writes ``ready.json`` into the state directory once all of them listen; a bad configuration or a taken port is one clear line.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme
import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import ASGIApp

from services.externals import bigquery, idp, mailbox, pagerduty, sftp, slack, smtp

HOST = "127.0.0.1"
BACKLOG = 256


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Ports(_Section):
    idp: int
    bigquery: int
    smtp: int
    mailbox: int
    sftp: int
    pagerduty: int
    slack: int


class Account(_Section):
    user: str
    password: str


class IdpUser(_Section):
    username: str
    password: str
    tenants: tuple[str, ...] = ("*",)


class Config(_Section):
    """The whole configuration file, JSON. It holds passwords: keep it readable by its owner only."""

    state_dir: Path
    """Receives ``ca.pem``, ``known_hosts``, ``ready.json`` and the servers' keys."""
    ports: Ports
    users: tuple[IdpUser, ...]
    sftp: Account
    tenants: tuple[str, ...] = ()
    """Tenants that have deliveries on the SFTP server."""
    smtp: Account | None = None
    """Without it, mail is accepted without a login."""
    token_ttl_s: float = 3600


class _Server(uvicorn.Server):
    """A server that leaves signals to the process: several of them share it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(name: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as exc:
        raise SystemExit(
            f"externals: {name}: cannot listen on {HOST}:{port}: {exc.strerror}. Choose another port, or end its user."
        ) from exc
    listener.listen(BACKLOG)
    return listener


def _certificate(state_dir: Path) -> tuple[Path, Path]:
    """A fresh authority, written to ``ca.pem``, and a certificate of it for this machine: (chain, key) files."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    chain, key = state_dir / "server.pem", state_dir / "server.key"
    key.touch(mode=0o600)
    issued.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(str(state_dir / "ca.pem"))
    return chain, key


def _web_servers(config: Config, mail: smtp.MailServer) -> list[tuple[_Server, socket.socket]]:
    users = [idp.User(user.username, user.password, user.tenants) for user in config.users]
    chain, key = _certificate(config.state_dir)
    apps: list[tuple[str, int, ASGIApp, bool]] = [
        ("idp", config.ports.idp, idp.create_app(users, token_ttl_s=config.token_ttl_s), False),
        ("bigquery", config.ports.bigquery, bigquery.create_app(), False),
        ("mailbox", config.ports.mailbox, mailbox.create_app(mail.mailbox, mail.switch), False),
        ("pagerduty", config.ports.pagerduty, pagerduty.create_app(), True),
        ("slack", config.ports.slack, slack.create_app(), True),
    ]
    servers = []
    for name, port, app, tls in apps:
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=chain if tls else None,
            ssl_keyfile=key if tls else None,
        )
        servers.append((_Server(settings), _listen(name, port)))
    return servers


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    account = config.smtp or Account(user="", password="")
    mail = smtp.MailServer(HOST, config.ports.smtp, smtp.Mailbox(), user=account.user, password=account.password)
    servers = _web_servers(config, mail)
    try:
        await mail.switch("ok")
        files = await sftp.serve(
            HOST,
            config.ports.sftp,
            user=config.sftp.user,
            password=config.sftp.password,
            state_dir=config.state_dir,
            tenants=config.tenants,
        )
    except OSError as exc:
        raise SystemExit(f"externals: smtp or sftp cannot listen: {exc}") from exc
    async with asyncio.TaskGroup() as group:
        for server, listener in servers:
            group.create_task(server.serve(sockets=[listener]))
        # The listeners queue connections already, so clients may come now.
        (config.state_dir / "ready.json").write_text(json.dumps(config.ports.model_dump()))
        await stopping.wait()
        mail.close()
        files.close()
        for server, _ in servers:
            server.should_exit = True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.externals", description="The externals of the platform, in one process.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file: state_dir, ports, users, sftp, tenants, smtp, token_ttl_s")
    path: Path = parser.parse_args().config
    try:
        config = Config.model_validate_json(path.read_bytes())
        config.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        sys.exit(f"externals: {path}: {exc.strerror}")
    except ValidationError as exc:
        lines = [f"externals: {path}: {'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in exc.errors()]
        sys.exit("\n".join(lines))
    asyncio.run(_serve(config))


if __name__ == "__main__":
    main()
