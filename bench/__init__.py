"""What the monitor costs, measured beside its peers in the same run: ``make bench``.

Owns the processes under test, the counting of their CPU time, the table and ``build/bench.json``.
"""
