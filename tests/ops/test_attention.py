import ml_dtypes
import numpy as np
import paddle
import pytest

from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.core.types import LayerCache
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build import plan_build
from qinfer.cuda_ops.native import lanes

BLOCK = 16
STALE = np.float32(np.nan)
"""What unwritten slots hold: reading one would show in every output."""


def cache_of(blocks, kv_heads, dim, dtype="float32", fill=STALE, static=None):
    """A layer's cache, and its scales where it has some, full of ``fill`` unless static."""
    shape = [blocks, BLOCK, kv_heads]
    scaled = dtype in ("int8", "float8_e4m3fn")
    held = [
        paddle.full([*shape, dim], 0x7F, "int8").view(dtype)  # e4m3's NaN
        if scaled
        else paddle.full([*shape, dim], fill).astype(dtype)
        for _ in range(2)
    ]
    scales = [paddle.full(shape, fill) if scaled else None for _ in range(2)]
    if static is not None:
        scales = [paddle.to_tensor(part) for part in static]
    return LayerCache(keys=held[0], values=held[1], key_scales=scales[0], value_scales=scales[1])


def paged(rng, lengths, kv_heads, dim, dtype="float32", static=None):
    """A cache written in random block order, its tables, and what it should then hold.

    ``static``: scales of keys and of values, [kv_heads] each.
    """
    blocks = [-(-length // BLOCK) for length in lengths]
    order = rng.permutation(sum(blocks) + 3)
    tables = np.full((len(lengths), max(blocks)), sum(blocks) + 2, np.int32)
    cache = cache_of(sum(blocks) + 3, kv_heads, dim, dtype, static=static)
    still = np.repeat([[1.0, 0.0]], dim, axis=1)  # cosines 1 and sines 0: no rotation
    contents, used = [], 0
    for row, length in enumerate(lengths):
        tables[row, : blocks[row]] = order[used : used + blocks[row]]
        used += blocks[row]
        pair = [rng.normal(size=(length, kv_heads, dim)).astype(np.float32) for _ in range(2)]
        pair[0][0, 0] = 0  # a head of zeros has no largest magnitude
        at = np.arange(length)
        slots = tables[row, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK
        query = np.zeros((length, kv_heads * dim), np.float32)
        qkv = np.concatenate([query, *(part.reshape(length, -1) for part in pair)], axis=1)
        ops.rotary_kv_write(
            paddle.to_tensor(qkv),
            paddle.to_tensor(still.astype(np.float32)),
            paddle.to_tensor(np.zeros(length, np.int64)),
            cache,
            paddle.to_tensor(slots),
        )
        by_head = static or [None, None]
        contents.append(
            [
                reference64.held_by_cache(part, dtype, own)
                for part, own in zip(pair, by_head, strict=True)
            ]
        )
    return cache, tables, contents


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (9, 3, 64), (5, 1, 20)])
@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ([1], [1]),
        ([1], [53]),
        ([6], [6]),
        ([37], [37]),
        ([5], [49]),
        ([1, 17, 3, 1], [8, 17, 31, 80]),
    ],
    ids=["first", "decode", "short", "prefill", "chunk", "ragged"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("window", [0, 1, 7, 1000])
def test_paged_attention(heads, kv_heads, dim, counts, lengths, window, dtype, rng):
    check_attention(rng, heads, kv_heads, dim, counts, lengths, window, dtype)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (9, 3, 64), (5, 1, 20)])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("largest", [1.5, 6.0])
def test_static_scales_of_the_cache(heads, kv_heads, dim, dtype, largest, rng):
    """A scale for each head, some of which clip: nothing is written beside keys and values."""
    top = {"int8": 127, "float8_e4m3fn": 448}[dtype]
    spread = rng.uniform(0.5, 1, (2, kv_heads)).astype(np.float32)
    static = list(spread * np.float32(largest / top))
    check_attention(rng, heads, kv_heads, dim, [1, 17, 3], [8, 17, 31], 0, dtype, static)


def check_attention(rng, heads, kv_heads, dim, counts, lengths, window, dtype, static=None):
    cache, tables, contents = paged(rng, lengths, kv_heads, dim, dtype, static)
    queries = rng.normal(size=(sum(counts), heads, dim)).astype(np.float32)
    starts = np.cumsum([0, *counts]).astype(np.int32)
    got = ops.paged_attention(
        paddle.to_tensor(queries),
        cache,
        paddle.to_tensor(starts),
        paddle.to_tensor(np.array(lengths, np.int32)),
        paddle.to_tensor(tables),
        dim**-0.5,
        *([window] if window else []),
    ).numpy()
    for row, (keys, values) in enumerate(contents):
        part = slice(starts[row], starts[row + 1])
        expected = reference64.attention(queries[part], keys, values, dim**-0.5, window)
        flat = expected.reshape(counts[row], heads * dim)
        np.testing.assert_allclose(got[part], flat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (9, 3, 64), (3, 1, 20)])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("more", ["", "norms", "scale"])
