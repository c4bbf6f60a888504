"""One SSH session of the ``sftp`` check: log in at a server whose key is known, and list a folder.

``checks.sftp`` imports it when it is first needed: asyncssh and its cryptography take 14 MiB that most monitors have no use for.
"""

import fnmatch
from dataclasses import dataclass
from typing import Literal

import asyncssh

from checks.addresses import parse_address
from monitor.errors import CannotLook
from monitor.plugins import Secret

Why = Literal["host_key", "login", "listing", "no_ssh"]
"""At which door a session was turned away."""


class TurnedAwayError(Exception):
    """``said`` is what the server said, or for ``host_key`` the fingerprint that it showed."""

    def __init__(self, why: Why, said: str) -> None:
        super().__init__(f"{why}: {said}")
        self.why = why
        self.said = said


@dataclass(frozen=True, slots=True)
class Door:
    """Where to go in, as whom, and past whom: ``fingerprint`` is the only host key that is accepted."""

    address: str
    username: str
    password: Secret | None
    private_key: str | None
    fingerprint: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Listing:
    files: int
    newest_s: float | None
    """Unix seconds of the newest file."""


class _Client(asyncssh.SSHClient):
    """Accepts one host key only, and remembers what was shown."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self.shown = ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key.get_fingerprint()
        return self.shown == self._fingerprint


def fingerprint_of(public_key: str) -> str:
    """The SHA-256 of a key as one line of text. Raises ``ValueError`` when it is none."""
    try:
        return asyncssh.import_public_key(public_key).get_fingerprint()
    except asyncssh.KeyImportError as exc:
        raise ValueError("no public key") from exc


async def list_folder(door: Door, folder: str, *, pattern: str, most: int) -> Listing:
    """Count the files that match. Raises ``TurnedAwayError``, ``CannotLook`` when our own key is unreadable, and ``OSError``."""
    keys, client = _keys(door.private_key), _Client(door.fingerprint)
    try:
        return await _list(door, client, keys, folder, pattern=pattern, most=most)
    except asyncssh.HostKeyNotVerifiable as exc:
        raise TurnedAwayError("host_key", client.shown) from exc
    except asyncssh.PermissionDenied as exc:
        raise TurnedAwayError("login", exc.reason) from exc
    except asyncssh.SFTPError as exc:
        raise TurnedAwayError("listing", exc.reason) from exc
    except asyncssh.Error as exc:
        raise TurnedAwayError("no_ssh", exc.reason) from exc


def _keys(private_key: str | None) -> list[asyncssh.SSHKey]:
    if private_key is None:
        return []
    try:
        return [asyncssh.read_private_key(private_key)]
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise CannotLook(f"the private key {private_key} cannot be read: {exc}") from exc


async def _list(door: Door, client: _Client, keys: list[asyncssh.SSHKey], folder: str, *, pattern: str, most: int) -> Listing:
    where = parse_address(door.address)
    async with (
        asyncssh.connect(
            where.host,
            where.port,
            client_factory=lambda: client,
            username=door.username,
            password=door.password.get_secret_value() if door.password is not None else None,
            client_keys=keys or None,
            known_hosts=((), (), ()),
            agent_path=None,
            config=None,
            connect_timeout=door.deadline_s,
            login_timeout=door.deadline_s,
        ) as connection,
        connection.start_sftp_client() as files,
    ):
        number, newest_s, seen = 0, None, 0
        async for entry in files.scandir(folder):
            seen += 1
            name = entry.filename if isinstance(entry.filename, str) else entry.filename.decode("utf-8", "replace")
            if name not in {".", ".."} and fnmatch.fnmatchcase(name, pattern) and entry.attrs.type != asyncssh.FILEXFER_TYPE_DIRECTORY:
                number += 1
                if entry.attrs.mtime is not None:
                    newest_s = max(newest_s or 0.0, float(entry.attrs.mtime))
            if seen >= most:
                break
        return Listing(number, newest_s)
