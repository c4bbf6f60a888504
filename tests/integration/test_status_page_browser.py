"""The status page in a real browser, under its own policy: it keeps itself fresh, and says so when it cannot."""

import re
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dashboards.status_page import CONTENT_SECURITY_POLICY, STATIC, CheckView, PageInput, ServiceView, render_fragment, render_page
from monitor.domain import Outcome
from tests.conftest import tool

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

Answer = tuple[int, str]


def page(headline: str, outcome: Outcome) -> PageInput:
    check = CheckView("health", 15, outcome, NOW - timedelta(seconds=7), 0.01, headline)
    return PageInput(NOW, "0.1.0", (ServiceView("auth", (check,)),))


def shown(tmp_path: Path, fragment: Callable[[], Answer], *, for_s: float) -> str:
    """The page's final DOM after ``for_s`` seconds of the browser's own, virtual time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/":
                status, body, kind = 200, render_page(page("at first", Outcome.OK)), "text/html"
            elif path == "/fragment":
                (status, body), kind = fragment(), "text/html"
            else:
                status, body, kind = 200, (STATIC / Path(path).name).read_text(), KINDS[Path(path).suffix]
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-background-networking", "enable-logging=stderr", "dump-dom"]
        options = [f"--{flag}" for flag in flags] + [f"--user-data-dir={tmp_path}", f"--virtual-time-budget={for_s * 1000:.0f}"]
        command = [tool("chromium"), *options, f"http://127.0.0.1:{server.server_port}/"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not re.findall(r"CONSOLE.*(?:Content Security|Uncaught|Refused)", told.stderr)
    return told.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shown(tmp_path_factory.mktemp("browser"), lambda: (200, render_fragment(page("connection refused", Outcome.FOUND))), for_s=20)


def test_the_page_follows_what_the_server_says(fresh: str) -> None:
    assert "connection refused" in fresh
    assert "at first" not in fresh
    assert "<title>Failing: auth · monitor</title>" in fresh


def test_a_page_that_is_answered_is_not_marked_stale(fresh: str) -> None:
    assert re.search(r'id="stale"[^>]*hidden', fresh)
    assert not re.search(r'<body[^>]*class="[^"]*stale', fresh)


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_makes_the_page_say_that_it_is_old(tmp_path: Path, status: int) -> None:
    html = shown(tmp_path, lambda: (status, "no"), for_s=20)
    assert "at first" in html
    assert re.search(r'<body[^>]*class="[^"]*stale', html)
    assert not re.search(r'id="stale"[^>]*hidden', html)
    assert re.search(r"\d+ s old", html)
