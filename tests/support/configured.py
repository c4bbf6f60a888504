"""Small configurations, loaded as the program loads them."""

from collections.abc import Mapping
from pathlib import Path

import alerts
import checks
from monitor import config
from monitor.config.settings import Settings

AUTH = """\
[services.auth]
url = "http://127.0.0.1:8003/"
[checks.http_health]
services = ["auth"]
"""
MAIL = """\
[channels.mail]
notifier = "email"
host = "mail.example.com"
sender = "monitor@example.com"
to = ["ops@example.com"]
"""


def load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    """What ``text`` means, with the built-in checks and notifiers. Raises ``ConfigError``."""
    path = folder / "config.toml"
    path.write_text(text)
    return config.load(
        path,
        checks={plugin.name: plugin for plugin in checks.BUILTINS},
        notifiers={plugin.name: plugin for plugin in alerts.BUILTINS},
        environ={} if environ is None else environ,
    )
