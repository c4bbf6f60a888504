"""The SFTP server that partners deliver files to: asyncssh with a password login, shut into one folder.

Owns the host key, which is made once and kept, and the ``known_hosts`` file that lets a client verify it.
"""

import hmac
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh

DELIVERIES_DAYS = 7


class _PasswordOnly(asyncssh.SSHServer):
    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        known = hmac.compare_digest(password.encode(), self._password.encode())
        return known and username == self._user


def host_key(path: Path) -> asyncssh.SSHKey:
    """The server's ed25519 key, made on first use and readable by its owner only."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    return asyncssh.read_private_key(path)


def write_known_hosts(path: Path, key: asyncssh.SSHKey, port: int) -> None:
    """One line per name under which a client may reach the server."""
    public = key.export_public_key().decode().strip()
    path.write_text("".join(f"[{host}]:{port} {public}\n" for host in ("127.0.0.1", "localhost")))


def write_deliveries(folder: Path, tenants: tuple[str, ...], today: datetime) -> None:
    """What the partners delivered: one users and one products file per tenant and day, where they are not there yet."""
    for tenant in tenants:
        inbox = folder / "exports" / tenant
        inbox.mkdir(parents=True, exist_ok=True)
        for age in range(DELIVERIES_DAYS):
            day = f"{today - timedelta(days=age):%Y%m%d}"
            for kind, header in (("users", "user_id,name,email"), ("products", "sku,title,price")):
                delivery = inbox / f"{kind}_{day}.csv"
                if not delivery.exists():
                    rows = (f"{kind[0]}{number},{kind} {number},{number}" for number in range(1, 11))
                    delivery.write_text("\n".join([header, *rows]) + "\n")


async def serve(host: str, port: int, *, user: str, password: str, state_dir: Path, tenants: tuple[str, ...] = ()) -> asyncssh.SSHAcceptor:
    """Listen. ``state_dir`` receives the host key, ``known_hosts`` and the served folder ``sftp/``."""
    folder = state_dir / "sftp"
    folder.mkdir(parents=True, exist_ok=True)
    write_deliveries(folder, tenants, datetime.now(UTC))
    key = host_key(state_dir / "sftp_host_key")
    acceptor = await asyncssh.listen(
        host,
        port,
        server_host_keys=[key],
        server_factory=lambda: _PasswordOnly(user, password),
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder).encode()),
        allow_scp=False,
        login_timeout=10,
    )
    write_known_hosts(state_dir / "known_hosts", key, acceptor.get_port())
    return acceptor
