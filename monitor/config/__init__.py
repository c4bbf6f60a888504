"""The configuration: from ``config.toml`` to typed settings, or to all of its problems at once."""

import os
from collections.abc import Mapping
from pathlib import Path

from monitor.config.build import build_settings, build_state_url
from monitor.config.document import read_document
from monitor.config.settings import Channel, CheckInstance, DailyReport, Settings
from monitor.plugins import AnyCheck, AnyNotifier


def load(
    path: Path,
    *,
    checks: Mapping[str, AnyCheck],
    notifiers: Mapping[str, AnyNotifier],
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Read the settings from ``path``, with these plugins by name. Raises ``ConfigError`` with every problem of the file.

    ``{env = …}`` is looked up in ``environ``; ``{file = …}`` and all other paths start at the file's folder.
    """
    return build_settings(read_document(path, environ), checks, notifiers)


def load_state_url(path: Path, *, environ: Mapping[str, str] = os.environ) -> str:
    """Where the state of the monitor with this configuration lives (SQLAlchemy URL); no other secret is needed. Raises ``ConfigError``."""
    return build_state_url(read_document(path, environ))


__all__ = ["Channel", "CheckInstance", "DailyReport", "Settings", "load", "load_state_url"]
