"""A real Prometheus, and a real server for it to scrape."""

import socket
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from urllib.request import urlopen

from monitor.metrics import CONTENT_TYPE, Exposition
from tests.conftest import tool


class Serving:
    """Serves the exposition over HTTP; the value is ``host:port``."""

    def __init__(self, exposition: Exposition) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exposition.render()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> str:
        self._thread.start()
        return f"127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Prometheus:
    """A real Prometheus that scrapes one target twice a second; the value is its address."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms}\n"
            f"scrape_configs: [{{job_name: platform-monitor, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )

    def __enter__(self) -> str:
        arguments = {
            "config.file": self._folder / "prometheus.yml",
            "storage.tsdb.path": self._folder / "data",
            "web.listen-address": self._address,
            "log.level": "warn",
        }
        self._log = (self._folder / "log").open("wb")
        command = [tool("prometheus"), *(f"--{name}={value}" for name, value in arguments.items())]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        try:
            wait_until(self._ready)
        except BaseException:
            self.__exit__()
            raise
        return f"http://{self._address}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline, pause = monotonic() + within_s, threading.Event()
    while not condition():
        assert monotonic() < deadline, "not within the deadline"
        pause.wait(0.05)
