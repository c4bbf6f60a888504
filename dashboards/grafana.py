"""Writes the Grafana dashboards, and the provisioning files that make Grafana load them."""

from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.overview import overview

BUILTINS: tuple[Callable[[], Dashboard], ...] = (overview,)

_PROVIDER = """\
# Copy to /etc/grafana/provisioning/dashboards/, and the folder "dashboards" to the path below.
apiVersion: 1
providers:
  - name: platform-monitor
    folder: Platform monitor
    type: file
    disableDeletion: true
    allowUiUpdates: false
    updateIntervalSeconds: 30
    options:
      path: /var/lib/grafana/dashboards/platform-monitor
"""

_DATASOURCE = """\
# Copy to /etc/grafana/provisioning/datasources/, and set the address of your Prometheus.
# timeInterval is the scrape interval: $__rate_interval is worked out from it.
apiVersion: 1
datasources:
  - name: Prometheus
    uid: platform-monitor-prometheus
    type: prometheus
    access: proxy
    url: http://127.0.0.1:9090
    isDefault: true
    editable: false
    jsonData:
      httpMethod: POST
      timeInterval: 15s
"""


def build(out: Path) -> tuple[Path, ...]:
    """Write everything below ``out`` and return the paths. The same input writes the same bytes. Raises ``OSError``."""
    files = {
        Path("provisioning/dashboards/platform-monitor.yaml"): _PROVIDER,
        Path("provisioning/datasources/platform-monitor.yaml"): _DATASOURCE,
    }
    for builder in BUILTINS:
        dashboard = builder()
        files[Path("dashboards") / f"{dashboard.uid}.json"] = JSONEncoder(sort_keys=True, indent=2).encode(dashboard) + "\n"
    for path, text in files.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return tuple(out / path for path in files)
