"""Can a partner's SFTP server be entered, is it still the same one, and does it have the files that are expected?"""

import asyncio
from typing import TYPE_CHECKING, Self

from pydantic import Field, field_validator, model_validator

from checks.addresses import Address
from checks.connecting import reason_of
from checks.words import lasted, many
from monitor.domain import FindingKind, Metric, Observed, Sample, Severity
from monitor.plugins import CheckContext, Duration, LocalPath, PluginConfig, Secret, check, one_line

if TYPE_CHECKING:
    from checks.sftp_session import Listing, TurnedAwayError

UP = Metric("monitor_sftp_up", "1 when the login and the listing succeeded, 0 when not.")
DURATION = Metric("monitor_sftp_duration_seconds", "Time for login and listing.")
FILES = Metric("monitor_sftp_files", "Files of the folder that match the pattern, up to max_files.")
NEWEST = Metric("monitor_sftp_newest_seconds", "Age of the newest of these files; absent when there is none.")

DOWN = FindingKind("SftpDown", Severity.P2, "INC-003", "The SFTP server cannot be reached, or speaks no SSH.")
HOST_KEY = FindingKind(
    "SftpHostKeyChanged", Severity.P2, None, "The server shows another host key: it was replaced, or somebody is in between."
)
LOGIN = FindingKind("SftpLoginRefused", Severity.P2, "INC-003", "The server refuses the login.")
LISTING = FindingKind("SftpListingRefused", Severity.P3, "INC-003", "The folder cannot be listed.")
STALE = FindingKind("SftpFilesStale", Severity.P3, "INC-003", "The newest file is older than max_age, or there is none.")


class Config(PluginConfig):
    """Keys of an ``sftp`` check."""

    address: Address = Field(description='Where: "sftp.example.com:22".')
    username: str = Field(min_length=1, max_length=200, description="Who logs in.")
    password: Secret | None = Field(None, description="The password, or …")
    private_key: LocalPath | None = Field(None, description="… the file of a private key.")
    host_key: str = Field(description='The server\'s own key: "SHA256:…" as ssh-keygen -l shows it, or its line "ssh-ed25519 AAAA…".')
    folder: str = Field(".", min_length=1, max_length=1000, description="The folder that is listed.")
    pattern: str = Field("*", min_length=1, max_length=200, description='Files that count: "orders-*.csv".')
    max_age: Duration | None = Field(None, gt=0, description="SftpFilesStale when the newest of them is older.")
    max_files: int = Field(10_000, ge=1, le=100_000, description="So many entries of the folder are looked at.")
    deadline: Duration = Field(8.0, gt=0, le=60, description="For everything together.")

    @field_validator("host_key")
    @classmethod
    def _is_a_key(cls, host_key: str) -> str:
        if not host_key.startswith("SHA256:"):
            from checks.sftp_session import fingerprint_of  # noqa: PLC0415 - large, and not needed everywhere

            try:
                fingerprint_of(host_key)
            except ValueError:
                raise ValueError(
                    'expected "SHA256:…" or a line such as "ssh-ed25519 AAAA…": ssh-keyscan HOST | ssh-keygen -lf - shows it'
                ) from None
        return host_key

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.password is None) == (self.private_key is None):
            raise ValueError("write either password or private_key")
        return self

    @property
    def fingerprint(self) -> str:
        """The host key's, by SHA-256."""
        if self.host_key.startswith("SHA256:"):
            return self.host_key.rstrip("=")
        from checks.sftp_session import fingerprint_of  # noqa: PLC0415 - large, and not needed everywhere

        return fingerprint_of(self.host_key)


@check(
    "sftp",
    config=Config,
    metrics=(UP, DURATION, FILES, NEWEST),
    finds=(DOWN, HOST_KEY, LOGIN, LISTING, STALE),
    blind="The private key cannot be read, or the monitor's machine has no socket left.",
    why="Data that comes by SFTP stops coming without any error of ours (INC-003): a password expired, a key changed, a partner forgot.",
    privileges="A login that may list the folder, and no more.",
)
async def sftp(ctx: CheckContext, cfg: Config) -> Observed:
    """Logs in at an SFTP server whose host key is known, and lists a folder."""
    from checks import sftp_session  # noqa: PLC0415 - large, and not needed everywhere

    door = sftp_session.Door(cfg.address, cfg.username, cfg.password, cfg.private_key, cfg.fingerprint, cfg.deadline)
    began = ctx.clock.monotonic()
    try:
        async with asyncio.timeout(cfg.deadline):
            listing = await sftp_session.list_folder(door, cfg.folder, pattern=cfg.pattern, most=cfg.max_files)
    except sftp_session.TurnedAwayError as exc:
        return _found(*_turned_away(exc, cfg, ctx.service.name), began, ctx)
    except (OSError, TimeoutError) as exc:
        return _found(*_unreachable(*reason_of(exc, deadline_s=cfg.deadline), cfg, ctx.service.name), began, ctx)
    return judge(listing, cfg, took_s=ctx.clock.monotonic() - began, now_s=ctx.clock.now().timestamp(), service=ctx.service.name)


def _turned_away(exc: "TurnedAwayError", cfg: Config, service: str) -> tuple[FindingKind, str, dict[str, str]]:
    place, user, said = one_line(cfg.address, limit=100), one_line(cfg.username, limit=80), one_line(exc.said, limit=200)
    match exc.why:
        case "host_key":
            facts = {
                "shown": said or "another kind of key",
                "expected": cfg.fingerprint,
                "first": "ask the server's owner before anything is trusted",
            }
            return HOST_KEY, f"{place} shows another host key than it should ({service})", facts
        case "login":
            facts = {"user": user, "said": said, "first": "has the password expired, or the key been removed?"}
            return LOGIN, f"{place} refuses the login of {user} ({service})", facts
        case "listing":
            facts = {"folder": one_line(cfg.folder, limit=200), "said": said}
            return LISTING, f"the folder {one_line(cfg.folder, limit=100)} of {place} cannot be listed ({service})", facts
    return _unreachable("no_ssh", f"it speaks no SSH, or ended it: {one_line(exc.said, limit=120)}", cfg, service)


def _unreachable(reason: str, words: str, cfg: Config, service: str) -> tuple[FindingKind, str, dict[str, str]]:
    place = one_line(cfg.address, limit=100)
    return DOWN, f"no SFTP at {place}: {words} ({service})", {"reason": reason, "address": place}


def _found(kind: FindingKind, summary: str, facts: dict[str, str], began: float, ctx: CheckContext) -> Observed:
    return Observed((UP(0), DURATION(ctx.clock.monotonic() - began)), (kind(summary, facts=facts),))


def judge(listing: "Listing", cfg: Config, *, took_s: float, now_s: float, service: str) -> Observed:
    """What the listing means. Pure."""
    samples: list[Sample] = [UP(1), DURATION(took_s), FILES(listing.files)]
    age_s = max(0.0, now_s - listing.newest_s) if listing.newest_s is not None else None
    if age_s is not None:
        samples.append(NEWEST(age_s))
    if cfg.max_age is None or (age_s is not None and age_s <= cfg.max_age):
        return Observed(tuple(samples))
    pattern = one_line(cfg.pattern, limit=80)
    told = f"the newest {pattern} is {lasted(age_s)} old" if age_s is not None else f"there is no {pattern}"
    facts = {"files": many(listing.files, "file"), "folder": one_line(cfg.folder, limit=200), "allowed": lasted(cfg.max_age)}
    return Observed(tuple(samples), (STALE(f"{told} at {one_line(cfg.address, limit=100)} ({service})", facts=facts, value=age_s),))
