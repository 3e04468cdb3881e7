"""What the numbers were measured on, and how fast that machine reads memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qinfer.core.machine import cpu_features, cpu_name, memory, usable_cores

ROOT = Path(__file__).resolve().parent.parent
ARRAY_BYTES = 512 << 20
"""Far beyond any processor's last cache."""


def describe() -> dict[str, Any]:
    """Processor, memory, system, and the commit that is measured."""
    return {
        "processor": cpu_name(),
        "features": list(cpu_features()),
        "cores": usable_cores(),
        "memory_bytes": memory()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python -m benchmarks.run", *map(_shown, sys.argv[1:])]),
    }


def commit() -> str:
    """The short hash of HEAD, with "-dirty" when files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


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


def _shown(argument: str) -> str:
    """Paths by their last part: where things lie on this machine is nobody's business."""
    return Path(argument).name if "/" in argument else argument
