"""Does loading stay within its memory? python -m benchmarks.memory [--layers 24] [SCHEME ...]

Writes a random bfloat16 checkpoint of Qwen2-0.5B's shape in shards and loads it in a process of its
own with each scheme. Passes (exit code 0) when the peak of resident memory, above what the process
held before loading, is at most the loaded weights + the largest tensor + 300 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.child import peer_script
from benchmarks.random_model import SHAPES, write_model

SPARE_BYTES = 300_000_000
SHAPE = SHAPES["qwen2-0.5b"]


def main() -> None:
    """Write, load, compare; exit with 1 if any scheme takes too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("schemes", nargs="*", default=["none", "wint8", "wint4", "fp8"])
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look")
    options = parser.parse_args()
    largest = SHAPE.largest_tensor_bytes
    with tempfile.TemporaryDirectory(prefix="qinfer-memory-") as folder:
        write_model(Path(folder), replace(SHAPE, layers=options.layers))
        results = {scheme: probe(Path(folder), scheme) for scheme in options.schemes}
    show(results, largest)
    if not all(fits(result, largest) for result in results.values()):
        raise SystemExit(1)


def probe(folder: Path, scheme: str) -> dict[str, Any]:
    """Load in a process of its own."""
    command = [sys.executable, peer_script("memory_probe.py"), str(folder), scheme]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{scheme}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fits(result: dict[str, Any], largest: int) -> bool:
    """Whether the peak stays within what is allowed."""
    return bool(result["peak"] <= result["weights"] + largest + SPARE_BYTES)


def show(results: dict[str, dict[str, Any]], largest: int) -> None:
    """A table in MB."""
    table = Table("scheme")
    for name in ("weights", "allowed", "peak", "peak, anonymous", "after", "load s", "verdict"):
        table.add_column(name, justify="right")
    for scheme, r in results.items():
        allowed = r["weights"] + largest + SPARE_BYTES
        sizes = (r["weights"], allowed, r["peak"], r["anonymous_peak"], r["after"])
        verdict = "fits" if fits(r, largest) else "TOO MUCH"
        shown = [f"{size / 1e6:.0f}" for size in sizes]
        table.add_row(scheme, *shown, f"{r['seconds']:.1f}", verdict)
    Console().print(
        f"MB of 10^6 bytes above the process before; largest tensor {largest / 1e6:.0f}"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
