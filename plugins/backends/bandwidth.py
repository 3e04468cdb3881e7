"""How fast a processor reads memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ARRAY_BYTES = 512 << 20
"""Far beyond any processor's last cache."""


class ReadBandwidth:
    """Measures bytes read per second from memory by ``threads`` threads.

    Each thread looks for the greatest number in its share of a big array: as little work for
    what it reads as numpy offers, so the loads decide.
    """

    def __init__(self, threads: int) -> None:
        self.shares = np.array_split(np.ones(ARRAY_BYTES // 4, np.int32), threads * 8)
        self.pool = ThreadPoolExecutor(threads)

    def measure(self, passes: int = 5) -> float:
        """The best of a few passes, in bytes per second."""
        return ARRAY_BYTES / min(self._seconds() for _ in range(passes))

    def _seconds(self) -> float:
        start = time.perf_counter()
        list(self.pool.map(np.max, self.shares))
        return time.perf_counter() - start
