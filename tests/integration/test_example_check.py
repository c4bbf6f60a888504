"""The example of a third party's check: installed as a person would, found by its entry point, configured and run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "monitor-queue-depth"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed, beside the one of the tests."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(folder / "site"), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": str(folder / "site"), "COLUMNS": "200"}


def monitor(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitor", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def configure(place: Path, **keys: object) -> Path:
    chain = [{"after": "0s", "who": "on-call", "channels": ["mail"]}]
    config = {
        "monitor": {"listen": "127.0.0.1:1", "external_url": "http://127.0.0.1:1", "state": "monitor.db"},
        "services": {"imports": {}},
        "checks": {"queue_depth": {"services": ["imports"], "every": "60s", **keys}},
        "channels": {
            "mail": {"notifier": "email", "host": "127.0.0.1", "security": "none", "sender": "a@b.example", "to": ["c@d.example"]}
        },
        "escalation": {f"P{number}": chain for number in range(1, 5)},
    }
    path = place / "config.toml"
    path.write_text(tomli_w.dumps(config))
    return path


def test_it_is_found_configured_and_run(installed: dict[str, str], tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    config = configure(tmp_path, folder="inbox", wait_after="1m")
    assert monitor(installed, "config", "check", "--config", str(config)).returncode == 0
    told = monitor(installed, "check", "queue_depth", "--config", str(config), "--json")
    assert (told.returncode, json.loads(told.stdout)["status"]) == (0, "OK"), told.stderr
    message = inbox / "message"
    message.write_text("x")
    os.utime(message, (0, 0))
    told = monitor(installed, "check", "queue_depth", "--config", str(config), "--json")
    assert told.returncode == 1
    assert "QueueDeep" in told.stdout
    shutil.rmtree(inbox)
    told = monitor(installed, "check", "queue_depth", "--config", str(config))
    assert told.returncode == 3
    assert "cannot be read: No such file or directory" in told.stdout


def test_its_mistakes_are_told_like_any_others(installed: dict[str, str], tmp_path: Path) -> None:
    told = monitor(installed, "config", "check", "--config", str(configure(tmp_path, folder="inbox", wait_befor="1m")))
    assert told.returncode != 0
    assert "wait_befor" in told.stderr + told.stdout
    assert "did you mean" in told.stderr + told.stdout


def test_without_the_package_the_check_is_unknown(tmp_path: Path) -> None:
    told = monitor(dict(os.environ), "config", "check", "--config", str(configure(tmp_path, folder="inbox")))
    assert told.returncode != 0
    assert "queue_depth" in told.stderr + told.stdout
    assert "Traceback" not in told.stderr
