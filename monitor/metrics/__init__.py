"""What the monitor tells Prometheus: the cached exposition, and the names of the monitor's own series."""

from monitor.metrics.exposition import CONTENT_TYPE, Exposition

__all__ = ["CONTENT_TYPE", "Exposition"]
