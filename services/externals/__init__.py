"""What the platform depends on and does not own, as real servers on loopback for the demo, the drills and the tests.

One process (``python -m services.externals --config FILE``) serves them all: a demo starts fast, and one kill takes them all away.
"""
