"""Output tokens a second of many requests at once, through the engine, with a random model.

python -m benchmarks.gpu.throughput qwen2-7b --quant none --requests 256 --input 512 --output 256

With --host-only nothing is computed: what is left is the engine's own time, on any machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.runner import BLOCK, open_runner


class NoText:
    """A tokenizer whose tokens have no text: its cost is not what is measured."""

    def text_stream(self) -> Any:
        return self

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Steps:
    """Hooks that remember each step: (tokens of prompts, tokens decoded, seconds)."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, float]] = []

    def step_done(self, stats: Any) -> None:
        self.rows.append((stats.prefill_tokens, stats.decode_tokens, stats.seconds))

    def request_done(self, stats: Any) -> None:
        pass


class Nothing:
    """A runner whose steps are over as they begin."""

    def step(self, batch: Any, sampling: Any) -> Any:
        return self.begin(batch, sampling)()

    def begin(self, batch: Any, sampling: Any, rows: Any = None) -> Any:
        from qinfer.core.types import StepOutput

        output = StepOutput(token_ids=np.ones(len(batch.logit_rows), np.int64))
        return lambda: output

    def compute(self, batch: Any, rows: Any = None) -> Any:
        return lambda sampling: self.begin(batch, sampling)

    def close(self) -> None:
        pass


def engine_of(runner: Any, cache: Any, vocabulary: int, options: argparse.Namespace) -> Any:
    from qinfer.core.engine.engine import Engine, Limits
    from qinfer.core.types import RunConfig

    run = RunConfig(max_num_seqs=options.seqs, max_batch_tokens=options.batch_tokens)
    longest = options.input + options.output + 1
    limits = Limits(max_model_len=longest, vocab_size=vocabulary, eos_token_ids=frozenset())
    return Engine(runner, cache, run, limits, NoText(), Steps())  # type: ignore[arg-type]


def measure(engine: Any, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """One run over all requests: seconds, tokens a second, and medians of both kinds of steps."""
    from qinfer.core.params import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=options.output, ignore_eos=True)
    rng = np.random.default_rng(seed)
    shape = (options.requests, options.input)
    prompts = rng.integers(0, engine.limits.vocab_size, shape).tolist()
    engine.hooks.rows.clear()
    begin = time.perf_counter()
    for prompt in prompts:
        engine.add(prompt, params.with_defaults({}))
    tokens = 0
    while engine.has_work:
        tokens += len(engine.step())
    took = time.perf_counter() - begin
    rows = engine.hooks.rows
    decode = [seconds for fresh, _, seconds in rows if not fresh]
    mixed = [seconds for fresh, _, seconds in rows if fresh]
    return {
        "seconds": took,
        "output_tokens_per_s": tokens / took,
        "decode_steps": len(decode),
        "decode_ms": median(decode) * 1e3,
        "prompt_steps": len(mixed),
        "prompt_ms": median(mixed) * 1e3,
        "prompt_seconds": sum(mixed),
        "outside_seconds": took - sum(decode) - sum(mixed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--input", type=int, default=512)
    parser.add_argument("--output", type=int, default=256)
    parser.add_argument("--seqs", type=int, default=256, help="the most sequences at once")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="the most in a step")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--host-only", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.host_only:
        from qinfer.core.types import CacheSpec

        blocks = options.requests * -(-(options.input + options.output + 1) // BLOCK)
        shape = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 64}
        cache = CacheSpec(**shape, block_size=BLOCK, num_blocks=blocks)
        runner, vocabulary = Nothing(), 151936
    else:
        longest = options.input + options.output + 1
        opened = open_runner(
            options.config,
            options.quant,
            tokens=options.requests * (longest + BLOCK),
            longest=longest,
            most=options.seqs,
        )
        runner, cache, vocabulary = opened.runner, opened.cache, opened.config.vocab_size
    engine = engine_of(runner, cache, vocabulary, options)
    rows = [measure(engine, options, seed) for seed in range(options.repeat + 1)][1:]
    for row in rows:
        said = ", ".join(f"{name} {value:.5g}" for name, value in row.items())
        print(f"{options.config} {options.quant}: {said}", flush=True)
    if options.out:
        report = {"config": options.config, "quant": options.quant, "rows": rows}
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
