"""The CUDA operators that are no products, against float64."""

import numpy as np
import paddle
import pytest

from gpu.tools import DTYPES, ROUNDING, back, card, error, rounded
from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.core.types import LayerCache
from qinfer.cuda_ops import ops

BLOCK = 16


def exact(array):
    return array.astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(dtype, rng):
    table = rounded(rng.normal(size=(300, 72)), dtype)
    ids = rng.integers(0, 300, 33)
    np.testing.assert_array_equal(
        back(ops.embed(card(ids), card(table), dtype)), table[ids].astype(np.float32)
    )
    np.testing.assert_array_equal(
        back(ops.to_float32(ops.take_rows(card(table), card(ids)))), table[ids].astype(np.float32)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (3, 131), (64, 2048)])
def test_to_float32(dtype, shape, rng):
    x = rounded(rng.normal(size=shape), dtype)
    np.testing.assert_array_equal(back(ops.to_float32(card(x))), x.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 4864), (130, 200)])
def test_silu_gate(dtype, rows, width, rng):
    x = rounded(rng.normal(size=(rows, 2 * width)) * 4, dtype)
    gate, up = exact(x[:, :width]), exact(x[:, width:])
    assert error(back(ops.silu_gate(card(x))), gate / (1 + np.exp(-gate)) * up) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 896), (3, 64), (70, 3584), (3, 6000), (2, 16384)])
def test_norms(dtype, rows, width, rng):
    x, residual = (rounded(rng.normal(size=(rows, width)), dtype) for _ in range(2))
    weight = rounded(rng.normal(size=width), dtype)
    got = back(ops.rms_norm(card(x), card(weight), 1e-6))
    assert error(got, reference64.rms_norm(x, exact(weight), 1e-6)) < ROUNDING[dtype]
    normed, total = ops.add_rms_norm(card(x), card(residual), card(weight), 1e-6)
    both = rounded(x.astype(np.float32) + residual.astype(np.float32), dtype)
    np.testing.assert_array_equal(back(total), both.astype(np.float32))
    assert error(back(normed), reference64.rms_norm(both, exact(weight), 1e-6)) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(14, 2, 64), (28, 4, 128), (3, 1, 16)])
def test_rotary_kv_write(dtype, heads, kv_heads, dim, rng):
    positions = np.array([0, 1, 5, 4000, 63, 7], np.int64)
    slots = np.array([7, 0, 23, 3, 45, -1], np.int64)  # the last token is padding
    qkv = rounded(rng.normal(size=(6, (heads + 2 * kv_heads) * dim)), dtype)
    caches = [card(rounded(np.full((3, BLOCK, kv_heads, dim), 9), dtype)) for _ in range(2)]
    queries = ops.rotary_kv_write(
        card(qkv),
        card(rotary_table(4096, dim, 1e6)),
        card(positions),
        LayerCache(keys=caches[0], values=caches[1]),
        card(slots),
    )
    split = exact(qkv).reshape(6, -1, dim)
    keys, values = (back(cache).reshape(-1, kv_heads, dim) for cache in caches)
    for t, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        turned = np.stack([reference64.rotate(x, position, 1e6) for x in split[t]])
        assert error(back(queries)[t], turned[:heads]) < ROUNDING[dtype]
        if slot >= 0:
            assert error(keys[slot], turned[heads : heads + kv_heads]) < ROUNDING[dtype]
            np.testing.assert_array_equal(values[slot], split[t, heads + kv_heads :])
    untouched = np.setdiff1d(np.arange(3 * BLOCK), slots)
    assert (keys[untouched] == 9).all()
    assert (values[untouched] == 9).all()


