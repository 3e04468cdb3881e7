"""Pairs of models, each pair in a process of its own (pair.py), and how far they are apart."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import mean, stdev
from typing import Any

ENOUGH, ATTEMPTS = 1.8, 4
"""Processors that two threads have when nobody else computes, and how often that is tried."""


def measure(*words: str) -> dict[str, Any]:
    """What pair.py says of two models, the time they had most of the processors."""
    command = [sys.executable, "-m", "benchmarks.pair", *words]
    found: list[dict[str, Any]] = []
    while len(found) < ATTEMPTS and not any(pair["processors"] > ENOUGH for pair in found):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{words[0]}: {done.stderr.strip()[-500:]}")
        print(done.stdout, end="", flush=True)
        found.append(json.loads(done.stdout))
    return max(found, key=lambda pair: float(pair["processors"]))


def apart(pairs: list[Any], column: str) -> str:
    """The mean of the ratios less 1 and its standard error, then the smallest and largest, in
    percent.
    """
    parts = [100 * (one[column] / other[column] - 1) for one, other in pairs]
    error = f" \N{PLUS-MINUS SIGN} {stdev(parts) / len(parts) ** 0.5:.1f}" if len(parts) > 1 else ""
    return f"{mean(parts):+.1f}{error} ({min(parts):+.1f} to {max(parts):+.1f}) %"
