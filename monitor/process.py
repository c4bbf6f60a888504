"""What the running process sets once for itself."""

import gc

GENERATION_0 = 20_000
"""Allocations between two looks of the garbage collector. Results are small, many and free of cycles; see docs/benchmarks.md."""


def tune_process() -> None:
    """Keep what was imported out of the garbage collector's way, and let it look less often. Call it once, when all is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GENERATION_0, 20, 50)