def test_rotary_kv_write(heads, kv_heads, dim, theta, more, rng, version):
    positions = np.array([0, 1, 5, 4000, 63], np.int64)
    slots = np.array([7, 0, 23, 3, 45], np.int64)
    qkv = rng.normal(size=(5, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    cache = cache_of(3, kv_heads, dim, fill=9.0)
    norms = [rng.uniform(0.5, 2, dim).astype(np.float32) for _ in range(2)]
    factors = rng.uniform(0.5, 2, 4096).astype(np.float32)
    given = {
        "norms": (*map(paddle.to_tensor, norms), 1e-3),
        "scale": (None, None, 0.0, paddle.to_tensor(factors)),
    }
    queries = ops.rotary_kv_write(
        paddle.to_tensor(qkv),
        paddle.to_tensor(rotary_table(4096, dim, theta)),
        paddle.to_tensor(positions),
        cache,
        paddle.to_tensor(slots),
        *given.get(more, ()),
    ).numpy()
    split = qkv.reshape(5, -1, dim).copy()
    if more == "norms":
        split[:, :heads] = reference64.rms_norm(split[:, :heads], norms[0], 1e-3)
        rows = slice(heads, heads + kv_heads)
        split[:, rows] = reference64.rms_norm(split[:, rows], norms[1], 1e-3)
    if more == "scale":
        queries = queries / factors[positions][:, None, None]
    keys, values = cache.keys.numpy(), cache.values.numpy()
    if version == "cpu" and dim % 16 == 0:  # there keys lie dimension by dimension, in groups
        width = lanes(plan_build().library)
        keys = keys.reshape(-1, kv_heads, dim, width).transpose(0, 3, 1, 2)
    keys, values = keys.reshape(-1, kv_heads, dim), values.reshape(-1, kv_heads, dim)
    for t, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        turned = np.stack([reference64.rotate(x, position, theta) for x in split[t]])
        np.testing.assert_allclose(queries[t], turned[:heads], atol=1e-5)
        np.testing.assert_allclose(keys[slot], turned[heads : heads + kv_heads], atol=1e-5)
        np.testing.assert_array_equal(values[slot], split[t, heads + kv_heads :])
    untouched = np.setdiff1d(np.arange(3 * BLOCK), slots)
    assert (keys[untouched] == 9).all()
    assert (values[untouched] == 9).all()


def test_a_bfloat16_cache_rounds_to_nearest_even(rng):
    """What is written, read back by attention to a single key."""
    values = rng.normal(size=(1, 2, 32)).astype(np.float32)
    values[0, 0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1e30]  # two ties, then a large one
    cache = cache_of(1, 2, 32, "bfloat16")
    zeros = np.zeros((1, 2 * 2 * 32), np.float32)
    qkv = np.concatenate([zeros, values.reshape(1, -1)], axis=1)
    still = np.repeat([[1.0, 0.0]], 32, axis=1).astype(np.float32)
    at, one = paddle.zeros([1], "int64"), paddle.ones([1], "int32")
    queries = ops.rotary_kv_write(*map(paddle.to_tensor, (qkv, still)), at, cache, at)
    starts = paddle.to_tensor(np.array([0, 1], np.int32))
    got = ops.paged_attention(queries, cache, starts, one, one.reshape([1, 1]) - 1, 1.0)
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got.numpy(), expected.reshape(1, -1))


def test_repeated_attention_gives_the_same_bits(rng):
    """A result read before every thread has finished would differ now and then."""
    cache, tables, _ = paged(rng, [90, 70], 2, 32)
    queries = paddle.to_tensor(rng.normal(size=(2, 6, 32)).astype(np.float32))
    numbers = ([0, 1, 2], [90, 70])
    starts, lengths = (paddle.to_tensor(np.array(part, np.int32)) for part in numbers)
    arguments = (queries, cache, starts, lengths, paddle.to_tensor(tables), 0.2)
    first = ops.paged_attention(*arguments).numpy()
    for _ in range(300):
        np.testing.assert_array_equal(ops.paged_attention(*arguments).numpy(), first)
