"""Decoding and prefill of a random model of a published configuration, against the floor.

python -m benchmarks.gpu.decode qwen2-1.5b --quant none --batch 1x1024 8x512 64x512 --prefill 8192
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.runner import BLOCK, open_runner

BANDWIDTH = 3.03e12
"""Bytes a second an H100 80GB reads."""

STEPS = 64


def prompt_step(length: int, blocks: np.ndarray[Any, Any], vocabulary: int) -> Any:
    from qinfer.core.types import StepInput

    at = np.arange(length)
    rng = np.random.default_rng(length)
    return StepInput(
        token_ids=rng.integers(0, vocabulary, length),
        positions=at,
        query_starts=np.array([0, length], np.int32),
        seq_lens=np.array([length], np.int32),
        slot_mapping=blocks[at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK,
        block_tables=blocks[None, : -(-length // BLOCK)].astype(np.int32),
        logit_rows=np.array([length - 1]),
    )


def decode_step(tokens: Any, lengths: Any, blocks: Any) -> Any:
    from qinfer.core.types import StepInput

    at = lengths.astype(np.int64)
    rows = np.arange(len(at))
    width = int(-(-(at.max() + 1) // BLOCK))
    return StepInput(
        token_ids=tokens,
        positions=at,
        query_starts=np.arange(len(at) + 1).astype(np.int32),
        seq_lens=(at + 1).astype(np.int32),
        slot_mapping=blocks[rows, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK,
        block_tables=blocks[:, :width].astype(np.int32),
        logit_rows=rows,
    )


def greedy(rows: int) -> Any:
    from qinfer.core.types import SamplingInput

    none = np.zeros(0)
    return SamplingInput(
        temperature=np.zeros(rows, np.float32),
        top_k=np.zeros(rows, np.int64),
        top_p=np.ones(rows, np.float32),
        min_p=np.zeros(rows, np.float32),
        uniform=np.zeros(rows, np.float32),
        edit_rows=none.astype(np.int64),
        edit_tokens=none.astype(np.int64),
        edit_scale=none.astype(np.float32),
        edit_bias=none.astype(np.float32),
    )


def decode(runner: Any, config: Any, batch: int, length: int) -> dict[str, float]:
    """Median milliseconds of a step as the engine makes them, each begun before the tokens of the
    one before are known, and of a replay on the card alone.
    """
    each = -(-(length + STEPS + 8) // BLOCK)
    blocks = np.arange(batch * each).reshape(batch, each)
    tokens, rows = np.zeros(batch, np.int64), np.arange(batch)
    begin = time.perf_counter()
    for row in range(batch):
        step = prompt_step(length, blocks[row], config.vocab_size)
        tokens[row] = runner.step(step, greedy(1)).token_ids[0]
    prompts = time.perf_counter() - begin
    lengths, times = np.full(batch, length), []
    finish = runner.begin(decode_step(tokens, lengths, blocks), greedy(batch))
    for _ in range(STEPS):
        begin = time.perf_counter()
        lengths = lengths + 1
        following = runner.begin(decode_step(tokens, lengths, blocks), greedy(batch), rows)
        tokens = finish().token_ids
        finish = following
        times.append(time.perf_counter() - begin)
    finish()
    sizes = [size for size in runner.graphs if size.is_decode and size.tokens >= batch]
    graph = runner.graphs[min(sizes)]
    runner.card.wait()
    begin = time.perf_counter()
    for _ in range(50):
        graph.graph.replay()
    runner.card.wait()
    alone = (time.perf_counter() - begin) / 50
    return {
        "step_ms": statistics.median(times[8:]) * 1e3,
        "replay_ms": alone * 1e3,
        "kernels": graph.graph.size,
        "prompt_ms": prompts / batch * 1e3,
    }


def prefill(runner: Any, config: Any, length: int) -> float:
    """Median milliseconds of a step with that many tokens of one sequence."""
    blocks, times = np.arange(-(-length // BLOCK)), []
    for _ in range(4):
        begin = time.perf_counter()
        runner.step(prompt_step(length, blocks, config.vocab_size), greedy(1))
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--batch", nargs="*", default=["1x1024", "8x512", "64x512"])
    parser.add_argument("--prefill", nargs="*", type=int, default=[1024, 8192])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begin = time.perf_counter()
    opened = open_runner(options.config, options.quant, tokens=131072, longest=32768, most=64)
    runner, cache, config, weights, device = opened
    print(f"made in {time.perf_counter() - begin:.1f} s", flush=True)
    rows = []
    for case in options.batch:
        batch, length = map(int, case.split("x"))
        per_token = cache.bytes_per_block / cache.block_size
        floor = (weights + batch * length * per_token) / BANDWIDTH * 1e3
        found = decode(runner, config, batch, length)
        rows.append({"case": case, "floor_ms": floor, **found})
        print(
            f"{options.config} {options.quant} {case}: floor {floor:.3f} ms, "
            f"step {found['step_ms']:.3f} ({floor / found['step_ms']:.0%}), "
            f"replay {found['replay_ms']:.3f} ({floor / found['replay_ms']:.0%}), "
            f"{found['kernels']} kernels, prompt {found['prompt_ms']:.1f} ms",
            flush=True,
        )
    for length in options.prefill:
        took = prefill(runner, config, length)
        rows.append({"case": f"prefill {length}", "ms": took})
        print(f"{options.config} {options.quant} prefill {length}: {took:.1f} ms", flush=True)
    if options.out:
        report = {"config": options.config, "quant": options.quant, "device": device}
        options.out.write_text(json.dumps({**report, "weights": weights, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
