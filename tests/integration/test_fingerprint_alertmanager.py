"""Our identity of an alert is Alertmanager's: the real one is asked."""

import asyncio
import subprocess
from pathlib import Path

import httpx2

from alerts.fingerprint import fingerprint
from monitor.domain import pairs
from tests.conftest import tool
from tests.support.monitoring import free_port
from tests.support.world import until_async

LABELS = [
    {"alertname": "ServiceDown", "check": "http_health", "service": "auth"},
    {"alertname": "ConnectionsHigh", "service": "postgres"},
    {"alertname": "Ünïcode", "where": "a b", "z": "✓", "a": '"quoted"\n'},
]


async def test_alertmanager_gives_the_same_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    port = free_port()
    flags = [f"--config.file={tmp_path}/am.yml", f"--storage.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "am.log").open("wb") as log:
        process = subprocess.Popen([tool("prometheus-alertmanager"), *flags, "--cluster.listen-address="], stdout=log, stderr=log)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:

            async def ready() -> bool:
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx2.HTTPError:
                    return False

            await until_async(ready)
            posted = await http.post("/api/v2/alerts", json=[{"labels": labels} for labels in LABELS])
            assert posted.status_code == 200, posted.text
            theirs = {alert["fingerprint"] for alert in (await http.get("/api/v2/alerts")).json()}
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)
    assert theirs == {fingerprint(pairs(labels)) for labels in LABELS}