def paged(rng, lengths, kv_heads, dim, dtype):
    """Keys and values in a cache in random block order; slots not written hold NaN."""
    blocks = [-(-length // BLOCK) for length in lengths]
    order = rng.permutation(sum(blocks) + 3)
    tables = np.full((len(lengths), max(blocks)), order[-1], np.int32)
    caches = [np.full(((sum(blocks) + 3) * BLOCK, kv_heads, dim), np.nan) for _ in range(2)]
    contents, used = [], 0
    for row, length in enumerate(lengths):
        tables[row, : blocks[row]] = order[used : used + blocks[row]]
        used += blocks[row]
        at = np.arange(length)
        slots = tables[row, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK
        pair = [rounded(rng.normal(size=(length, kv_heads, dim)), dtype) for _ in range(2)]
        for cache, part in zip(caches, pair, strict=True):
            cache[slots] = part
        contents.append([exact(part) for part in pair])
    shape = (-1, BLOCK, kv_heads, dim)
    return [card(rounded(cache.reshape(shape), dtype)) for cache in caches], tables, contents


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [(14, 2, 64), (12, 2, 128), (4, 4, 128), (9, 3, 64), (4, 2, 32), (20, 2, 16), (2, 1, 256)],
)
@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ([1], [1]),
        ([1], [1000]),
        ([1] * 9, [3, 64, 65, 17, 500, 1, 128, 129, 2]),
        ([37], [37]),
        ([200], [200]),
        ([70], [333]),
        ([1, 17, 64, 65, 1, 3], [8, 17, 64, 80, 400, 131]),
    ],
    ids=["first", "decode", "batch", "short", "prefill", "chunk", "ragged"],
)
def test_paged_attention(dtype, heads, kv_heads, dim, counts, lengths, rng):
    caches, tables, contents = paged(rng, lengths, kv_heads, dim, dtype)
    queries = rounded(rng.normal(size=(sum(counts), heads, dim)) * 2, dtype)
    starts = np.cumsum([0, *counts]).astype(np.int32)
    got = back(
        ops.paged_attention(
            card(queries),
            LayerCache(keys=caches[0], values=caches[1]),
            card(starts),
            card(np.array(lengths, np.int32)),
            card(tables),
            dim**-0.5,
        )
    )
    for row, (keys, values) in enumerate(contents):
        part = slice(starts[row], starts[row + 1])
        expected = reference64.attention(exact(queries[part]), keys, values, dim**-0.5)
        assert error(got[part].reshape(expected.shape), expected) < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 7])
def test_attention_of_single_queries(group, dim, dtype, rng):
    """Which heads share the keys that are read decides which of the kernels it is."""
    lengths, heads = [70, 1, 300], 2 * group
    caches, tables, contents = paged(rng, lengths, 2, dim, dtype)
    queries = rounded(rng.normal(size=(3, heads, dim)), dtype)
    numbers = np.arange(4, dtype=np.int32), np.array(lengths, np.int32), tables
    cache = LayerCache(keys=caches[0], values=caches[1])
    got = back(ops.paged_attention(card(queries), cache, *map(card, numbers), dim**-0.5))
    for row, (keys, values) in enumerate(contents):
        expected = reference64.attention(exact(queries[row : row + 1]), keys, values, dim**-0.5)
        assert error(got[row], expected.reshape(-1)) < 2 * ROUNDING[dtype]


def test_attention_of_a_sequence_that_is_not_there_is_zero(rng):
    caches, tables, _ = paged(rng, [5], 2, 64, "bfloat16")
    queries = card(rounded(rng.normal(size=(2, 4, 64)), "bfloat16"))
    starts, lengths = np.array([0, 1, 2], np.int32), np.array([5, 0], np.int32)
    tables = np.concatenate([tables, tables])
    got = back(
        ops.paged_attention(
            queries,
            LayerCache(keys=caches[0], values=caches[1]),
            card(starts),
            card(lengths),
            card(tables),
            0.1,
        )
    )
    assert (got[1] == 0).all()
    assert (got[0] != 0).any()


@pytest.mark.parametrize(("rows", "width"), [(4, 151936), (1, 1300), (300, 2000)])
def test_argmax_takes_the_first_of_equals(rows, width, rng):
    logits = rng.normal(size=(rows, width)).astype(np.float32)
    logits[0, [7, 900, width - 1]] = 9
    logits[-1:, 1:] = logits[0, 1:] if rows == 1 else -np.inf
    logits[-1, 1234] = 10 if rows == 1 else -1e30
    for _ in range(2):  # what a call leaves behind must not be seen by the next
        got = ops.argmax(card(logits)).numpy()
        np.testing.assert_array_equal(got, logits.argmax(axis=1))


