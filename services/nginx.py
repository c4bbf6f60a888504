"""nginx in front of the three services, where the machine has it: ``/auth/``, ``/data/`` and ``/analytics/``.

Owns its configuration file, which nginx itself checks before it is started.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, StrictUndefined

CHECK_WITHIN_S = 10
_TEMPLATE = Path(__file__).with_name("nginx.conf.j2")


class NginxError(Exception):
    """nginx refuses the configuration; the message is nginx's."""


def find_nginx() -> str | None:
    """The program, also where Debian hides it from ordinary users."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def configure(folder: Path, log_dir: Path, *, port: int, upstreams: Mapping[str, int]) -> Path:
    """Write the configuration: ``upstreams`` maps the first part of the path to a local port. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(  # noqa: S701 - not a page
        _TEMPLATE.read_text()
    )
    # As root, nginx would give its workers to an account that cannot enter our folders.
    user = "root root" if os.geteuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(template.render(folder=folder, log_dir=log_dir, port=port, upstreams=upstreams, user=user))
    return path


def command(program: str, config: Path) -> tuple[str, ...]:
    """How to start it in the foreground, after ``nginx -t`` accepted the configuration. Raises ``NginxError``."""
    base = (program, "-p", str(config.parent), "-e", "stderr", "-c", str(config))
    done = subprocess.run([*base, "-t"], capture_output=True, text=True, timeout=CHECK_WITHIN_S, check=False)
    if done.returncode != 0:
        raise NginxError(f"nginx does not accept {config}:\n{done.stderr.strip()}")
    return base
