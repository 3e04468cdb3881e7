"""Caches of eight bits, windows, norms of the heads and scaled queries, against float64."""

import numpy as np
import pytest

from gpu.paged import empty_cache, filled
from gpu.tools import DTYPES, ROUNDING, back, card, error, rounded
from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.cuda_ops import ops

HELD = ["bfloat16", "int8", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", HELD)
@pytest.mark.parametrize("window", [0, 90])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(14, 2, 64), (6, 2, 128)])
@pytest.mark.parametrize("block_size", [16, 64])
def test_attention_after_writing(dtype, window, heads, kv_heads, dim, block_size, rng):
    """Queries of their own: 150 of one sequence, one of another."""
    counts, lengths = [150, 1], [250, 70]
    context = filled(rng, lengths, lengths, (block_size, kv_heads, dim), dtype, "bfloat16")
    queries = rounded(rng.normal(size=(sum(counts), heads, dim)), "bfloat16")
    starts = np.cumsum([0, *counts]).astype(np.int32)
    placed = [card(part) for part in (starts, np.array(lengths, np.int32), context.tables)]
    got = back(ops.paged_attention(card(queries), context.cache, *placed, dim**-0.5, window))
    for row, (keys, values) in enumerate(context.contents):
        part = slice(starts[row], starts[row + 1])
        wide = queries[part].astype(np.float64)
        expected = reference64.attention(wide, keys, values, dim**-0.5, window)
        assert error(got[part].reshape(expected.shape), expected) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("held_as", ["plain", *HELD[1:]])
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
def test_norms_of_heads_and_scaled_queries(held_as, dim, dtype, rng):
    heads, kv_heads, tokens = 5, 2, 9
    held_as = dtype if held_as == "plain" else held_as
    cache = empty_cache(2, 16, kv_heads, dim, held_as)
    qkv = rounded(rng.normal(size=(tokens, heads + 2 * kv_heads, dim)), dtype)
    norms = [rounded(rng.normal(size=dim), dtype) for _ in range(2)]
    factors = rounded(rng.uniform(1, 2, 40), dtype)
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
        normed = [  # numbers of 16 bits again, before they are turned
            rounded(reference64.rms_norm(part, norm.astype(np.float64), 1e-6), dtype)
            for part, norm in zip((row[:heads], row[heads : heads + kv_heads]), norms, strict=True)
        ]
        turned = [np.stack([reference64.rotate(x, position, 1e4) for x in part]) for part in normed]
        assert error(back(queries)[t], turned[0] * float(factors[position])) < ROUNDING[dtype]
        if slot >= 0:
            expected = reference64.held_by_cache(turned[1].astype(np.float32), held_as)
            assert error(keys[slot], expected) < 1e-2  # a code apart here and there
            wide = row[heads + kv_heads :].astype(np.float32)
            exactly = reference64.held_by_cache(wide, held_as)
            assert error(values[slot], exactly) < 1e-3


def held(cache):
    """What a cache stands for, [slots, kv_heads, dim] each."""
    parts = []
    pairs = ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    for codes, scales in pairs:
        rows = back(codes).reshape(-1, *codes.shape[2:])
        parts.append(rows if scales is None else rows * back(scales).reshape(-1, codes.shape[2], 1))
    return parts