def test_edit_logits(rng):
    logits = rng.normal(size=(3, 50)).astype(np.float32)
    rows, tokens = np.array([0, 2, 2]), np.array([4, 4, 9])
    scale, bias = np.array([2, 3, 1], np.float32), np.array([0, 1, -np.inf], np.float32)
    expected = logits.copy()
    old = logits[rows, tokens]
    expected[rows, tokens] = np.where(old > 0, old / scale, old * scale) + bias
    got = ops.edit_logits(*map(card, (logits, rows, tokens, scale, bias)))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("width", [40, 1000, 151936])
def test_sample_follows_the_inverse_of_the_cumulative_distribution(width, rng):
    cases = [(1, 0, 1, 0), (0.7, 20, 0.8, 0), (1.3, 0, 0.9, 0), (1, 5, 1, 0), (1, 0, 1, 0.05)]
    cases = [*cases, (0, 0, 1, 0), (2, 50, 0.95, 0.02)] * 8
    logits = (rng.normal(size=(len(cases), width)) * 3).astype(np.float32)
    uniform = rng.random(len(cases)).astype(np.float32)
    temperature, top_k, top_p, min_p = (np.array(part) for part in zip(*cases, strict=True))
    parts = (temperature.astype(np.float32), top_k.astype(np.int64))
    parts += (top_p.astype(np.float32), min_p.astype(np.float32), uniform)
    got = ops.sample(card(logits), *map(card, parts), 0).numpy()
    for row, (case, u) in enumerate(zip(cases, uniform, strict=True)):
        if case[0] == 0:
            assert got[row] == logits[row].argmax()
            continue
        kept = reference64.keep_set(logits[row], *case)
        assert kept[got[row]] > 0
        order = np.argsort(-logits[row], kind="stable")
        until = np.cumsum(kept[order])
        place = int(np.flatnonzero(order == got[row])[0])
        before = until[place] - kept[got[row]]
        assert before - 1e-4 <= u <= until[place] + 1e-4


@pytest.mark.parametrize("top_k", [1, 20, 900, 1024, 1025, 1500, 1600, 4000])
@pytest.mark.parametrize("kind", ["ties", "equal"])
def test_sample_of_equal_logits(kind, top_k, rng):
    """As a head in bfloat16 gives them: of those with the same, the first come first."""
    rows, width = 24, 5000
    logits = rounded(rng.normal(size=(rows, width)) * 3, "bfloat16").astype(np.float32)
    logits = logits if kind == "ties" else np.zeros_like(logits)
    uniform = ((np.arange(rows) + 0.5) / rows).astype(np.float32)
    ones = np.ones(rows, np.float32)
    parts = (ones, np.full(rows, top_k, np.int64), ones, 0 * ones, uniform)
    got = ops.sample(card(logits), *map(card, parts), 0).numpy()
    for row in range(rows):
        order = np.argsort(-logits[row], kind="stable")[:top_k]
        until = np.cumsum(reference64.softmax(logits[row, order].astype(np.float64)[None])[0])
        place = int(np.flatnonzero(order == got[row])[0])
        before = until[place - 1] if place else 0
        assert before - 1e-5 <= uniform[row] <= until[place] + 1e-5


@pytest.mark.parametrize("width", [200, 151936])
def test_log_probabilities(width, rng):
    logits = (rng.normal(size=(3, width)) * 3).astype(np.float32)
    logits[1, [9, 150]] = 60  # of equal ones the first comes first
    chosen = np.array([1, 5, width - 1])
    picked, top, ids = ops.token_logprobs(card(logits), card(chosen), 4)
    expected = np.log(reference64.softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(picked.numpy(), expected[np.arange(3), chosen], atol=1e-5)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(ids.numpy(), order)
    np.testing.assert_allclose(top.numpy(), np.take_along_axis(expected, order, 1), atol=2e-5)


def test_an_operator_refuses_what_it_cannot_compute():
    with pytest.raises(Exception, match="must be bfloat16 or float16"):
        ops.silu_gate(paddle.to_tensor(np.ones((2, 32), np.float32)))
