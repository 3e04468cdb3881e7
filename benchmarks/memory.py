"""Does loading stay within its memory? python -m benchmarks.memory [--export] [SCHEME ...]

Writes a random bfloat16 checkpoint of Qwen2-0.5B's shape in shards and loads it in a process of its
own with each scheme. Passes (exit code 0) when the peak of resident memory, above what the process
held before loading, is at most the loaded weights + the largest tensor + 300 MB. With --export the
same of exporting, and of memory that is no file's, as what is written passes through files' cache.
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
from qinfer.core.checkpoint.random_checkpoint import write_folder

SPARE_BYTES = 300_000_000
SHAPE = SHAPES["qwen2-0.5b"]


def main() -> None:
    """Write, load, compare; exit with 1 if any scheme takes too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("schemes", nargs="*", default=["none", "wint8", "wint4", "fp8"])
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look")
    parser.add_argument("--export", action="store_true", help="measure `qinfer export`")
    options = parser.parse_args()
    largest = SHAPE.largest_tensor_bytes
    with tempfile.TemporaryDirectory(prefix="qinfer-memory-") as folder:
        write_model(Path(folder), replace(SHAPE, layers=options.layers))
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        write_folder(Path(folder), config)  # an export has a tokenizer
        results = {
            scheme: probe(Path(folder), scheme, is_export=options.export)
            for scheme in options.schemes
        }
    peak = "anonymous_peak" if options.export else "peak"
    show(results, largest, peak)
    if not all(fits(result, largest, peak) for result in results.values()):
        raise SystemExit(1)


def probe(folder: Path, scheme: str, *, is_export: bool) -> dict[str, Any]:
    """Load or export in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="qinfer-memory-") as other:
        command = [sys.executable, peer_script("memory_probe.py"), str(folder), scheme]
        command += [f"{other}/exported"] if is_export else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{scheme}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fits(result: dict[str, Any], largest: int, peak: str) -> bool:
    """Whether the peak stays within what is allowed."""
    return bool(result[peak] <= result["weights"] + largest + SPARE_BYTES)


def show(results: dict[str, dict[str, Any]], largest: int, peak: str) -> None:
    """A table in MB."""
    table = Table("scheme")
    for name in ("weights", "allowed", "peak", "peak, anonymous", "after", "load s", "verdict"):
        table.add_column(name, justify="right")
    for scheme, r in results.items():
        allowed = r["weights"] + largest + SPARE_BYTES
        sizes = (r["weights"], allowed, r["peak"], r["anonymous_peak"], r["after"])
        verdict = "fits" if fits(r, largest, peak) else "TOO MUCH"
        shown = [f"{size / 1e6:.0f}" for size in sizes]
        table.add_row(scheme, *shown, f"{r['seconds']:.1f}", verdict)
    Console().print(
        f"MB of 10^6 bytes above the process before; largest tensor {largest / 1e6:.0f}"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
