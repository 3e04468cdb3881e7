"""Cold starts: seconds from `qinfer run` to the first byte of an answer, in processes of their own.

python -m benchmarks.gpu.start qwen2-1.5b:none qwen2-1.5b:fp8

A checkpoint of random weights in a published shape is written, so its files are in the system's
cache. The first start is not counted: it compiles the operators where they are not built yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.gpu.machine import describe

STARTS = 3


def main() -> None:
    """A line for each model as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.start", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL:SCHEME")
    parser.add_argument("--checkpoints", type=Path, help="a folder to keep them in")
    parser.add_argument("--commit", help="that is measured, where git does not know")
    options = parser.parse_args()
    print(describe(options.commit), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            name, scheme = model.split(":")
            checkpoint = (options.checkpoints or Path(folder)) / name
            if not checkpoint.exists():
                write_checkpoint(checkpoint, name)
            command = ["--model", str(checkpoint), "--quant", scheme]
            seconds = [first_byte(command) for _ in range(STARTS + 1)][1:]
            each = ", ".join(f"{one:.2f}" for one in seconds)
            print(f"{name} {scheme}: {median(seconds):.2f} s ({each})", flush=True)


def write_checkpoint(folder: Path, name: str) -> None:
    """Random weights, as ``qinfer bench --config`` draws them, in a file."""
    from qinfer.core.checkpoint.random_checkpoint import write_folder
    from qinfer.core.checkpoint.write import Pending, write_tensors
    from qinfer.core.loading import prepare
    from qinfer.core.published import find
    from qinfer.core.session import select
    from qinfer.core.types import RunConfig

    folder.mkdir(parents=True)
    write_folder(folder, find(name).config)
    run = RunConfig(model=str(folder), device="gpu", random_weights=True)
    files = prepare(run, select(run), folder).checkpoint
    tensors = [
        Pending(name=name, shape=files.shape(name), make=partial(files.read, name))
        for name in files.names()
    ]
    write_tensors(folder / "model.safetensors", tensors)


def first_byte(model: Sequence[str]) -> float:
    """Seconds from a command to its first byte."""
    words = ["run", *model, "--device", "gpu", "--max-tokens", "4", "--temperature", "0", "Hello"]
    command = [sys.executable, "-c", "from qinfer.core.cli import main; main()", *words]
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as started:
        assert started.stdout
        if not started.stdout.read(1):
            raise SystemExit(f"no answer from: {' '.join(command)}")
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
