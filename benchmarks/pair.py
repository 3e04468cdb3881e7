"""Two models by turns in one process: what benchmarks.static and benchmarks.schemes start.

python -m benchmarks.pair MODEL MODEL [PROMPTS]

Each is a folder, or a scheme's name for the demo in it, opened in this order; the same one twice
shows how much two that are alike differ, by where their memory lies. 6 prompts of 128 tokens, or so
many, 16 greedy tokens after each, then one decoding step, as the engine asks for it: the time in
its operators, which are replayed, and what the runner spends beside them; and the same step without
a recording, as the first two of each batch size are. Prints one JSON line: medians in milliseconds
of both, whether their tokens were the same, and how many processors the two threads had on average.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.decode import greedy
from benchmarks.prompts import make_prompts
from qinfer import LLM, SamplingParams
from qinfer.core.demo.folder import demo_folder
from qinfer.core.types import StepInput

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
COLUMNS = ["prompt", "operators", "beside", "step", "unrecorded"]
STEPS = 60
"""Decoding steps of each."""


def main() -> None:
    """Measure the two and print."""
    first, second, count = (*sys.argv[1:], "6")[:3]
    llms = [open_model(name) for name in (first, second)]
    tokens: list[list[Any]] = [[] for _ in llms]
    times: list[dict[str, list[float]]] = [{name: [] for name in COLUMNS} for _ in llms]
    begin, computed = time.perf_counter(), time.process_time()
    warming, *prompts = make_prompts(demo_folder(), 128, int(count) + 2, 1)
    for turn, (prompt,) in enumerate([warming, *prompts]):
        for told, found, llm in zip(tokens, times, llms, strict=True):
            seconds = answer(llm, prompt["text"], told)
            found["prompt"] += [seconds] if turn > 1 else []  # those before warm up
    steps = [Step(llm) for llm in llms]
    for _ in range(STEPS):
        for step, found in zip(steps, times, strict=True):
            for name, seconds in step.timed().items():
                found[name].append(seconds)
    middle = [{name: 1e3 * median(taken) for name, taken in found.items()} for found in times]
    had = (time.process_time() - computed) / (time.perf_counter() - begin)
    facts = {"same": tokens[0] == tokens[1], "processors": had}
    names = [Path(name).name for name in (first, second)]  # a folder's place says nothing later
    print(json.dumps({"models": names, "ms": middle, **facts}), flush=True)
    for llm in llms:
        llm.close()


def open_model(name: str) -> LLM:
    """That in a folder, or the demo in a scheme."""
    model: dict[str, Any] = {"model": name} if Path(name).is_dir() else {"quant": name}
    return LLM(**model, threads=2, kv_cache_memory=64 << 20)


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


if __name__ == "__main__":
    main()
