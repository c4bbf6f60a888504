"""The demo's configuration: the shipped ``config.toml``, pointed at the demo's own addresses and secrets."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from monitor.errors import UsageError
from services.platform import Platform

SHIPPED = Path(__file__).resolve().parents[2] / "config.toml"
STUCK_AFTER = "20s"
"""The demo's limit for a job without progress: nobody watches a demo for the runbook's 30 minutes."""
STUCK_EVERY = "5s"


def write_configuration(platform: Platform, folder: Path, port: int) -> Path:
    """Write ``config.toml`` and its secrets below ``folder``, with an empty state; returns the file. Raises ``UsageError``."""
    if not SHIPPED.exists():
        raise UsageError(f"{SHIPPED} is missing: the demo runs from a checkout of the project, with its config.toml")
    config = tomllib.loads(SHIPPED.read_text())
    shutil.rmtree(folder / "state", ignore_errors=True)
    for private in (folder / "secrets", folder / "state"):
        private.mkdir(parents=True, exist_ok=True)
        private.chmod(0o700)
    config["monitor"] |= {
        "listen": f"127.0.0.1:{port}",
        "external_url": f"http://127.0.0.1:{port}",
        "state": str((folder / "state" / "monitor.db").resolve()),
    }
    config["checks"] = _moved(config["checks"], _point_services(config, platform))
    _point_channels(config, platform)
    _keep_secrets_in_files(config, platform.environment, folder / "secrets")
    del config["checks"]["pg_settings"]  # the demo's server is made to be thrown away: most of the advice would be about that
    config["checks"]["stuck_jobs"] |= {"older_than": STUCK_AFTER, "every": STUCK_EVERY, "timeout": "4s"}
    path = folder / "config.toml"
    path.write_text("# Written by `monitor demo` from the shipped config.toml.\n" + tomli_w.dumps(config))
    return path


def _point_services(config: dict[str, Any], platform: Platform) -> dict[str, str]:
    """Returns the new address of each shipped one."""
    addresses = {}
    if not platform.has_nginx:
        _leave_out(config, "nginx")
    for name, service in config["services"].items():
        if "url" in service:
            addresses[service["url"]] = platform.urls[name]
            service["url"] = platform.urls[name]
        if "instances" in service:
            service["instances"] = [platform.urls[name]]
        for kind in ("log", "error_log", "access_log"):
            if kind in service:
                service[kind] = str(platform.log_dir / Path(service[kind]).name)
    return addresses


def _moved(value: Any, addresses: dict[str, str]) -> Any:
    """The value with the shipped addresses of services replaced, wherever a text begins with one."""
    match value:
        case str():
            old = next((old for old in addresses if value.startswith(old)), None)
            return addresses[old] + value.removeprefix(old) if old is not None else value
        case list():
            return [_moved(one, addresses) for one in value]
        case dict():
            return {key: _moved(one, addresses) for key, one in value.items()}
        case _:
            return value


def _leave_out(config: dict[str, Any], service: str) -> None:
    """A platform without this service: no check looks at it, and a check of nothing else is left out."""
    del config["services"][service]
    for name, check in list(config["checks"].items()):
        check["services"] = [other for other in check["services"] if other != service]
        if not check["services"]:
            del config["checks"][name]


def _point_channels(config: dict[str, Any], platform: Platform) -> None:
    for channel in config["channels"].values():
        if channel["notifier"] == "pagerduty":
            channel |= {"base_url": platform.pagerduty_url, "ca_file": str(platform.ca_file)}
        elif channel["notifier"] == "slack":
            channel |= {"base_url": f"{platform.slack_url}/api/", "ca_file": str(platform.ca_file)}
        else:
            for login in ("username", "password"):
                channel.pop(login, None)
            channel |= {"host": "127.0.0.1", "port": platform.smtp_port, "security": "none"}


def _keep_secrets_in_files(table: dict[str, Any], secrets: dict[str, str], folder: Path) -> None:
    """Every ``{env = …}`` becomes a private file, so that commands in another terminal need no variables."""
    for key, value in table.items():
        if isinstance(value, dict) and set(value) == {"env"}:
            path = folder / value["env"]
            path.touch(mode=0o600)
            path.chmod(0o600)  # also when it was there before
            path.write_text(secrets[value["env"]])
            table[key] = {"file": str(path.resolve())}
        elif isinstance(value, dict):
            _keep_secrets_in_files(value, secrets, folder)
