"""Is an exported program as fast as the model? python -m benchmarks.static [--scheme none ...]

The demo in each scheme, dynamic and exported, in one process and by turns: prompts of 128 tokens
and 16 greedy tokens after each, which must be the same ones. Then one decoding step by turns, as
the engine asks for it: the time in its operators, which are replayed, and what the runner spends
beside them; and the same step without a recording, as the first two of each batch size are. Last
the commands' start-up, as whole processes until the first byte. Medians over interleaved rounds;
the exit code is 1 when tokens differ.
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

from benchmarks.gpu.decode import greedy
from benchmarks.machine import commit, describe
from benchmarks.prompts import make_prompts
from benchmarks.startup import QUESTION, Command
from qinfer import LLM, SamplingParams
from qinfer.core.demo.folder import demo_folder
from qinfer.core.export.make import export_model
from qinfer.core.progress import NoProgress
from qinfer.core.types import RunConfig, StepInput

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
COLUMNS = ["prompt", "operators", "beside", "step", "unrecorded"]
PROMPTS = 4
"""Answered by each in each round."""
STEPS = 25
"""Decoding steps of each timed in each round."""
SCHEMES = ["none", "wint8", "wint4", "a8w8", "a8w8c8", "fp8"]


def main() -> None:
    """Measure each scheme and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("--scheme", nargs="*", default=SCHEMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--startup-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(), "commit": commit(), "schemes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in options.scheme:
            output = Path(folder) / scheme
            export_model(RunConfig(quant=scheme, backend="static"), output, NoProgress())
            found = measure(scheme, output, options.rounds, options.threads)
            report["schemes"][scheme] = found | startup(scheme, output, options.startup_rounds)
            show(scheme, report["schemes"][scheme])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not all(found["same tokens"] for found in report["schemes"].values()))


def measure(scheme: str, output: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Speeds of both, in milliseconds."""
    settings: dict[str, Any] = {"threads": threads, "kv_cache_memory": 64 << 20}
    models = {"dynamic": LLM(quant=scheme, **settings), "static": LLM(str(output), **settings)}
    tokens: dict[str, list[Any]] = {kind: [] for kind in models}
    times: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in COLUMNS} for kind in models
    }
    for turn, prompts in enumerate(make_prompts(demo_folder(), 128, rounds + 1, PROMPTS)):
        for prompt in prompts:
            for kind, llm in models.items():
                first = answer(llm, prompt["text"], tokens[kind])
                times[kind]["prompt"] += [first] if turn else []
        if turn == 0:
            steps = {kind: Step(llm) for kind, llm in models.items()}
            continue  # it warms up
        for _ in range(STEPS):
            for kind, step in steps.items():
                for name, seconds in step.timed().items():
                    times[kind][name].append(seconds)
    for llm in models.values():
        llm.close()
    middle = {
        kind: {name: 1e3 * median(seconds) for name, seconds in found.items()}
        for kind, found in times.items()
    }
    return {"ms": middle, "same tokens": tokens["dynamic"] == tokens["static"]}


def answer(llm: LLM, text: str, tokens: list[Any]) -> float:
    """Complete the text; the seconds until its first token."""
    (output,) = llm.generate(text, GREEDY)
    tokens.append(output.completions[0].token_ids)
    return output.stats[0].first_token_seconds


class Step:
    """One decoding step after 150 tokens, as the engine asks for it, and what it is made of."""

    def __init__(self, llm: LLM) -> None:
        self.runner: Any = llm.engine.runner
        recorded = self.runner._compute.by_size[1]
        self.batch = replace(
            StepInput(**{name: np.array(value) for name, value in vars(recorded.buffers).items()}),
            seq_lens=np.array([150], np.int32),
            positions=np.array([149]),
            slot_mapping=np.array([149]),
            block_tables=np.arange(10, dtype=np.int32)[None],
        )
        self.replay, self.replayed = recorded.recording.replay, 0.0
        recorded.recording.replay = self._watched

    def timed(self) -> dict[str, float]:
        """Seconds of a step, and of the same one without a recording."""
        seconds = timed(lambda: self.runner.step(self.batch, greedy(1)))
        model, batch = self.runner._compute.model, on_device(self.batch)
        return {
            "step": seconds,
            "operators": self.replayed,
            "beside": seconds - self.replayed,
            "unrecorded": timed(lambda: model(batch)),
        }

    def _watched(self) -> Any:
        begin = time.perf_counter()
        result = self.replay()
        self.replayed = time.perf_counter() - begin
        return result


def on_device(batch: StepInput) -> StepInput:
    """As tensors; imported late, as the session prepares Paddle."""
    from qinfer.plugins.backends import recorded

    return recorded.on_device(batch)


def timed(call: Callable[[], Any]) -> float:
    """The seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


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
    same = "the same tokens" if found["same tokens"] else "OTHER TOKENS"
    table = Table(scheme, *(f"{name} ms" for name in COLUMNS), "start-up s", title=same)
    for kind, times in found["ms"].items():
        seconds = found["startup s"][kind].get("seconds", float("nan"))
        table.add_row(kind, *(f"{times[name]:.3f}" for name in COLUMNS), f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
