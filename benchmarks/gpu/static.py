"""An exported program beside the model on a card: the same tokens, prompts, steps and start-up.

python -m benchmarks.gpu.static qwen2-0.5b qwen2-1.5b:fp8

A checkpoint of random weights in a published shape is written, and exported. Prompts and steps are
measured in one process by turns; start-up as whole processes, from the command to the first byte
of an answer, with the files in the system's cache. The first of each is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.start import first_byte, write_checkpoint

ROUNDS = 9
NEW = 128
WAYS = ("dynamic", "static")


def main() -> None:
    """Some lines for each model, as soon as they are known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.static", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL[:SCHEME]")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--starts", type=int, default=3, help="of each; 0: measure none")
    parser.add_argument("--checkpoints", type=Path, help="a folder to keep them in")
    options = parser.parse_args()
    for model in options.models:
        name, _, scheme = model.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = (options.checkpoints or Path(folder)) / name
            if not checkpoint.exists():
                write_checkpoint(checkpoint, name)
            output, label = Path(folder) / "exported", f"{name} {scheme or 'none'}"
            export(checkpoint, scheme or "none", output, label)
            compare(checkpoint, scheme or "none", output, options.prompt, label)
            if options.starts:
                startup(checkpoint, scheme or "none", output, options.starts, label)


def export(checkpoint: Path, scheme: str, output: Path, label: str) -> None:
    """Export and say how long it took."""
    from qinfer.core.export.make import export_model
    from qinfer.core.progress import NoProgress
    from qinfer.core.types import RunConfig

    begin = time.perf_counter()
    run = RunConfig(model=str(checkpoint), backend="static", device="gpu", quant=scheme)
    export_model(run, output, NoProgress())
    took = time.perf_counter() - begin
    size = (output / "parameters.safetensors").stat().st_size / 1e9
    print(f"{label}: {size:.2f} GB exported in {took:.1f} s", flush=True)


def compare(checkpoint: Path, scheme: str, output: Path, prompt: int, label: str) -> None:
    """Prompts and steps of both ways, and whether tokens differ."""
    same, rows = steps({"dynamic": [str(checkpoint), scheme], "static": [str(output)]}, prompt)
    print(f"{label}: {'the same' if same else 'OTHER'} {(ROUNDS + 1) * NEW} tokens")
    for way, (first, step, alone) in zip(WAYS, rows, strict=True):
        times = f"prompt of {prompt} {first:.2f} ms, step {step:.3f} ms, its graph {alone:.3f} ms"
        print(f"{label} {way}: {times}", flush=True)


def startup(checkpoint: Path, scheme: str, output: Path, rounds: int, label: str) -> None:
    """Start-up of both, by turns."""
    commands = ["--model", str(checkpoint), "--quant", scheme], ["--model", str(output)]
    starts = [[first_byte(command) for command in commands] for _ in range(rounds + 1)]
    for way, seconds in zip(WAYS, zip(*starts[1:], strict=True), strict=True):
        print(f"{label} {way}: start-up {median(seconds):.2f} s", flush=True)


def steps(
    models: dict[str, list[str]], prompt: int
) -> tuple[bool, list[tuple[float, float, float]]]:
    """Whether both gave the same tokens; for each, milliseconds of a prompt, of a step after it
    and of the step's graph alone.
    """
    from qinfer import LLM

    llms = [
        LLM(model, quant=quant[0] if quant else "auto", device="gpu", kv_cache_memory=1 << 30)
        for model, *quant in models.values()
    ]
    tokens: list[list[Any]] = [[] for _ in llms]
    times: list[list[tuple[float, float, float]]] = [[] for _ in llms]
    for turn in range(ROUNDS + 1):
        ids = np.random.default_rng(turn).integers(0, 256, prompt).tolist()
        for way, llm in enumerate(llms):
            found, first, step = answer(llm, ids)
            tokens[way].append(found)
            times[way].append((first, step, replay(llm)))
    for llm in llms:
        llm.close()
    middle = [tuple(1e3 * median(part) for part in zip(*rows[1:], strict=True)) for rows in times]
    return tokens[0] == tokens[1], middle  # type: ignore[return-value]


def answer(llm: Any, ids: list[int]) -> tuple[list[int], float, float]:
    """Greedy tokens, the seconds to the first, and the median of the others."""
    from qinfer import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True).with_defaults({})
    found: list[int] = []
    seconds = []
    begin = time.perf_counter()
    llm.engine.add(ids, params)
    while llm.engine.has_work:
        for _, delta in llm.engine.step():
            found.extend(delta.token_ids)
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    return found, seconds[0], median(seconds[8:])


def replay(llm: Any) -> float:
    """Seconds of the decoding step's graph alone."""
    runner = llm.engine.runner
    (graph,) = (made.graph for size, made in runner.graphs.items() if size.tokens == 1)
    runner.card.wait()
    begin = time.perf_counter()
    for _ in range(50):
        graph.replay()
    runner.card.wait()
    return (time.perf_counter() - begin) / 50


if __name__ == "__main__":
    main()
