"""What people look at: Grafana dashboards, the status page, the daily checklist.

To add a Grafana dashboard: a builder in a file here, a line in ``BUILTINS`` of ``grafana.py``, and the test of every query covers it.
Nothing is imported here: the running monitor draws pages and reports, and has no use for Grafana's large SDK.
"""
