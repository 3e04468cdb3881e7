"""What quantising a large model takes: python -m benchmarks.quantize [--work FOLDER] [OPTION ...]

    python -m benchmarks.quantize --layers 2 4 -- --quant wint4 --method gptq

Writes random bfloat16 checkpoints of a published shape with a few of its layers and runs `qinfer
quantize` on each, a process at a time, with the options after "--". Prints for each the peak of
its memory and the seconds that its threads computed, in all and for each layer more than the run
before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.random_model import SHAPES, write_model
from qinfer.core.checkpoint.random_checkpoint import write_folder
from qinfer.core.child import python_command


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one run took: seconds of the clock and of all threads together, bytes."""

    layers: int
    seconds: float
    computing: float
    peak_bytes: int


def main() -> None:
    """Write, quantise and print a line for each number of layers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--work", type=Path, help="folder for the checkpoints, which are kept")
    parser.add_argument("options", nargs="*", help="of qinfer quantize")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qinfer-quantize-") as temporary:
        last: Taken | None = None
        for layers in asked.layers:
            model = _model(asked.work or Path(temporary), asked.shape, layers)
            taken = _quantise(model, layers, asked.options)
            print(_line(taken, last), flush=True)
            last = taken


def _model(folder: Path, name: str, layers: int) -> Path:
    """The checkpoint, made unless it is there."""
    target = folder / f"{name}-{layers}-layers"
    if not target.exists():
        part = target.with_suffix(".part")
        part.mkdir(parents=True)
        write_model(part, replace(SHAPES[name], layers=layers))
        write_folder(part, json.loads((part / "config.json").read_text(encoding="utf-8")))
        part.replace(target)
    return target


def _quantise(model: Path, layers: int, options: list[str]) -> Taken:
    call = "import sys; from qinfer.core.cli import main; main(sys.argv[1:])"
    with tempfile.TemporaryDirectory(prefix="qinfer-quantize-", dir=model.parent) as other:
        arguments = ["quantize", "--model", str(model), "--output", f"{other}/made", *options]
        begin = time.perf_counter()
        child = subprocess.Popen(python_command(call, *arguments), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"qinfer quantize ended with status {status}")
    return Taken(
        layers=layers,
        seconds=time.perf_counter() - begin,
        computing=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def _line(taken: Taken, last: Taken | None) -> str:
    said = (
        f"{taken.layers} layers: {taken.peak_bytes / 1e9:.2f} GB at most, "
        f"{taken.seconds:.0f} s, {taken.computing:.0f} s of all threads"
    )
    if last is None or last.layers == taken.layers:
        return said
    more = taken.layers - last.layers
    return (
        f"{said}; each layer more {(taken.computing - last.computing) / more:.0f} s, "
        f"{(taken.peak_bytes - last.peak_bytes) / more / 1e6:+.0f} MB"
    )


if __name__ == "__main__":
    main()
