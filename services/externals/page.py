"""The pages of the fakes: one frame, refreshed in place when something new arrived.

Everything shown is escaped; the page may load and run nothing but its own few lines.
"""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def _clock_time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%H:%M:%S")


def _full_time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_PAGES.filters["clock_time"] = _clock_time
_PAGES.filters["full_time"] = _full_time


def add_filters(**filters: Callable[[str], Markup]) -> None:
    """Give the templates of a fake ways to show its own texts."""
    _PAGES.filters.update(filters)


def show(template: str, **values: object) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; form-action 'self'"
    html = _PAGES.get_template(template).render(nonce=nonce, **values)
    return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})
