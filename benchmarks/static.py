"""Is an exported program as fast as the model? python -m benchmarks.static [--scheme none ...]

The demo in each scheme, dynamic and exported, in one process and by turns: a prompt of 128 tokens
and 64 greedy tokens after it, which must be the same ones. Then one decoding step in three ways:
replayed, which is the operators alone; as the runner makes it; and without a recording, where what
is above the replay is Python's and Paddle's. Last the commands' start-up, as whole processes until
the first byte. Medians over interleaved rounds; the exit code is 1 when tokens differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, describe
from benchmarks.prompts import make_prompts
from benchmarks.startup import QUESTION, Command
from qinfer import LLM, SamplingParams
from qinfer.core.checkpoint.demo import demo_folder
from qinfer.core.export.make import export_model
from qinfer.core.progress import NoProgress
from qinfer.core.types import RunConfig, StepInput

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
STEPS = 20
"""Decoding steps timed in each round."""


def main() -> None:
    """Measure each scheme and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("--scheme", nargs="*", default=["none", "wint8", "a8w8c8", "fp8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(), "commit": commit(), "schemes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in options.scheme:
            output = Path(folder) / scheme
            export_model(RunConfig(quant=scheme, backend="static"), output, NoProgress())
            found = measure(scheme, output, options.rounds, options.threads)
            report["schemes"][scheme] = found | startup(scheme, output, options.rounds)
            show(scheme, report["schemes"][scheme])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not all(found["same tokens"] for found in report["schemes"].values()))


def measure(scheme: str, output: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Speeds of both, in milliseconds."""
    settings: dict[str, Any] = {"threads": threads, "kv_cache_memory": 64 << 20}
    models = {"dynamic": LLM(quant=scheme, **settings), "static": LLM(str(output), **settings)}
    times: dict[str, dict[str, list[float]]] = {kind: {} for kind in models}
    tokens: dict[str, list[Any]] = {kind: [] for kind in models}
    for (prompt,) in make_prompts(demo_folder(), 128, rounds + 1, 1):
        for kind, llm in models.items():
            times[kind].setdefault("prefill", []).append(answer(llm, prompt["text"], tokens[kind]))
            for way, call in ways(llm).items():
                times[kind].setdefault(way, []).append(timed(call))
    for llm in models.values():
        llm.close()
    middle = {
        kind: {way: 1e3 * median(seconds[1:]) for way, seconds in found.items()}
        for kind, found in times.items()
    }
    return {"ms": middle, "same tokens": tokens["dynamic"] == tokens["static"]}


def answer(llm: LLM, text: str, tokens: list[Any]) -> float:
    """Complete the text; the seconds until its first token."""
    (output,) = llm.generate(text, GREEDY)
    tokens.append(output.completions[0].token_ids)
    return output.stats[0].first_token_seconds


def ways(llm: LLM) -> dict[str, Callable[[], Any]]:
    """The same decoding step, after 150 tokens, in three ways."""
    runner: Any = llm.engine.runner
    steps, recorded = runner._compute, runner._compute.by_size[1]
    batch = replace(
        StepInput(**{name: np.array(value) for name, value in vars(recorded.buffers).items()}),
        seq_lens=np.array([150], np.int32),
        positions=np.array([149]),
        slot_mapping=np.array([149]),
        block_tables=np.arange(10, dtype=np.int32)[None],
    )
    return {
        "replay": recorded.recording.replay,
        "step": lambda: steps(batch),
        "unrecorded": lambda: steps.model(on_device(batch)),
    }


def on_device(batch: StepInput) -> StepInput:
    """As tensors; imported late, as the session prepares Paddle."""
    from qinfer.plugins.backends import recorded

    return recorded.on_device(batch)


def timed(call: Callable[[], Any]) -> float:
    """The median seconds of some calls."""
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def startup(scheme: str, output: Path, rounds: int) -> dict[str, Any]:
    """Seconds from the command to the first byte of an answer."""
    qinfer = shutil.which("qinfer", path=str(Path(sys.executable).parent)) or "qinfer"
    rest = ["--max-tokens", "2", "--temperature", "0", QUESTION]
    commands = {
        "dynamic": Command(
            name="dynamic", words=[qinfer, "run", "--quant", scheme, *rest], first_byte=True
        ),
        "static": Command(
            name="static", words=[qinfer, "run", "--model", str(output), *rest], first_byte=True
        ),
    }
    for turn in range(rounds + 1):
        for command in commands.values():
            command.run()
            if turn == 0:
                command.seconds.clear()
    return {"startup s": {kind: command.result() for kind, command in commands.items()}}


def show(scheme: str, found: dict[str, Any]) -> None:
    """A row for each of the two."""
    names = ["prefill", "replay", "step", "unrecorded"]
    same = "the same tokens" if found["same tokens"] else "OTHER TOKENS"
    table = Table(scheme, *(f"{name} ms" for name in names), "start-up s", title=same)
    for kind, times in found["ms"].items():
        seconds = found["startup s"][kind].get("seconds", float("nan"))
        table.add_row(kind, *(f"{times[name]:.3f}" for name in names), f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
