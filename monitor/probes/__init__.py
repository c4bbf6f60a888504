"""How the monitor touches the outside: HTTP exchanges (``http``), watched PostgreSQL clusters (``postgres``), log files (``logs``).

Implements ``monitor/probes_contract.py``; plugins see only the protocols.
"""
