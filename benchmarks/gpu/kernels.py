"""Products of few rows against the card's read bandwidth: graph replays over weights that do not
fit its cache. python -m benchmarks.gpu.kernels [--rows 1 8 64]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.gpu.decode import BANDWIDTH

SHAPES = [(896, 1152), (896, 896), (896, 9728), (4864, 896), (1536, 2048), (1536, 17920)]
SHAPES += [(8960, 1536), (3584, 4608), (3584, 3584), (3584, 37888), (18944, 3584), (1536, 151936)]
"""Inputs and outputs of Qwen2 0.5B, 1.5B and 7B."""

FORMATS = {"bfloat16": 2.0, "int8": 1.0, "float8_e4m3fn": 1.0, "int4": 0.5 + 4 / 64}


def operands(shape: tuple[int, int], dtype: str, rng: Any) -> Any:
    from qinfer.core.hardware.place import place
    from qinfer.cuda_ops import ops

    width, out = shape
    if dtype == "int4":
        weight = place(rng.integers(-8, 8, (out, width), dtype=np.int8))
        return ops.arrange_int4(weight, place(np.full((out, width // 64), 0.01, np.float32)))
    codes = rng.integers(-100, 100, (out, width), dtype=np.int8)
    held = getattr(ml_dtypes, dtype, dtype)
    weight = codes if dtype == "int8" else codes.astype(held)
    return place(weight), place(np.full(out, 0.01, np.float32))


def product(x: Any, pair: Any, dtype: str, out: int) -> Any:
    from qinfer.cuda_ops import ops

    weight, scale = pair
    if dtype == "int4":
        return ops.linear_int4(x, weight, scale, None, out)
    if dtype == "int8":
        return ops.linear_int8(x, weight, scale, None)
    if dtype == "float8_e4m3fn":
        return ops.linear_fp8(x, weight, scale, None)
    return ops.linear(x, weight, None, dtype, out)


def copy_of(part: Any) -> Any:
    """The same numbers at another place of the card."""
    return part.cpu()._copy_to(part.place, True)


def attention(card: Any, rng: Any) -> None:
    """Decoding: batch x length of each family's heads, against reading the keys and values."""
    from qinfer.core.hardware.place import place
    from qinfer.core.types import LayerCache
    from qinfer.cuda_ops import ops
    from qinfer.cuda_ops.graphs import Graph

    for heads, kv_heads, dim in ((14, 2, 64), (12, 2, 128), (28, 4, 128)):
        line = f"attention {heads}/{kv_heads}x{dim}"
        for batch, length in ((1, 1024), (8, 512), (64, 512), (1, 16384)):
            blocks = batch * length // 16
            shape = (blocks, 16, kv_heads, dim)
            layers = 8
            caches = [
                [place(rng.normal(size=shape).astype(ml_dtypes.bfloat16)) for _ in range(2)]
                for _ in range(layers)
            ]
            queries = place(rng.normal(size=(batch, heads, dim)).astype(ml_dtypes.bfloat16))
            tables = np.zeros((batch, 2048), np.int32)
            tables[:, : length // 16] = rng.permutation(blocks).reshape(batch, -1)
            rest = [np.arange(batch + 1, dtype=np.int32), np.full(batch, length, np.int32), tables]
            placed = [place(part) for part in rest]

            def run(caches: Any = caches, queries: Any = queries, placed: Any = placed) -> Any:
                return [
                    ops.paged_attention(
                        queries, LayerCache(keys=pair[0], values=pair[1]), *placed, 0.1
                    )
                    for pair in caches
                ]

            run()
            card.wait()
            took = timed(card, Graph(card, run)) / layers
            floor = batch * length * kv_heads * dim * 4 / BANDWIDTH
            line += f" | {batch}x{length} {took * 1e6:6.1f} us {floor / took:4.0%}"
        print(line, flush=True)


def timed(card: Any, graph: Any) -> float:
    """Median seconds of a replay."""
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        for _ in range(4):
            graph.replay()
        card.wait()
        times.append((time.perf_counter() - begin) / 4)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    options = parser.parse_args()
    from qinfer.core.hardware.device import open_device
    from qinfer.core.hardware.start_paddle import import_paddle

    import_paddle(device=open_device("gpu").label)
    from qinfer.core.hardware.place import place
    from qinfer.cuda_ops.build_cuda import build_cuda, plan_cuda
    from qinfer.cuda_ops.cuda import use_cuda
    from qinfer.cuda_ops.graphs import Card, Graph

    library = build_cuda(plan_cuda(), print)
    use_cuda(library)
    card, rng = Card(library, 0), np.random.default_rng(1)
    attention(card, rng)
    for dtype in options.formats:
        for shape in SHAPES:
            size = shape[0] * shape[1] * FORMATS[dtype]
            first = operands(shape, dtype, rng)
            copies = max(1, min(40, int(200e6 / size)))
            sets = [first] + [tuple(copy_of(part) for part in first) for _ in range(copies - 1)]
            line = f"{dtype:14} {shape[0]:6} x {shape[1]:6}"
            for rows in options.rows:
                x = place(rng.normal(size=(rows, shape[0])).astype(ml_dtypes.bfloat16))

                def run(
                    x: Any = x, sets: Any = sets, dtype: str = dtype, out: int = shape[1]
                ) -> list[Any]:
                    return [product(x, pair, dtype, out) for pair in sets]

                run()
                card.wait()
                graph = Graph(card, run)
                took = timed(card, graph) / copies
                floor = size / BANDWIDTH
                line += f" | {rows:3} rows {took * 1e6:7.1f} us {floor / took:4.0%}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
