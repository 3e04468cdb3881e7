"""Fused CUDA operators: products with what stands around them against float64, attention of
decoding against the reference operators in float32.
"""

import ml_dtypes
import numpy as np
import paddle
import pytest

from gpu.tools import ROUNDING, back, card, error, rounded
from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.core.types import LayerCache, StepInput
from qinfer.cuda_ops import ops

BLOCK = 16
E4M3 = ml_dtypes.float8_e4m3fn
SHAPES = [(896, 1152), (64, 80), (1984, 24), (4864, 896)]


def layer_of(format_, width, out, rng):
    """A layer as the schemes build it, and its weight [out, in] in float64."""
    bias = rounded(rng.normal(size=out), "bfloat16")
    scale = rng.uniform(1e-3, 1e-2, out).astype(np.float32)
    if format_ == "plain":
        codes, scale = rounded(rng.normal(size=(out, width)) / 20, "bfloat16"), None
    elif format_ == "int8":
        codes = rng.integers(-127, 128, (out, width)).astype(np.int8)
    elif format_ == "e4m3":
        codes = (rng.normal(size=(out, width)) * 40).clip(-448, 448).astype(E4M3)
    else:
        codes = rng.integers(-8, 8, (out, width)).astype(np.int8)
        scale = rng.uniform(1e-2, 1e-1, (out, width // 64)).astype(np.float32)
    wide = codes.astype(np.float64)
    if scale is not None:
        wide *= np.repeat(scale, 64, axis=1) if format_ == "int4" else scale[:, None]
    if format_ == "int4":
        weight, scales = ops.arrange_int4(card(codes), card(scale))
    else:
        weight, scales = card(codes), None if scale is None else card(scale)
    held = ops.Held(format=format_, weight=weight, scale=scales, bias=card(bias), out=out)

    class Layer:
        def __call__(self, x):
            raise AssertionError("the parts ran")

    layer = Layer()
    layer.held = held
    return layer, wide, bias.astype(np.float64)


def coarse(x, whole=None):
    """Rows in codes of e4m3, with the step of ``whole``, their own if None. In float32, as steps
    are: quotients fall halfway between two codes often enough to show.
    """
    x, whole = (y.astype(np.float32) for y in (x, x if whole is None else whole))
    step = np.abs(whole).max(axis=1, keepdims=True) / np.float32(448)
    return np.clip(x / step, -448, 448).astype(E4M3).astype(np.float64) * step


def normed(x, weight, format_):
    """What a norm may become before a product. In codes of e4m3 it is rounded to bfloat16 first,
    with its row's factor or before that, when the step is that of what is not rounded yet. Which of
    the two it is decides for some numbers about the code, and codes are 1/16 apart.
    """
    exact = reference64.rms_norm(x, weight, 1e-6)
    if format_ != "e4m3":
        return [exact]
    factor = (np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6) ** -0.5
    early = x.astype(np.float64) * weight
    return [
        coarse(rounded(exact, "bfloat16")),
        coarse(rounded(early, "bfloat16"), early) * factor,
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("format_", ["plain", "int8", "e4m3", "int4"])
@pytest.mark.parametrize(
    ("rows", "is_first", "is_gated"),
    [(1, 0, 0), (1, 0, 1), (5, 1, 0), (40, 0, 0), (65, 0, 1), (300, 1, 0)],
)
def test_norm_linear(format_, shape, rows, is_first, is_gated, rng):
    width, out = shape[0], shape[1] * (1 + is_gated)
    layer, weight, bias = layer_of(format_, width, out, rng)
    delta, residual = (rounded(rng.normal(size=(rows, width)) * 3, "bfloat16") for _ in range(2))
    norm = rounded(rng.normal(size=width) / 4 + 1, "bfloat16")
    got, total = ops.norm_linear(
        None if is_first else card(delta), card(residual), card(norm), 1e-6, layer, bool(is_gated)
    )
    both = residual.astype(np.float32) + (0 if is_first else delta.astype(np.float32))
    both = rounded(both, "bfloat16")
    np.testing.assert_array_equal(back(total), both.astype(np.float32))

    def product(x):
        y = x @ weight.T + bias
        if not is_gated:
            return y
        gate, up = np.split(y, 2, axis=1)
        return gate / (1 + np.exp(-gate)) * up

    nearest = min(
        error(back(got), product(x)) for x in normed(both, norm.astype(np.float64), format_)
    )
    assert nearest < (2e-2 if is_gated else 1e-2 if format_ == "e4m3" else 6e-3)


@pytest.mark.parametrize("formats", [("e4m3", "e4m3"), ("plain", "e4m3"), ("e4m3", "int8")])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 64, 65, 200, 2048])
def test_gated_mlp(rows, formats, rng):
    """The same as its parts, to the bit: what is rounded between the products is the same."""
    width, wide = 256, 2 * 704
    layers = [
        layer_of(kind, *size, rng)[0]
        for kind, size in zip(formats, ((width, wide), (wide // 2, width)), strict=True)
    ]
    delta, residual = (rounded(rng.normal(size=(rows, width)) * 3, "bfloat16") for _ in range(2))
    norm = rounded(rng.normal(size=width) / 4 + 1, "bfloat16")
    x = (card(delta), card(residual), card(norm), 1e-6)
    got, total = ops.gated_mlp(*x, *layers)
    hidden, summed = ops.norm_linear(*x, layers[0], True)
    calls = {"e4m3": ops.linear_fp8, "int8": ops.linear_int8}
    held = layers[1].held
    expected = calls[formats[1]](hidden, held.weight, held.scale, held.bias)
    np.testing.assert_array_equal(back(total), back(summed))
    np.testing.assert_array_equal(back(got), back(expected))


@pytest.mark.parametrize("width", [64, 2064, 4864, 12000])
@pytest.mark.parametrize("rows", [3, 20])
def test_a_norm_is_rounded_as_its_result_would_be(rows, width, rng):
    """With ones on the weight's diagonal the product shows the codes."""
    x = card(rounded(rng.normal(size=(rows, width)) * 3, "bfloat16"))
    norm = card(rounded(rng.normal(size=width) / 4 + 1, "bfloat16"))
    weight = card(np.eye(48, width).astype(E4M3))
    scale = card(np.ones(48, np.float32))

    class Layer:
        held = ops.Held(format="e4m3", weight=weight, scale=scale, bias=None, out=48)

    got, _ = ops.norm_linear(None, x, norm, 1e-6, Layer())
    expected = ops.linear_fp8(ops.rms_norm(x, norm, 1e-6), weight, scale, None)
    np.testing.assert_array_equal(back(got), back(expected))


def test_a_layer_that_shows_nothing_is_called(rng):
    x, norm = rounded(rng.normal(size=(2, 64)), "bfloat16"), rounded(np.ones(64), "bfloat16")
    seen = []

    def layer(x):
        seen.append(x)
        return x

    got, total = ops.norm_linear(card(x), card(x), card(norm), 1e-6, layer)
    assert len(seen) == 1
    np.testing.assert_array_equal(back(total), 2 * x.astype(np.float32))
    np.testing.assert_array_equal(back(got), back(seen[0]))


def caches_of(kind, slots, kv_heads, dim, rng):
    """Two equal caches, one on the card and one here, with any content."""
    shape = (slots // BLOCK, BLOCK, kv_heads, dim)
    numbers = [rng.normal(size=shape) for _ in range(2)]
    scales = [None, None]
    if kind != "plain":
        most = 127 if kind == "int8" else 448
        scales = [(np.abs(n).max(axis=3) / most).astype(np.float32) for n in numbers]
        numbers = [n / s[..., None] for n, s in zip(numbers, scales, strict=True)]
    dtype = {"plain": "bfloat16", "int8": "int8", "e4m3": "float8_e4m3fn"}[kind]
    numbers = [rounded(np.round(n) if kind == "int8" else n, dtype) for n in numbers]

    def here(array):
        wide = array.astype(np.float32) if kind == "plain" and array.ndim == 4 else array
        return on_processor(wide)

    def cache(put):
        (keys, values), (k, v) = numbers, scales
        parts = [None if s is None else put(s) for s in (k, v)]
        return LayerCache(
            keys=put(keys), values=put(values), key_scales=parts[0], value_scales=parts[1]
        )

    return cache(card), cache(here)


def on_processor(array):
    if array.dtype == E4M3:
        place = paddle.CPUPlace()
        return paddle.to_tensor(array.view(np.int8), place=place).view("float8_e4m3fn")
    return paddle.to_tensor(array, place=paddle.CPUPlace())


def read(cache, scales):
    numbers = back(cache)
    return numbers if scales is None else numbers * back(scales)[..., None]


@pytest.mark.parametrize("kind", ["plain", "int8", "e4m3"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "has_norms", "window"),
    [(14, 2, 64, False, 0), (16, 8, 128, True, 100), (20, 1, 16, True, 0), (4, 2, 32, False, 17)],
)
@pytest.mark.parametrize("lengths", [[1], [1500], [3000], [3, 64, 0, 17, 500, 130]], ids=str)
def test_attend(kind, heads, kv_heads, dim, has_norms, window, lengths, rng):
    count, most = len(lengths), -(-max(lengths) // BLOCK) + 1
    tables = rng.permutation(count * most).reshape(count, most).astype(np.int32)
    ends = np.array(lengths) - 1
    slots = np.where(ends < 0, -1, tables[np.arange(count), ends // BLOCK] * BLOCK + ends % BLOCK)
    on_card, here = caches_of(kind, count * most * BLOCK, kv_heads, dim, rng)
    qkv = rounded(rng.normal(size=(count, (heads + 2 * kv_heads) * dim)), "bfloat16")
    norms = [rounded(rng.normal(size=dim) / 4 + 1, "bfloat16") for _ in range(2)]
    table = rotary_table(4096, dim, 1e6)
    arrays = {
        "token_ids": np.zeros(count, np.int64),
        "positions": np.maximum(ends, 0) + 3,
        "query_starts": np.arange(count + 1, dtype=np.int32),
        "seq_lens": np.array(lengths, np.int32),
        "slot_mapping": slots.astype(np.int64),
        "block_tables": tables,
        "logit_rows": np.arange(count),
    }

    def step(put):
        return StepInput(**{name: put(array) for name, array in arrays.items()})

    def options(put):
        given = [put(norm) if has_norms else None for norm in norms]
        return dim**-0.5, window, *given, 1e-6, None

    got = back(ops.attend(card(qkv), card(table), step(card), on_card, *options(card)))
    rows = [row for row, length in enumerate(lengths) if length]
    assert (np.delete(got, rows, axis=0) == 0).all()
    arrays = {
        name: value[rows] if name != "query_starts" else value[: len(rows) + 1]
        for name, value in arrays.items()
    }
    batch, wide = step(on_processor), (lambda array: on_processor(array.astype(np.float32)))
    scale, _, q_norm, k_norm, eps, _ = options(wide)
    paddle.set_device("cpu")
    queries = ops.rotary_kv_write.versions["reference"](
        wide(qkv[rows]), wide(table), batch.positions, here, batch.slot_mapping, q_norm, k_norm, eps
    )
    expected = ops.paged_attention.versions["reference"](
        queries, here, batch.query_starts, batch.seq_lens, batch.block_tables, scale, window
    ).numpy()
    paddle.set_device("nv:0")
    limit = ROUNDING["bfloat16"] * (2 if kind == "plain" else 4)
    assert error(got[rows], expected) < limit
    for name in ("key", "value"):
        written = [
            read(getattr(cache, f"{name}s"), getattr(cache, f"{name}_scales")).reshape(
                -1, kv_heads, dim
            )[slots[rows]]
            for cache in (on_card, here)
        ]
        assert error(*written) < {"plain": 4e-3, "int8": 1e-2, "e4m3": 4e-2}[kind]
