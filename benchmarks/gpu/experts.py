"""Products of experts on a card, by graph replays: microseconds and the share of the floor, which
is the chosen experts' weights over 3.03 TB/s or the operations over 798 TFLOP/s, whichever is
longer.

python -m benchmarks.gpu.experts [--formats bfloat16 int8] [--tokens 1 8 64]
"""

from __future__ import annotations

import argparse
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.gpu.decode import BANDWIDTH
from benchmarks.gpu.kernels import FORMATS, timed

OPERATIONS = 7.98e14
"""A second, as an H100's largest products in bfloat16 reach."""

SHAPES = {"qwen3-30b-a3b": (128, 8, 2048, 768), "qwen1.5-moe-a2.7b": (60, 4, 2048, 1408)}
"""Experts, choices, width of the model and of an expert."""


def weights(experts: int, out: int, width: int, dtype: str, rng: Any) -> Any:
    """The arranged weights of all experts, and their scales."""
    from qinfer.core.hardware.place import place
    from qinfer.cuda_ops import ops

    codes = np.resize(rng.integers(-100, 100, 1 << 22).astype(np.int8), (experts * out, width))
    if dtype == "int4":
        scale = np.full((experts * out, width // 64), 0.01, np.float32)
        return ops.arrange_experts_int4(place(codes >> 5), place(scale), experts)
    held = codes if dtype == "int8" else codes.astype(getattr(ml_dtypes, dtype))
    return place(held), place(np.full(experts * out, 0.01, np.float32))


def product(x: Any, pair: Any, chosen: Any, dtype: str, out: int) -> Any:
    from qinfer.cuda_ops import ops

    weight, scale = pair
    if dtype == "int4":
        return ops.expert_linear_int4(x, weight, scale, chosen, out)
    if dtype == "int8":
        return ops.expert_linear_int8(x, weight, scale, chosen, out)
    if dtype == "float8_e4m3fn":
        return ops.expert_linear_fp8(x, weight, scale, chosen, out)
    return ops.expert_linear(x, weight, chosen, dtype, out)


def measure(card: Any, name: str, dtype: str, tokens: list[int]) -> None:
    from qinfer.core.hardware.place import place
    from qinfer.cuda_ops.graphs import Graph

    count, top_k, hidden, inner = SHAPES[name]
    rng = np.random.default_rng(0)
    sides = {"gate, up": (hidden, 2 * inner), "down": (inner, hidden)}
    held = {side: weights(count, out, width, dtype, rng) for side, (width, out) in sides.items()}
    for size in tokens:
        turns = 8 if size < 256 else 2  # each with other choices, so that no cache helps
        chosen = [
            np.stack([rng.permutation(count)[:top_k] for _ in range(size)]).astype(np.int32)
            for _ in range(turns)
        ]
        used = float(np.mean([len(np.unique(one)) for one in chosen]))
        line = f"{name} {dtype} {size} tokens, {used:.0f} experts used:"
        for side, (width, out) in sides.items():
            rows = size if side == "gate, up" else size * top_k
            x = place(rng.normal(size=(rows, width)).astype(ml_dtypes.bfloat16))
            placed = [place(one) for one in chosen]

            def run(x: Any = x, placed: Any = placed, side: str = side, out: int = out) -> Any:
                return [product(x, held[side], one, dtype, out) for one in placed]

            run()
            card.wait()
            took = timed(card, Graph(card, run)) / turns
            reading = used * out * width * FORMATS[dtype] / BANDWIDTH
            floor = max(reading, 2 * size * top_k * out * width / OPERATIONS)
            line += f" {side} {took * 1e6:.1f} us {floor / took:.0%};"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 8, 64, 256, 1024, 4096])
    options = parser.parse_args()
    from qinfer.core.hardware.device import open_device
    from qinfer.core.hardware.start_paddle import import_paddle

    import_paddle(device=open_device("gpu").label)
    from qinfer.cuda_ops.build_cuda import build_cuda, plan_cuda
    from qinfer.cuda_ops.cuda import use_cuda
    from qinfer.cuda_ops.graphs import Card

    library = build_cuda(plan_cuda(), print)
    use_cuda(library)
    for name in SHAPES:
        for dtype in options.formats:
            measure(Card(library, 0), name, dtype, options.tokens)


if __name__ == "__main__":
    main()
