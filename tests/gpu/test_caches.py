"""Caches of eight bits, windows, norms of the heads and scaled queries, against float64."""

import ml_dtypes
import numpy as np
import pytest

from gpu.tools import back, card, error, rounded
from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.core.types import LayerCache
from qinfer.cuda_ops import ops

HELD = ["bfloat16", "int8", "float8_e4m3fn"]


def empty_cache(blocks, block_size, kv_heads, dim, dtype):
    """On the card, full of NaN where the type has one."""
    shape = (blocks, block_size, kv_heads)

    def part():
        if dtype == "bfloat16":
            return card(np.full((*shape, dim), np.nan).astype(ml_dtypes.bfloat16))
        codes = np.full((*shape, dim), 0x7F, np.uint8)  # e4m3's NaN
        return card(codes.view(getattr(ml_dtypes, dtype, dtype)))

    def scales():
        return None if dtype == "bfloat16" else card(np.full(shape, np.nan, np.float32))

    return LayerCache(keys=part(), values=part(), key_scales=scales(), value_scales=scales())


@pytest.mark.parametrize("dtype", HELD)
@pytest.mark.parametrize("window", [0, 90])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(14, 2, 64), (6, 2, 128)])
@pytest.mark.parametrize("block_size", [16, 64])
def test_attention_after_writing(dtype, window, heads, kv_heads, dim, block_size, rng):
    """Two sequences written by rotary_kv_write (turned by position 0, so not at all), then read."""
    counts, lengths = [150, 1], [250, 70]
    blocks = [-(-length // block_size) for length in lengths]
    cache = empty_cache(sum(blocks) + 1, block_size, kv_heads, dim, dtype)
    tables = np.zeros((2, max(blocks)), np.int32)
    order = rng.permutation(sum(blocks) + 1)
    contents, used = [], 0
    for row, length in enumerate(lengths):
        tables[row, : blocks[row]] = order[used : used + blocks[row]]
        used += blocks[row]
        at = np.arange(length)
        slots = tables[row, at // block_size].astype(np.int64) * block_size + at % block_size
        parts = rounded(rng.normal(size=(length, 3, kv_heads, dim)), "bfloat16")
        ops.rotary_kv_write(
            card(parts.reshape(length, -1)),
            card(rotary_table(1, dim, 1e4)),
            card(np.zeros(length, np.int64)),
            cache,
            card(slots),
        )
        wide = parts.astype(np.float32)
        contents.append([reference64.held_by_cache(wide[:, part], dtype) for part in (1, 2)])
    queries = rounded(rng.normal(size=(sum(counts), heads, dim)), "bfloat16")
    starts = np.cumsum([0, *counts]).astype(np.int32)
    placed = [card(part) for part in (starts, np.array(lengths, np.int32), tables)]
    got = back(ops.paged_attention(card(queries), cache, *placed, dim**-0.5, window))
    for row, (keys, values) in enumerate(contents):
        part = slice(starts[row], starts[row + 1])
        wide = queries[part].astype(np.float64)
        expected = reference64.attention(wide, keys, values, dim**-0.5, window)
        assert error(got[part].reshape(expected.shape), expected) < 1e-2


@pytest.mark.parametrize("dtype", HELD)
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
def test_norms_of_heads_and_scaled_queries(dtype, dim, rng):
    heads, kv_heads, tokens = 5, 2, 9
    cache = empty_cache(2, 16, kv_heads, dim, dtype)
    qkv = rounded(rng.normal(size=(tokens, heads + 2 * kv_heads, dim)), "bfloat16")
    norms = [rounded(rng.normal(size=dim), "bfloat16") for _ in range(2)]
    factors = rounded(rng.uniform(1, 2, 40), "bfloat16")
    positions, slots = rng.integers(0, 40, tokens), rng.permutation(32)[:tokens]
    slots[4] = -1  # padding
    queries = ops.rotary_kv_write(
        card(qkv.reshape(tokens, -1)),
        card(rotary_table(40, dim, 1e4)),
        card(positions),
        cache,
        card(slots),
        card(norms[0]),
        card(norms[1]),
        1e-6,
        card(factors),
    )
    keys, values = held(cache)
    for t, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        row = qkv[t].astype(np.float64)
        normed = [
            reference64.rms_norm(part, norm.astype(np.float64), 1e-6)
            for part, norm in zip((row[:heads], row[heads : heads + kv_heads]), norms, strict=True)
        ]
        turned = [np.stack([reference64.rotate(x, position, 1e4) for x in part]) for part in normed]
        assert error(back(queries)[t], turned[0] * float(factors[position])) < 4e-3
        if slot >= 0:
            expected = reference64.held_by_cache(turned[1].astype(np.float32), dtype)
            assert error(keys[slot], expected) < 2e-2
            exactly = reference64.held_by_cache(row[heads + kv_heads :].astype(np.float32), dtype)
            assert error(values[slot], exactly) < 1e-3


def held(cache):
    """What a cache stands for, [slots, kv_heads, dim] each."""
    parts = []
    pairs = ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    for codes, scales in pairs:
        rows = back(codes).reshape(-1, *codes.shape[2:])
        parts.append(rows if scales is None else rows * back(scales).reshape(-1, codes.shape[2], 1))
    return parts
