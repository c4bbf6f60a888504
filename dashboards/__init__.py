"""What people look at: Grafana dashboards, the status page, the daily checklist.

To add a Grafana dashboard: a builder in a file here, a line in ``BUILTINS``, and the test of every query covers it.
"""

from dashboards.grafana import BUILTINS, build

__all__ = ["BUILTINS", "build"]
